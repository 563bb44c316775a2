"""schedule.yaml and problem.yaml."""

from dataclasses import dataclass

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
COMPUTE = ("F", "B", "W")


class ScheduleError(ValueError):
    """A file that does not describe a schedule of these stages."""


@dataclass(frozen=True)
class Op:
    """One op with its times, ns."""

    kind: str
    stage: int
    microbatch: int
    start: int
    end: int


@dataclass(frozen=True)
class Plan:
    """A schedule with the problem that it solves."""

    problem: dict
    ops: list  # one list of Op a device
    makespan_ns: int
    model: object = None  # its name, where the schedule says it
    layer_split: object = None  # transformer blocks of each stage, where the schedule says it

    @property
    def placement(self):
        return self.problem["placement"]

    @property
    def microbatches(self):
        return self.problem["microbatches"]


def parse(schedule_text, problem_text):
    """A plan from the texts of both files; every op has to be there, once, under the device of its stage."""
    schedule, problem = (_mapping(text, name) for text, name in
                         ((schedule_text, "schedule.yaml"), (problem_text, "problem.yaml")))
    if schedule.get("version", 1) != 1:
        raise ScheduleError(f"schedule.yaml has format version {schedule['version']}; this package reads 1")
    try:
        placement, microbatches = problem["placement"], problem["microbatches"]
        times, lists = problem["time_ns"], schedule["ops"]
        keys = {"F": "forward", "B": "backward_input", "W": "backward_weight", "O": "offload", "R": "reload"}
        ops = [[Op(x["op"], x["stage"], x["microbatch"], x["start_ns"],
                   x["start_ns"] + times[keys[x["op"]]][x["stage"]]) for x in ops] for ops in lists]
    except (KeyError, IndexError, TypeError) as e:
        raise ScheduleError(f"schedule.yaml and problem.yaml do not fit together: {type(e).__name__} {e}") from e
    for key, wanted in (("placement", placement), ("microbatches", microbatches)):
        if schedule.get(key, wanted) != wanted:
            raise ScheduleError(f"schedule.yaml has {key} {schedule[key]}, problem.yaml {wanted}")
    if len(ops) != problem["devices"]:
        raise ScheduleError(f"schedule.yaml has {len(ops)} devices, problem.yaml {problem['devices']}")
    found = {}
    for device, row in enumerate(ops):
        for op in row:
            key = (op.kind, op.stage, op.microbatch)
            if key in found or placement[op.stage] != device or not 0 <= op.microbatch < microbatches:
                raise ScheduleError(f"schedule.yaml has {key} twice or out of place, on device {device}")
            found[key] = op
    for stage in range(len(placement)):
        for microbatch in range(microbatches):
            missing = [kind for kind in COMPUTE if (kind, stage, microbatch) not in found]
            if missing or (("O", stage, microbatch) in found) != (("R", stage, microbatch) in found):
                raise ScheduleError(f"schedule.yaml lacks {missing or 'O or R'} of stage {stage}, "
                                    f"microbatch {microbatch}")
    return Plan(problem, ops, schedule["makespan_ns"], schedule.get("model"), schedule.get("layer_split"))


def _mapping(text, name):
    try:
        value = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as e:
        raise ScheduleError(f"{name} is no YAML: {e}") from e
    if not isinstance(value, dict):
        raise ScheduleError(f"{name} holds no mapping")
    return value
