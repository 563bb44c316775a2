"""From a plan to what each rank does, in order.

Three changes make torch.distributed.pipelining train on right gradients:

- It stores losses in the order in which the last stage's forwards run and looks them up by microbatch. So
  microbatches are renamed: that order becomes 0, 1, 2, ...
- The first stage has no input gradient: its `I` does nothing and its `W` the whole backward. So W moves up
  to B there.
- B and W next to each other are one full backward.
"""

from dataclasses import dataclass

from .files import COMPUTE, ScheduleError

# Steps of memory, beside F, B (torch's I), W and BW (torch's B).
START_OFFLOAD, END_OFFLOAD, RELOAD = "start offload", "end offload", "reload"


@dataclass(frozen=True)
class Step:
    """One step of a rank's program."""

    kind: str
    stage: int
    microbatch: int

    @property
    def pair(self):
        return self.stage, self.microbatch


def programs(plan):
    """One list of steps a rank: compute steps, and where memory moves between them."""
    names = microbatch_names(plan)
    rows = [_join_first_stage(_sequence(plan, row, names)) for row in plan.ops]
    rows = [_fuse(row) for row in rows]
    for device, row in enumerate(rows):
        if not any(step.kind == "F" for step in row):
            raise ScheduleError(f"device {device} holds no stage: torch.distributed.pipelining needs one on every rank")
    _check_order(plan, rows)
    return rows


def microbatch_names(plan):
    """What torch calls each microbatch of the schedule."""
    last = len(plan.placement) - 1
    forwards = [op for row in plan.ops for op in row if op.kind == "F" and op.stage == last]
    order = sorted(forwards, key=lambda op: (op.start, op.microbatch))
    return {op.microbatch: name for name, op in enumerate(order)}


def _sequence(plan, row, names):
    compute = [op for op in row if op.kind in COMPUTE]
    rank = {"F": 0, "B": 1, "W": 2}
    # W of a whole backward goes with its B, before anything that starts where B ends.
    compute.sort(key=lambda op: (op.start, op.end, rank[op.kind],
                                 op.stage if op.kind == "F" else -op.stage, op.microbatch))
    place = {(op.kind, op.stage, op.microbatch): i for i, op in enumerate(compute)}

    def count(condition):
        return next((i for i, op in enumerate(compute) if not condition(op)), len(compute))

    leaving = [op for op in row if op.kind == "O"]
    memory = []  # (slot: steps before it, time, order at one time, step)
    reloads = []
    for op in row:
        name = names[op.microbatch]
        if op.kind == "R":
            # Behind what has ended, before the compute op that runs then: copies wait for the compute that stands
            # before them. If that is a forward during which an offload makes the room, behind that forward.
            slot = count(lambda x: x.end <= op.start)
            begun = count(lambda x: (x.start if x.kind == "F" else x.end) <= op.start)
            if begun > slot and any(compute[slot].start < x.end <= op.start for x in leaving):
                slot = begun
            slot = min(slot, place["B", op.stage, op.microbatch])
            reloads.append((op.start, slot))
            memory.append((slot, op.start, 2, Step(RELOAD, op.stage, name)))
    for op in row:
        name = names[op.microbatch]
        if op.kind == "O":
            after = place["F", op.stage, op.microbatch] + 1
            memory.append((max(after, count(lambda x: x.end <= op.start)), op.start, 1,
                           Step(START_OFFLOAD, op.stage, name)))
            # Before what begins once the copy is over, and before reloads that count on its memory.
            slot = count(lambda x: x.start < op.end)
            slot = min([slot] + [other for start, other in reloads if start >= op.end])
            memory.append((max(after, slot), op.end, 0, Step(END_OFFLOAD, op.stage, name)))
    memory.sort(key=lambda entry: entry[:3])
    steps, at = [], 0
    for slot in range(len(compute) + 1):
        while at < len(memory) and memory[at][0] == slot:
            steps.append(memory[at][3])
            at += 1
        if slot < len(compute):
            op = compute[slot]
            steps.append(Step(op.kind, op.stage, names[op.microbatch]))
    return steps


def _join_first_stage(steps):
    weights = [step for step in steps if step.kind == "W" and step.stage == 0]
    for weight in weights:
        steps.remove(weight)
        steps.insert(steps.index(Step("B", 0, weight.microbatch)) + 1, weight)
    return steps


def _fuse(steps):
    fused = []
    for step in steps:
        # Where only memory moves between B and W, that follows the whole backward.
        behind = next((i for i in range(len(fused) - 1, -1, -1) if fused[i].kind in ("F", "B", "W", "BW")), None)
        if step.kind == "W" and behind is not None and fused[behind] == Step("B", *step.pair):
            moved = fused[behind + 1:]
            if not any(other.kind == RELOAD for other in moved):
                fused[behind:] = [Step("BW", *step.pair), *moved]
                continue
        fused.append(step)
    return fused


def _check_order(plan, rows):
    """That no rank waits for a step that waits for it."""
    last = len(plan.placement) - 1
    done, at, moved = set(), [0] * len(rows), True

    def ready(step):
        stage, j = step.pair
        if step.kind == "F":
            return stage == 0 or ("F", stage - 1, j) in done
        if step.kind in ("B", "BW"):
            return ("F", stage, j) in done and (stage == last or ("B", stage + 1, j) in done)
        if step.kind == "W":
            return ("B", stage, j) in done
        return True

    while moved:
        moved = False
        for device, row in enumerate(rows):
            while at[device] < len(row) and ready(row[at[device]]):
                step = row[at[device]]
                done.add(("B" if step.kind == "BW" else step.kind, *step.pair))
                at[device] += 1
                moved = True
    for device, row in enumerate(rows):
        if at[device] < len(row):
            raise ScheduleError(f"the schedule waits for itself: device {device} at {row[at[device]]}")


def csv(rows):
    """The compute-only file of torch.distributed.pipelining."""
    letter = {"F": "F", "B": "I", "W": "W", "BW": "B"}
    return "".join(",".join(f"{s.stage}{letter[s.kind]}{s.microbatch}" for s in row if s.kind in letter) + "\n"
                   for row in rows)


def predicted_peaks(plan, rows):
    """The most bytes of activations that each rank's steps hold at once."""
    size = plan.problem["bytes"]
    peaks = []
    for row in rows:
        held = peak = 0
        for step in row:
            s = step.stage
            whole, late, away = size["activation"][s], size["weight_context"][s], size["offloadable"][s]
            held += {"F": whole, "B": late - whole, "W": -late, "BW": -whole,
                     END_OFFLOAD: -away, RELOAD: away, START_OFFLOAD: 0}[step.kind]
            peak = max(peak, held)
        peaks.append(peak)
    return peaks
