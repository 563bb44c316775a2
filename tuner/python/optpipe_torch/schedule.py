"""The schedule object that a training loop calls."""

import collections
import copy
import hashlib
import inspect
import logging
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch.utils._pytree import tree_leaves

from . import program
from .agree import Disagreement, agree
from .files import ScheduleError, parse
from .measure import Clock, measured
from .saved import Ledger
from .swap import Newer

logger = logging.getLogger("optpipe_torch")
# The private interface below was read in these and between.
OLDEST, NEWEST = (2, 7), (2, 15)


def check_version():
    """Whether this torch is one of those that the package knows."""
    if not OLDEST <= tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) <= NEWEST:
        raise ScheduleError(f"torch {torch.__version__}: this package knows {OLDEST[0]}.{OLDEST[1]} to "
                            f"{NEWEST[0]}.{NEWEST[1]}")


class OptPipeSchedule:
    """Runs schedule.yaml on torch.distributed.pipelining.

    `stages` are this rank's `PipelineStage`s, ascending; `loss_fn(output, target)` gives a mean over a
    microbatch. The problem that the schedule solves lies beside it as problem.yaml or is named by `problem`.
    With `watch`, a newer schedule file is taken up between two steps by all ranks together.

    `shared`: tensors beside parameters and buffers that several microbatches use and that are made after the
    first forward began. `model` and `layer_split`, where given, have to be the schedule's, where it says them.
    `group` is the pipeline's, by default that of the stages. `max_outstanding_sends` is torch's. Of the last
    `keep_steps` steps times are kept.

    Every rank calls the constructor and every method in the same order.
    """

    def __init__(self, schedule, stages, loss_fn, *, problem=None, watch=True, scale_grads=True, shared=(),
                 model=None, layer_split=None, group=None, max_outstanding_sends=None, keep_steps=100):
        self.path = Path(schedule)
        self.problem_path = Path(problem) if problem is not None else self.path.with_name("problem.yaml")
        self.stages = sorted(stages, key=lambda stage: stage.stage_index)
        own = next((stage.group for stage in self.stages if stage.group is not None), None)
        self.group = group if group is not None else own if own is not None else dist.group.WORLD
        self.control = _control_group(self.group)
        self.rank = dist.get_rank(self.group)
        self.scale_grads, self.expected = scale_grads, dict(model=model, layer_split=layer_split)
        # What every rank has to be given alike.
        self.settings = dict(watch=watch, scale_grads=scale_grads, max_outstanding_sends=max_outstanding_sends)
        newer = Newer(self.path, self.problem_path, self.rank == 0, self._prepare)
        self.plan, self.rows = agree(self.control, "OptPipeSchedule", lambda: self._read(newer.texts()))
        self.newer = newer if watch else None
        self.device = torch.device(self.stages[0].device)
        self.rejected, self.swaps, self.steps = None, 0, 0
        self.records, self.optimizer_ns = (collections.deque(maxlen=keep_steps) for _ in range(2))
        self.pending = []  # steps whose times are not known yet
        self.ledger, self.clock = Ledger(self.device, shared), Clock(self.device)
        self.current = None
        self.runtime = self._runtime(loss_fn)
        vars(self.runtime).update(self._lowered(self.rows))
        # Older ones always return outputs.
        found = inspect.signature(self.runtime.step).parameters
        self.options = dict(return_outputs=False) if "return_outputs" in found else {}
        for stage in self.stages:
            self._wrap(stage)

    # Files

    def _read(self, texts):
        """A checked plan with all ranks' programs, and what all ranks have to have the same."""
        check_version()
        if not self.stages:
            raise ScheduleError("no stages: every rank has at least one")
        plan = parse(*texts)
        ranks, stages = dist.get_world_size(self.group), self.stages[0].num_stages
        if len(plan.ops) != ranks:
            raise ScheduleError(f"the schedule has {len(plan.ops)} devices, this run {ranks} ranks")
        if len(plan.placement) != stages:
            raise ScheduleError(f"the schedule has {len(plan.placement)} stages, the model {stages}")
        for key, wanted in self.expected.items():
            found = getattr(plan, key)
            if wanted is not None and found is not None and found != wanted:
                raise ScheduleError(f"the schedule is for another model: {key} {found}, this run has {wanted}")
        own = [stage for stage, device in enumerate(plan.placement) if device == self.rank]
        found = [stage.stage_index for stage in self.stages]
        if own != found:
            raise ScheduleError(f"the schedule puts stages {own} on rank {self.rank}, which has {found}")
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        return (plan, program.programs(plan)), {
            "torch": torch.__version__, "schedule": digest, "stages": stages, **self.settings}

    def _prepare(self, texts):
        """A newer schedule, ready to run; beside the steps, in a thread."""
        (plan, rows), fingerprint = self._read(texts)
        for key in ("placement", "microbatches"):
            if getattr(plan, key) != getattr(self.plan, key):
                raise ScheduleError(f"{key} changed from {getattr(self.plan, key)} to {getattr(plan, key)}: "
                                    "start anew for that")
        return (plan, rows, self._lowered(rows)), fingerprint

    def _between_steps(self, batch):
        """All ranks together: a batch that does not fit one of them is an error on each; a newer file that fits
        is run from now on, one that does not is left."""
        flags = [int(self._unfit(batch) is not None), *(self.newer.flags() if self.newer else (0, 0))]
        # Between hosts only: devices go on with what they have been given.
        flags = torch.tensor(flags)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        unfit, offered, waiting = flags.tolist()
        if unfit:
            agree(self.control, "step", lambda: (None, self._refuse(batch)))
        if self.newer is None:
            return
        try:
            found = self.newer.after(self.control, offered, waiting)
        except Disagreement as e:
            self.rejected = str(e)
            if self.rank == 0:
                logger.warning("kept the schedule that runs: %s", e)
            return
        if found is not None:
            self.plan, self.rows, lowered = found
            vars(self.runtime).update(lowered)
            self.swaps += 1
            self.steps = 0
            for kept in (self.records, self.optimizer_ns, self.pending):
                kept.clear()

    def _unfit(self, batch):
        sizes = (tensor.shape[0] for tensor in batch if tensor.dim() > 0)
        return next((size for size in sizes if size % self.plan.microbatches), None)

    def _refuse(self, batch):
        # torch would give the last microbatches fewer samples and weigh them alike.
        size = self._unfit(batch)
        if size is not None:
            raise ScheduleError(f"a batch of {size} does not divide by {self.plan.microbatches} microbatches")

    # torch.distributed.pipelining

    def _runtime(self, loss_fn):
        from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

        outer = self

        class Runtime(_PipelineScheduleRuntime):
            """The forward of a stage ends with the loss; what follows it in the program is done then."""

            def _maybe_compute_loss(self, stage, *args, **kwargs):
                if outer.current is None:
                    return super()._maybe_compute_loss(stage, *args, **kwargs)
                pair, start = outer.current
                with outer.ledger.saving(pair):
                    super()._maybe_compute_loss(stage, *args, **kwargs)
                outer.current = None
                outer.ledger.after_forward(pair)
                outer._done("F", pair, start)

        more = {}
        if self.settings["max_outstanding_sends"] is not None:
            more["max_outstanding_sends"] = self.settings["max_outstanding_sends"]
        # torch divides by stages, and would a parameter of two stages twice: see `_scale`.
        try:
            return Runtime(self.stages, self.plan.microbatches, loss_fn=loss_fn, scale_grads=False, **more)
        except TypeError as e:
            if not more:
                raise
            raise ScheduleError(f"torch {torch.__version__} has no max_outstanding_sends") from e

    def _lowered(self, rows):
        """The program as torch's runtime holds it, made beside the one that runs."""
        runtime = copy.copy(self.runtime)
        runtime.pipeline_order, runtime.pipeline_order_with_comms = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "schedule.csv")
            Path(path).write_text(program.csv(rows), "utf-8")
            runtime._load_csv(path)
        return {name: vars(runtime)[name] for name in ("pipeline_order", "pipeline_order_with_comms",
                                                       "stage_index_to_group_rank") if name in vars(runtime)}

    def _scale(self):
        """Sums of gradients over the microbatches become means, each parameter's once."""
        if self.scale_grads:
            parameters = {id(p): p for stage in self.stages for p in stage.submod.parameters()}
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            if gradients:
                torch._foreach_div_(gradients, self.plan.microbatches)

    def _wrap(self, stage):
        forward, compute = stage.forward_one_chunk, stage.forward_maybe_with_nosync
        backward, weight = stage.backward_one_chunk, stage.backward_weight_one_chunk

        def forward_one_chunk(microbatch, *args, **kwargs):
            self.ledger.before_forward()
            self.current = (stage.stage_index, microbatch), self.clock.mark()
            return forward(microbatch, *args, **kwargs)

        def forward_maybe_with_nosync(*args, **kwargs):
            if self.current is None:  # torch looks at shapes
                return compute(*args, **kwargs)
            with self.ledger.saving(self.current[0]):
                output = compute(*args, **kwargs)
            tensors = [[t for t in tree_leaves(x) if isinstance(t, torch.Tensor)] for x in ((args, kwargs), output)]
            self.ledger.keep(*tensors)
            return output

        def backward_one_chunk(microbatch, *args, **kwargs):
            pair = stage.stage_index, microbatch
            self.ledger.await_reload(pair)
            start = self.clock.mark()
            result = backward(microbatch, *args, **kwargs)
            whole = kwargs.get("full_backward", True)
            if whole:
                self.ledger.after_backward(pair)
            else:
                self.ledger.after_backward_input(pair)
            self._done("BW" if whole else "B", pair, start)
            return result

        def backward_weight_one_chunk(microbatch, *args, **kwargs):
            pair, start = (stage.stage_index, microbatch), self.clock.mark()
            result = weight(microbatch, *args, **kwargs)
            self.ledger.after_backward(pair)
            self._done("W", pair, start)
            return result

        stage.forward_one_chunk, stage.forward_maybe_with_nosync = forward_one_chunk, forward_maybe_with_nosync
        stage.backward_one_chunk, stage.backward_weight_one_chunk = backward_one_chunk, backward_weight_one_chunk

    def _done(self, kind, pair, start):
        """A compute step is over: it has to be the program's, whose moves of memory follow."""
        end = self.clock.mark()
        self.clock.add(kind, pair, start, end)
        row = self.rows[self.rank]
        step = row[self.at]
        if (step.kind, step.pair) != (kind, pair):
            raise RuntimeError(f"torch ran {kind} of stage {pair[0]}, microbatch {pair[1]}, the schedule has {step}")
        self.at += 1
        self._move_memory()

    def _move_memory(self):
        row = self.rows[self.rank]
        while self.at < len(row) and row[self.at].kind in (program.START_OFFLOAD, program.END_OFFLOAD, program.RELOAD):
            step = row[self.at]
            if step.kind == program.END_OFFLOAD:
                self.ledger.end_offload(step.pair)
            else:
                out = step.kind == program.START_OFFLOAD
                start = None if self.clock.cuda else self.clock.mark()
                span = (self.ledger.start_offload if out else self.ledger.reload)(step.pair)
                self.clock.add("O" if out else "R", step.pair, *(span or (start, self.clock.mark())))
            self.at += 1

    # What a training loop calls

    def step(self, *args, target=None, **kwargs):
        """Forward and backward of one batch; the mean loss on the last stage's rank, as a tensor, else None.

        The batch divides by the number of microbatches, else every rank raises `Disagreement`.
        """
        batch = [leaf for leaf in tree_leaves((args, kwargs, target)) if isinstance(leaf, torch.Tensor)]
        self._between_steps(batch)
        if self.clock.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.ledger.begin_step([stage.submod for stage in self.stages], batch)
        self.at, self.current = 0, None
        self.clock.begin()
        self._move_memory()
        losses = [] if any(stage.is_last for stage in self.stages) else None
        self.runtime.step(*args, target=target, losses=losses, **self.options, **kwargs)
        self._scale()
        loss = torch.stack(losses).detach().mean() if losses else None
        self.steps += 1
        self.pending.append((self.clock.finish(), loss, self._peak(), self.ledger.offloaded))
        while self.pending and self.clock.is_over(self.pending[0][0]):
            self._settle()
        return loss

    def _settle(self):
        """Notes the times of the oldest step that lacks them; waits for it."""
        timed, loss, peak, offloaded = self.pending.pop(0)
        ops = self._as_scheduled(self.clock.ops(timed))
        self.records.append((ops, None if loss is None else float(loss), peak, offloaded))

    @property
    def limit_bytes(self):
        """The most that this rank may hold, static bytes of the problem included; None for no limit. Where there is
        no device memory to run out of, going beyond it raises `OutOfMemory`."""
        return None if self.ledger.limit is None else self.ledger.limit + self._static

    @limit_bytes.setter
    def limit_bytes(self, limit):
        self.ledger.limit = None if limit is None else limit - self._static

    @property
    def _static(self):
        return self.plan.problem["bytes"]["static"][self.rank]

    @property
    def saved_peak(self):
        """The most bytes that autograd held at once in the last step, on this rank."""
        return self.ledger.peak

    @property
    def predicted_peak(self):
        """The same, as the schedule's problem has it."""
        return program.predicted_peaks(self.plan, self.rows)[self.rank]

    def stage_bytes(self):
        """Of each stage here, as the problem has them: activation, weight_context, offloadable of a microbatch."""
        found = {}
        for stage in self.stages:
            s = stage.stage_index
            most = lambda table: max((n for (stage, _), n in table.items() if stage == s), default=0)
            activation = most(self.ledger.activation)
            # Where every backward was whole nothing tells how much W needs: all, which is on the safe side.
            context = most(self.ledger.weight_context) or activation
            found[s] = dict(activation=activation, weight_context=context, offloadable=most(self.ledger.offloadable))
        return found

    def _peak(self):
        """CUDA: of the allocator. Elsewhere: static as the problem has it, and what autograd held."""
        if self.clock.cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return self._static + self.ledger.peak

    def _as_scheduled(self, ops):
        """A whole backward as B and W, in the proportion that the problem has; microbatches as the schedule has them."""
        times, found = self.plan.problem["time_ns"], []
        original = {name: j for j, name in program.microbatch_names(self.plan).items()}
        for kind, stage, name, start, end in ops:
            j = original[name]
            if kind != "BW":
                found.append((kind, stage, j, start, end))
                continue
            b, w = times["backward_input"][stage], times["backward_weight"][stage]
            middle = start + round((end - start) * (b / (b + w) if b + w else 0.5))
            found += [("B", stage, j, start, middle), ("W", stage, j, middle, end)]
        return found

    def add_optimizer_time(self, ns):
        """What the optimizer took after a step, for measured.yaml."""
        self.optimizer_ns.append(int(ns))

    def write_measured(self, path, skip=1):
        """Writes measured.yaml on the first rank, of the steps since the schedule was taken up but the first
        `skip`. Every rank calls it. Returns what was written, None on other ranks."""
        while self.pending:
            self._settle()
        # The device rests: its clock is put on the wall clock anew, from which it would drift over hours.
        self.clock.step = None
        # Of the first steps those that are no longer kept need not be skipped.
        records, skip = list(self.records), max(0, skip - (self.steps - len(self.records)))
        found = [None] * dist.get_world_size(self.control)
        dist.all_gather_object(found, (records, list(self.optimizer_ns)), group=self.control)
        if not found[0][0]:
            raise ScheduleError("no step has run since the schedule was taken up")
        if self.rank != 0:
            return None
        steps = list(zip(*(records[skip:] or records[-1:] for records, _ in found)))
        losses = [loss for ranks in zip(*(records for records, _ in found)) for _, loss, *_ in ranks
                  if loss is not None]
        # All ranks wait for the one whose optimizer takes longest.
        optimizer_ns = [max(times) for times in zip(*(times for _, times in found if times))]
        result = measured(self.device.type, self.plan.placement, steps, losses, optimizer_ns)
        written = Path(f"{path}.partial")
        written.write_text(yaml.safe_dump(result, sort_keys=False, default_flow_style=None), "utf-8")
        os.replace(written, path)
        return result


def _control_group(group):
    """A group of the same ranks that talk from host to host."""
    if "cpu:gloo" in str(dist.get_backend_config(group)):
        return group
    return dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)
