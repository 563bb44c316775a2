"""When ops ran, and the file measured.yaml."""

import statistics
import time

import torch
import torch.distributed as dist


class Timed:
    """The ops of one step with marks of when they ran."""

    def __init__(self, origin, before=None):
        self.origin, self.before = origin, before  # `before`: the step before, whose wall clock this one continues
        self.wall_ns = None  # the wall clock at the origin
        self.ops = []  # (kind, stage, microbatch, start, end)
        self.end = None


class Clock:
    """Times of the ops of steps: the host's, or on CUDA those of the streams, which nothing waits for here."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.step = None
        self.offset_ns = 0  # this machine's wall clock less the first rank's

    def begin(self):
        """A step begins."""
        before, self.step = self.step, Timed(self.mark(), self.step if self.cuda else None)
        if before is None and self.cuda:
            # Once only: later steps are placed by the time between their beginnings.
            self.step.origin.synchronize()
        if self.step.before is None:
            self.step.wall_ns = time.time_ns() - self.offset_ns

    def mark(self):
        """Now."""
        if not self.cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def add(self, kind, pair, start, end):
        self.step.ops.append((kind, *pair, start, end))

    def finish(self):
        """The step that ends; `ops` tells its times later."""
        # Copies have streams of their own, but compute has waited for all of them.
        self.step.end = self.mark()
        return self.step

    def is_over(self, step):
        """Whether the device has done all of it."""
        return not self.cuda or step.end.query()

    def _since(self, origin, mark):
        return round(origin.elapsed_time(mark) * 1e6) if self.cuda else mark - origin

    def _place(self, step):
        if step.before is not None:
            step.wall_ns = self._place(step.before) + self._since(step.before.origin, step.origin)
            step.before = None
        return step.wall_ns

    def ops(self, step):
        """The ops of a step with times in ns, as of the first rank's wall clock; waits for the device."""
        if self.cuda:
            step.end.synchronize()
        wall = self._place(step)
        at = lambda mark: wall + self._since(step.origin, mark)
        return [(kind, stage, j, at(start), at(end)) for kind, stage, j, start, end in step.ops]


def clock_offset(group, now=time.time_ns, rounds=20):
    """This rank's wall clock less the first rank's, ns, over a group whose ranks exchange CPU tensors.

    Of several exchanges with the first rank the quickest counts, whose middle is taken for the moment when this rank
    looked at its clock: half of that exchange's time is the most the estimate can be off. Every rank calls it.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    found = torch.zeros(ranks, dtype=torch.int64)
    message = torch.zeros(1, dtype=torch.int64)
    if rank != 0:
        for _ in range(rounds):
            dist.recv(message, dist.get_global_rank(group, 0), group=group)
            dist.send(torch.tensor([now()]), dist.get_global_rank(group, 0), group=group)
    else:
        for other in range(1, ranks):
            exchanges = []
            for _ in range(rounds):
                start = now()
                dist.send(message, dist.get_global_rank(group, other), group=group)
                dist.recv(message, dist.get_global_rank(group, other), group=group)
                end = now()
                exchanges.append((end - start, message.item() - (start + end) // 2))
            found[other] = min(exchanges)[1]
    dist.broadcast(found, dist.get_global_rank(group, 0), group=group)
    return int(found[rank])


def sample(values):
    """The statistics that measured.yaml has of times, ns."""
    values = sorted(values)
    if not values:
        return dict(median_ns=0, mad_ns=0, p05_ns=0, p95_ns=0, count=0, stable=False)
    median = round(statistics.median(values))
    spread = round(statistics.median(abs(v - median) for v in values))
    at = lambda share: values[min(len(values) - 1, round(share * (len(values) - 1)))]
    return dict(median_ns=median, mad_ns=spread, p05_ns=at(0.05), p95_ns=at(0.95), count=len(values),
                stable=spread <= 0.05 * median)


def measured(backend, placement, steps, losses, optimizer_ns):
    """measured.yaml: `steps` has for each step a list over ranks of (ops, loss or None, peak bytes, offloaded bytes).

    Ranks on several machines are as comparable as their clocks, see `Clock.offset_ns`.
    """
    whole = []
    for ranks in steps:
        ops = [op for ops, *_ in ranks for op in ops]
        first = min(op[3] for op in ops)
        whole.append((max(op[4] for op in ops) - first, first, ops))
    durations = {}
    for _, _, ops in whole:
        for kind, stage, j, start, end in ops:
            durations.setdefault((kind, stage, j), []).append(end - start)
    _, first, ops = sorted(whole, key=lambda step: step[0])[(len(whole) - 1) // 2]
    rows = sorted((placement[stage], start - first, kind, stage, j, end - first) for kind, stage, j, start, end in ops)
    return dict(
        version=1, backend=backend, step=sample([length for length, *_ in whole]), optimizer=sample(optimizer_ns),
        steps_ns=[length for length, *_ in whole], losses=losses,
        peak_bytes=[max(ranks[rank][2] for ranks in steps) for rank in range(len(steps[0]))],
        offloaded_bytes=max(sum(offloaded for *_, offloaded in ranks) for ranks in steps),
        ops=[dict(device=device, op=kind, stage=stage, microbatch=j, start_ns=start, end_ns=end,
                  median_ns=round(statistics.median(durations[kind, stage, j])))
             for device, start, kind, stage, j, end in rows])
