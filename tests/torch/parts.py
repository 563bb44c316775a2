"""Checks of single parts of the packages that take one rank or none; see ranks.py."""

import contextlib
import copy
import sys
import types
from pathlib import Path
from unittest import mock

import torch
import yaml
from torch import nn

# Behind the exported package, which brings no harness.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "tuner" / "python"))
KINDS = dict(F="forward", B="backward_input", W="backward_weight", O="offload", R="reload")


def write(folder, ops, placement, microbatches, length=10):
    """A schedule of ops (kind, stage, microbatch) that run one after another, a list a device."""
    stages, devices = len(placement), len(ops)
    start = 0
    rows = [[] for _ in ops]
    for device, row in enumerate(ops):
        for kind, stage, j, *at in row:
            start = at[0] if at else start + length
            rows[device].append(dict(op=kind, stage=stage, microbatch=j, start_ns=start))
    each, between = [length] * stages, [0] * (stages - 1)
    problem = dict(
        devices=devices, placement=placement, microbatches=microbatches, split_backward=True,
        time_ns=dict({name: each for name in KINDS.values()}, send_forward=between, send_backward=between),
        bytes=dict(activation=[8] * stages, weight_context=[4] * stages, offloadable=[8] * stages,
                   static=[0] * devices, capacity=[1 << 40] * devices),
        offload_channel=list(range(devices)), reload_channel=list(range(devices, 2 * devices)))
    schedule = dict(version=1, makespan_ns=start + length, placement=placement, microbatches=microbatches, ops=rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problem.yaml").write_text(yaml.safe_dump(problem))
    (folder / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    return folder / "schedule.yaml"


OUTER = torch.linspace(-1, 1, 8, dtype=torch.double)


class Layer(nn.Module):
    """Saves a tensor that microbatches share: an attribute, a global, or a table made when it is first needed."""

    def __init__(self, shares=None):
        super().__init__()
        self.linear, self.shares = nn.Linear(8, 8).double(), shares
        self.kept = dict(mask=torch.linspace(1, 2, 8, dtype=torch.double)) if shares == "attribute" else {}

    def forward(self, x):
        x = torch.tanh(self.linear(x))
        if self.shares == "table" and "mask" not in self.kept:
            self.kept["mask"] = torch.linspace(1, 2, 8, dtype=torch.double)
        if self.shares == "global":
            x = x * OUTER
        return x * self.kept["mask"] if self.kept else x


def loss_fn(output, target):
    return nn.functional.cross_entropy(output, target)


def trained(folder, layers, ops, microbatches=3, between=lambda: None, steps=2, **options):
    """Steps of two stages on one rank against the model without a pipeline; the schedule and the worst difference."""
    from optpipe_torch import OptPipeSchedule
    from torch.distributed.pipelining import PipelineStage

    whole = copy.deepcopy(layers)
    stages = [PipelineStage(layer, i, 2, torch.device("cpu")) for i, layer in enumerate(layers)]
    schedule = OptPipeSchedule(write(folder, [ops], [0, 0], microbatches), stages, loss_fn, **options)
    worst = 0.0
    for step in range(steps):
        if step:
            between()
        for layer in (*layers, *whole):
            layer.zero_grad()
        torch.manual_seed(step)
        x, target = torch.randn(2 * microbatches, 8, dtype=torch.double), torch.randint(8, (2 * microbatches,))
        loss = schedule.step(x, target=target)
        wanted = loss_fn(whole[1](whole[0](x)), target)
        wanted.backward()
        worst = max(worst, abs(float(loss - wanted.detach())))
        for found, there in zip(layers, whole):
            for a, b in zip(found.parameters(), there.parameters(), strict=True):
                worst = max(worst, float((a.grad - b.grad).abs().max() / b.grad.abs().max()))
    return schedule, worst


def order(stage, microbatches=3):
    """Forwards, with the first microbatch of a stage away from its end to the last forward's; then backwards."""
    ops = []
    for j in range(microbatches):
        ops += [("F", 0, j), ("F", 1, j)] + [("O", stage, j)] * (j == 0)
    ops.append(("R", stage, 0))
    for j in range(microbatches):
        ops += [(kind, s, j) for s in (1, 0) for kind in "BW"]
    return ops


def one_rank(case, rank, folder):
    """What is shared stays, what is tied is divided once, what was changed or is away is an error."""
    found, folder = {}, folder / "one_rank"

    def layers(*shares):
        torch.manual_seed(3)
        return [Layer(share) for share in shares]

    for name, pair, stage in (("target", (None, None), 1), ("attribute", ("attribute", None), 0),
                              ("global", (None, "global"), 1), ("table", ("table", None), 0)):
        schedule, found[name] = trained(folder / name, layers(*pair), order(stage))
        assert schedule.ledger.offloaded > 0 and schedule.ledger.held == 0, name
    tied = layers(None, None)
    tied[1].linear = tied[0].linear
    _, found["tied"] = trained(folder / "tied", tied, order(0))

    # A table that is made anew while microbatches are under way cannot be known.
    fresh = layers("table", None)
    with said() as error:
        trained(folder / "fresh", fresh, order(0), between=fresh[0].kept.clear)
    found["fresh"] = error[0]
    # Named, it is known.
    mask = torch.linspace(1, 2, 8, dtype=torch.double)
    named = layers("attribute", None)
    _, found["named"] = trained(folder / "named", named, order(0), shared=[mask],
                                between=lambda: named[0].kept.update(mask=mask))
    # Of many steps the last are kept, and the first is not skipped once it is gone.
    schedule, found["kept"] = trained(folder / "kept", layers(None, None), order(0), steps=5, keep_steps=3)
    lengths = [len(schedule.write_measured(folder / "measured.yaml", skip=skip)["steps_ns"]) for skip in (1, 3)]
    found["lengths"] = [len(schedule.records), *lengths]
    return found


@contextlib.contextmanager
def said():
    """The innermost error of a block, which has to raise one."""
    found = []
    try:
        yield found
    except Exception as e:
        while e.__cause__ is not None:
            e = e.__cause__
        found.append(f"{type(e).__name__}: {e}")
    assert found, "no error"


def alone(case, rank, folder):
    """Parts that take no rank."""
    found = {}
    for check in (changed, missing, placed, memory_errors, clock, buffers):
        found[check.__name__] = check(folder)
    return found


def changed(_):
    """A saved tensor that is changed in place is an error, as without the hooks."""
    from optpipe_torch.saved import Ledger

    ledger = Ledger("cpu")
    ledger.begin_step([])
    weight = torch.randn(4, 4, requires_grad=True)
    with ledger.saving((0, 1)):
        result = (torch.randn(4, 4) @ weight).exp()
        result.mul_(3)
    with said() as error:
        result.sum().backward()
    return error[0]


def missing(_):
    """A backward whose activation is still away is an error, never wrong numbers."""
    from optpipe_torch.saved import Ledger

    ledger = Ledger("cpu")
    ledger.begin_step([])
    weight = torch.randn(4, 4, requires_grad=True)
    with ledger.saving((1, 0)):
        result = torch.tanh(torch.randn(4, 4) @ weight).exp().sum()
    ledger.after_forward((1, 0))
    ledger.start_offload((1, 0))
    ledger.end_offload((1, 0))
    with said() as error:
        result.backward()
    return error[0]


def placed(folder):
    """Where a reload stands that begins while a forward runs: before it, that it need not wait for it; behind it
    where an offload makes the room in between."""
    from optpipe_torch.files import parse
    from optpipe_torch.program import programs

    def steps(offloaded, reloaded):
        row = [("F", 0, 0, 0), ("O", 0, 0, 10), ("F", 0, 1, 10), ("O", 0, 1, offloaded), ("F", 0, 2, 40),
               ("R", 0, 0, reloaded), ("B", 0, 0, 60), ("W", 0, 0, 70), ("R", 0, 1, 70), ("B", 0, 1, 80),
               ("W", 0, 1, 90), ("B", 0, 2, 100), ("W", 0, 2, 110)]
        path = write(folder / "placed", [row], [0], 3)
        rows = programs(parse(path.read_text(), path.with_name("problem.yaml").read_text()))
        return [f"{step.kind} {step.microbatch}" for step in rows[0]]

    beside, behind = steps(20, 45), steps(32, 45)
    for row in (beside, behind):
        assert row.index("end offload 0") < row.index("reload 0") < row.index("BW 0"), row
    assert beside.index("reload 0") < beside.index("F 2"), beside
    assert behind.index("F 2") < behind.index("end offload 1") < behind.index("reload 0"), behind
    return "as planned"


def memory_errors(_):
    """Which errors say that a device's memory is full."""
    from optpipe_harness.control import classify
    from optpipe_torch.saved import HostMemory, OutOfMemory

    full = "NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"
    kinds = [(OutOfMemory((0, 0), 9, 7), ("out_of_memory", 2)),
             (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
              ("out_of_memory", None)),
             (RuntimeError(full), ("out_of_memory", None)),
             (torch.OutOfMemoryError("CUDA out of memory."), ("out_of_memory", None)),
             (HostMemory(8, "CUDA error: out of memory"), ("error", None)),
             (RuntimeError("NCCL error: remote process exited"), ("peer", None)),
             (ValueError("no"), ("error", None))]
    for error, wanted in kinds:
        assert classify(error) == wanted, (error, classify(error))
    return len(kinds)


class Device:
    """A stand-in for a GPU: streams with queues, whose work the host does not wait for."""

    def __init__(self):
        self.now, self.waits, self.pinned = 0.0, 0, 0

    @contextlib.contextmanager
    def stood_in(self):
        device = self

        class Event:
            def __init__(self, enable_timing=False):
                self.at = None

            def record(self, stream):
                self.at = stream.end

            def query(self):
                return self.at <= device.now

            def synchronize(self):
                device.waits += 1
                device.now = max(device.now, self.at)

            def elapsed_time(self, other):
                return other.at - self.at

        class Stream:
            def __init__(self, _=None):
                self.end = 0.0

            def wait_event(self, event):
                self.end = max(self.end, event.at)

        current, make = Stream(), torch.empty

        def empty(*args, pin_memory=False, **more):
            device.pinned += pin_memory
            if device.pinned > 2:
                raise RuntimeError("CUDA error: out of memory")
            return make(*args, **more)

        fake = types.SimpleNamespace(Event=Event, Stream=Stream, current_stream=lambda _: current)
        with mock.patch.object(torch, "cuda", fake), mock.patch.object(torch, "empty", empty):
            yield current


def clock(_):
    """Steps are timed without waiting for the device but once, and their times put on one clock."""
    from optpipe_torch.measure import Clock

    device = Device()
    with device.stood_in() as stream:
        clock, steps = Clock("cuda"), []
        for _ in range(3):
            clock.begin()
            start = clock.mark()
            stream.end += 2.0  # milliseconds
            clock.add("F", (0, 0), start, clock.mark())
            steps.append(clock.finish())
            stream.end += 1.0
        assert device.waits == 1 and not clock.is_over(steps[1]), device.waits
        # The step in the middle may never be asked for.
        (first,), (last,) = clock.ops(steps[0]), clock.ops(steps[2])
        assert clock.is_over(steps[1])
        assert last[3] - first[3] == 6_000_000 and last[4] - last[3] == 2_000_000, (first, last)
    return "on one clock"


def buffers(_):
    """An offload takes no buffer that a reload still reads, unless the host has no more memory."""
    from optpipe_torch.saved import HostMemory, _Host

    device = Device()
    with device.stood_in():
        host = _Host(torch.device("cuda"))
        one, busy = host.take(8), torch.cuda.Event()
        busy.at = 5.0
        host.give(one, busy)
        two = host.take(8)
        assert two is not one and device.pinned == 2
        device.now = 6.0
        assert host.take(8) is one
        # The oldest first; and where no more can be pinned, the wait.
        device.now = 0.0
        late = torch.cuda.Event()
        late.at = 9.0
        host.give(two, late)
        host.give(one, busy)
        assert host.take(8) is two and host.streams[0].end == 9.0
        device.now = 6.0
        assert host.take(8) is one
        with said() as error:
            host.take(8)
        assert error[0].startswith(HostMemory.__name__), error
    return "in order"
