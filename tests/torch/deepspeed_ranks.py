"""Runs an exported PipeSchedule as DeepSpeed's engine would: sends and receives block until both sides are
there, a rank has buffers and keeps one gradient and one loss. Usage: deepspeed_ranks.py FILE"""

import runpy
import sys
import types


class PipeSchedule:
    """DeepSpeed's base class, as far as it matters here."""

    def __init__(self, micro_batches, stages, stage_id):
        self.micro_batches, self.stages, self.stage_id = micro_batches, stages, stage_id


def instruction(name):
    return lambda *buffer: (name, *buffer)


pipe = types.ModuleType("deepspeed.runtime.pipe.schedule")
pipe.PipeSchedule = PipeSchedule
for name in ("LoadMicroBatch", "ForwardPass", "BackwardPass", "SendActivation", "RecvActivation", "SendGrad",
             "RecvGrad", "ReduceTiedGrads", "ReduceGrads", "OptimizerStep"):
    setattr(pipe, name, instruction(name))
for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.pipe"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["deepspeed.runtime.pipe"].schedule = pipe
sys.modules["deepspeed.runtime.pipe.schedule"] = pipe

exported = runpy.run_path(sys.argv[1])
stages, microbatches = exported["STAGES"], exported["MICRO_BATCHES"]
schedules = [exported["OptPipeSchedule"](microbatches, stages, stage) for stage in range(stages)]
try:
    exported["OptPipeSchedule"](microbatches + 1, stages, 0)
except ValueError:
    pass
else:
    sys.exit("takes any number of microbatches")
lists = [[call for step in schedule.steps() for call in step] for schedule in schedules]
buffers = [[None] * schedule.num_pipe_buffers() for schedule in schedules]
loaded, gradient, loss = [0] * stages, [None] * stages, None
at, backwards = [0] * stages, [[] for _ in range(stages)]
moved = True
while moved:
    moved = False
    for s in range(stages):
        name, *where = lists[s][at[s]] if at[s] < len(lists[s]) else ("End",)
        if name in ("ReduceTiedGrads", "ReduceGrads", "OptimizerStep"):
            at[s] += 1
        elif name == "LoadMicroBatch":
            if s == 0:
                assert buffers[s][where[0]] is None, "a buffer in use is loaded"
                buffers[s][where[0]] = loaded[s]
            else:
                assert buffers[s][where[0]] == loaded[s], "the last stage's labels are another microbatch's"
            loaded[s] += 1
            at[s] += 1
        elif name == "ForwardPass":
            assert buffers[s][where[0]] is not None
            loss = buffers[s][where[0]] if s == stages - 1 else loss
            at[s] += 1
        elif name == "BackwardPass":
            j = buffers[s][where[0]]
            assert j == (loss if s == stages - 1 else gradient[s]), "another microbatch's loss or gradient"
            backwards[s].append(j)
            at[s] += 1
            if s == 0:
                buffers[s][where[0]] = None
        elif name in ("SendActivation", "SendGrad"):
            forward = name == "SendActivation"
            other = s + 1 if forward else s - 1
            peer = lists[other][at[other]]
            if peer[0] != ("RecvActivation" if forward else "RecvGrad"):
                continue
            j = buffers[s][where[0]]
            if forward:
                assert buffers[other][peer[1]] is None, "a buffer in use is received into"
                buffers[other][peer[1]] = j
            else:
                assert buffers[other][peer[1]] == j, "the gradient of another microbatch"
                gradient[other], buffers[s][where[0]] = j, None
            at[s] += 1
            at[other] += 1
        else:
            continue
        moved = True
stuck = [f"rank {s} at {lists[s][at[s]]}" for s in range(stages) if at[s] < len(lists[s])]
if stuck:
    sys.exit("ranks wait for each other: " + ", ".join(stuck))
assert all(sorted(order) == list(range(microbatches)) for order in backwards), backwards
print("ran")
