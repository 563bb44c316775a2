"""Gradients and updates as the tuner counts their memory: sums of gradients in float32, with bf16 also a float32
copy of the weights, AdamW's two moments in float32."""

import functools

import torch
import torch.distributed as dist


class Gradients:
    """The sums of a stage's gradients over the microbatches of a step."""

    def __init__(self, module, dtype):
        self.parameters = list(module.parameters())
        self.wide = dtype == torch.bfloat16
        for parameter in self.parameters:
            sums = torch.zeros_like(parameter, dtype=torch.float32 if self.wide else dtype)
            if self.wide:
                parameter.sums = sums
            else:
                parameter.grad = parameter.sums = sums

    def fold(self):
        """After a backward: what autograd left in bf16 is added to the sums."""
        if not self.wide:
            return
        found = [parameter for parameter in self.parameters if parameter.grad is not None]
        if found:
            torch._foreach_add_([p.sums for p in found], [p.grad.float() for p in found])
        for parameter in found:
            parameter.grad = None


def fold_after_backwards(stage, gradients):
    """Makes the sums part of the stage's backwards."""
    backward, weight = stage.backward_one_chunk, stage.backward_weight_one_chunk

    def backward_one_chunk(microbatch, *args, **kwargs):
        result = backward(microbatch, *args, **kwargs)
        if kwargs.get("full_backward", True):
            gradients.fold()
        return result

    def backward_weight_one_chunk(microbatch, *args, **kwargs):
        result = weight(microbatch, *args, **kwargs)
        gradients.fold()
        return result

    stage.backward_one_chunk, stage.backward_weight_one_chunk = backward_one_chunk, backward_weight_one_chunk


class Update:
    """What ends a step: the gradient of a matrix that two stages hold is added up, then the optimizer."""

    def __init__(self, modules, dtype, optimizer, learning_rate, tied):
        self.parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
        self.wide, self.tied = dtype == torch.bfloat16, tied
        self.masters = [p.detach().float() if self.wide else p for p in self.parameters]
        for master, parameter in zip(self.masters, self.parameters):
            master.grad = parameter.sums
        kinds = dict(adamw=torch.optim.AdamW, sgd=torch.optim.SGD)
        self.optimizer = kinds[optimizer](self.masters, lr=learning_rate)

    def step(self, microbatches):
        """Gradients become means over the microbatches; weights move; sums start again at 0."""
        if self.tied is not None:
            self.tied.add_up()
        sums = [parameter.sums for parameter in self.parameters]
        torch._foreach_div_(sums, microbatches)
        self.optimizer.step()
        if self.wide:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self.parameters], self.masters)
        torch._foreach_zero_(sums)


class Tied:
    """The matrix that embedding and head share, where they are on two stages."""

    def __init__(self, matrices, group):
        self.matrices, self.group = matrices, group

    def add_up(self):
        """Both stages get the sum of both gradients."""
        if not self.matrices:
            return
        total = self.matrices[0].sums
        for other in self.matrices[1:]:
            total += other.sums
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        for other in self.matrices[1:]:
            other.sums.copy_(total)


@functools.cache
def pair(first, last):
    """The group of two ranks, made once: a group takes connections and, on NCCL, device memory. All ranks call it."""
    return dist.new_group([first, last])


def tie(stages, placement, rank, model):
    """The shared matrix of this rank's stages; every rank calls it."""
    if not model["tied_embeddings"] or len(placement) == 1:
        return None
    ends = sorted({placement[0], placement[-1]})
    group = pair(*ends) if len(ends) == 2 else None
    matrices = []
    for stage in stages:
        if stage.submod.first is not None:
            matrices.append(stage.submod.first.tokens.weight)
        if stage.submod.last is not None:
            matrices.append(stage.submod.last.projection.weight)
    return Tied(matrices, group if rank in ends else None)
