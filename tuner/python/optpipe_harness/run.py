"""Runs a schedule: real training steps, measured by optpipe_torch."""

import math
import time
from pathlib import Path

import torch
from optpipe_torch import OptPipeSchedule
from torch.distributed.pipelining import PipelineStage

from .layers import Layers, Stage, batch, loss_fn, ranges
from .weights import Gradients, Update, fold_after_backwards, tie


def build(rank, request, placement):
    """This rank's stages, with the sums of their gradients."""
    layers, stages = Layers(request, rank.device), []
    for index, numbers in enumerate(ranges(request["layer_split"])):
        if placement[index] != rank.rank:
            continue
        module = Stage(layers, numbers)
        stage = PipelineStage(module, index, len(placement), rank.device)
        fold_after_backwards(stage, Gradients(module, layers.dtype))
        stages.append(stage)
    return layers, stages


def run(rank, request):
    """Warm-up and measured steps; writes measured.yaml."""
    folder, placement = Path(request["folder"]), request["placement"]
    if rank.cuda:
        total, limit = torch.cuda.get_device_properties(rank.device).total_memory, request["limit_bytes"]
        share = 1.0 if limit is None else min(1.0, limit[rank.rank] / total)
        torch.cuda.set_per_process_memory_fraction(share, rank.device)
    layers, stages = build(rank, request, placement)
    steps = request["warmup_steps"] + request["steps"]
    schedule = OptPipeSchedule(folder / "schedule.yaml", stages, loss_fn, watch=False, scale_grads=False,
                               keep_steps=steps)
    schedule.clock.offset_ns = rank.offset_ns
    if request["limit_bytes"] is not None and not rank.cuda:
        schedule.limit_bytes = request["limit_bytes"][rank.rank]
    tied = tie(stages, placement, rank.rank, request["model"])
    update = Update([stage.submod for stage in stages], layers.dtype, request["optimizer"], request["learning_rate"],
                    tied)
    microbatches, warmup = schedule.plan.microbatches, request["warmup_steps"]
    for step in range(steps):
        inputs, target = batch(request, microbatches * request["microbatch_size"], step, rank.device)
        first, last = stages[0].is_first, stages[-1].is_last
        rank.barrier()
        began = time.perf_counter_ns()
        loss = schedule.step(*([inputs] if first else []), target=target if last else None)
        rank.synchronize()
        ran = time.perf_counter_ns()
        # Else the optimizer's time would have in it that of waiting for the other rank of a matrix that two share.
        rank.barrier()
        between = time.perf_counter_ns()
        update.step(microbatches)
        rank.synchronize()
        if step >= warmup:
            schedule.add_optimizer_time(time.perf_counter_ns() - between)
        loss = next((x for x in rank.gather(None if loss is None else float(loss)) if x is not None), math.nan)
        if not math.isfinite(loss):
            raise RuntimeError(f"step {step + 1}: the loss is {loss}: training diverged")
        rank.control.progress(f"running: step {step + 1} of {steps}, {(ran - began) / 1e6:.3g} ms, loss {loss:.3f}")
    schedule.write_measured(folder / "measured.yaml", skip=warmup)
    return dict(modules=layers.factory.name)
