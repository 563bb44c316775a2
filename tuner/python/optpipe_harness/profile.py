"""Times and bytes of single layers, with the functions by which torch.distributed.pipelining runs them."""

import time

import torch
from optpipe_torch.saved import Ledger
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from .layers import Layers, batch, loss_fn
from .weights import Gradients

WARMUP, LEAST, MOST, SECONDS = 3, 9, 101, 2.0
KINDS = ("embedding", "block", "head")


class Subject:
    """One layer with what its three operations need."""

    def __init__(self, layers, request, kind, device):
        self.layers, self.kind, self.device = layers, kind, device
        number = dict(embedding=0, block=1, head=layers.count - 1)[kind]
        self.layer = layers.make(number)
        self.gradients = Gradients(self.layer, layers.dtype)
        self.tokens, self.target = batch(request, request["microbatch_size"], 0, device)
        shape = *self.tokens.shape, request["model"]["hidden"]
        self.hidden = torch.randn(shape, device=device, dtype=layers.dtype)
        self.gradient = torch.randn(shape, device=device, dtype=layers.dtype) / self.hidden.numel()

    def input(self):
        """A fresh leaf, as the stage before leaves it."""
        return self.tokens if self.kind == "embedding" else self.hidden.detach().requires_grad_()

    def forward(self, x):
        """The output and what backward starts from."""
        output = self.layers.call(self.layer, x)
        return output, loss_fn(output, self.target) if self.kind == "head" else output

    def backward_input(self, x, root):
        """What backward_weight goes on from. An embedding has no gradient of its input."""
        if self.kind == "embedding":
            return None
        gradients = None if self.kind == "head" else [self.gradient]
        return stage_backward_input([root], gradients, [x], self.layer.parameters())[1]

    def backward_weight(self, root, groups):
        """The parameters' gradients."""
        if groups is None:
            torch.autograd.backward(root, self.gradient)
        else:
            stage_backward_weight(self.layer.parameters(), groups)
        self.gradients.fold()


class Timer:
    """Marks in time: the host's, or the device's stream."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def mark(self):
        """Now."""
        if not self.cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start, end):
        """ns."""
        return round(start.elapsed_time(end) * 1e6) if self.cuda else end - start


def times(subject):
    """Samples of the three operations, ns, after warm-up."""
    timer, samples, host_ns = Timer(subject.device), ([], [], []), 0
    began = time.monotonic()
    while len(samples[0]) < WARMUP + LEAST or (
            len(samples[0]) < WARMUP + MOST and time.monotonic() - began < SECONDS):
        x = subject.input()
        if timer.cuda:
            torch.cuda.synchronize(subject.device)
            # The device waits until it has been given all three: what is timed is its work, not the giving.
            torch.cuda._sleep(int(3 * host_ns))
        since = time.perf_counter_ns()
        marks = [timer.mark()]
        _, root = subject.forward(x)
        marks.append(timer.mark())
        groups = subject.backward_input(x, root)
        marks.append(timer.mark())
        subject.backward_weight(root, groups)
        marks.append(timer.mark())
        if timer.cuda:
            host_ns = time.perf_counter_ns() - since
            torch.cuda.synchronize(subject.device)
        for sample, start, end in zip(samples, marks, marks[1:]):
            sample.append(timer.between(start, end))
    return [sample[WARMUP:] for sample in samples]


def sizes(subject):
    """Bytes of one microbatch as optpipe_torch counts them in a stage of many layers.

    A layer's output counts with the layer, as the next one saves it; the first of a stage does not pay for its
    input, which torch holds in any case.
    """
    pair, ledger, device = (0, 0), Ledger(subject.device), subject.device
    ledger.begin_step([subject.layer])
    ledger.outside |= {t.untyped_storage()._cdata for t in subject.layers.shared()}
    cuda = device.type == "cuda"
    workspace = 0

    def watch(act):
        nonlocal workspace
        if not cuda:  # nothing counts temporaries there
            return act()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = act()
        torch.cuda.synchronize(device)
        workspace = max(workspace, torch.cuda.max_memory_allocated(device)
                        - max(before, torch.cuda.memory_allocated(device)))
        return result

    x = subject.input()
    with ledger.saving(pair):
        output = subject.layers.call(subject.layer, x)
    ledger.keep([x], [output])
    if subject.kind == "head":
        with ledger.saving(pair):
            root = watch(lambda: loss_fn(output, subject.target))
    else:
        root = output
    ledger.after_forward(pair)
    out = 0 if subject.kind == "head" else output.untyped_storage().nbytes()
    # Some layers save their output themselves: it counts once.
    own = sum(entry.bytes for entry in ledger.entries.values()
              if entry.storage._cdata == output.untyped_storage()._cdata) if out else 0
    activation, movable = ledger.activation[pair] + out - own, ledger.offloadable[pair] + out
    groups = watch(lambda: subject.backward_input(x, root))
    if groups is None:
        context = activation
    else:
        ledger.after_backward_input(pair)
        context = min(activation, ledger.weight_context[pair] + out - own)
    watch(lambda: subject.backward_weight(root, groups))
    ledger.after_backward(pair)
    if cuda:
        del root, output, groups
        x = subject.input()
        watch(lambda: subject.forward(x))
    return dict(activation=activation, weight_context=context, offloadable=min(movable, activation),
                output=root_bytes(subject), workspace=workspace)


def root_bytes(subject):
    """What goes to the next layer: the head gives a loss."""
    return 4 if subject.kind == "head" else subject.hidden.untyped_storage().nbytes()


def profile(rank, request):
    """Every rank measures at the same time, as in a pipeline; the slowest rank's samples count."""
    layers = Layers(request, rank.device)
    found = []
    for kind in KINDS:
        if kind == "block" and request["model"]["layers"] == 0:
            continue
        rank.control.progress(f"profiling: {kind}, {request['microbatch_size']} x {request['sequence_length']} tokens")
        subject = Subject(layers, request, kind, rank.device)
        held = sizes(subject)
        rank.barrier()
        samples = times(subject)
        medians = [sorted(sample)[len(sample) // 2] for sample in samples]
        slowest = max(rank.gather((sum(medians), rank.rank, samples)))
        parameters = sum(p.numel() for p in subject.layer.parameters())
        found.append(dict(kind=kind, samples_ns=slowest[2], bytes=held, parameters=parameters))
    clock = "cuda events" if rank.cuda else "perf_counter"
    return dict(layers=found, clock=clock, modules=layers.factory.name)
