"""Reads a schedule of OptPipe and prints what each device does: an example for readers of one's own.

    optpipe export schedule.yaml --to json -o schedule.json
    python read_schedule.py schedule.json
"""

import json
import sys

NAMES = {"F": "forward", "B": "gradient of the input", "W": "gradient of the weights",
         "O": "offload to the host", "R": "reload from the host"}


def read(path):
    """The schedule, or a ValueError that says what is wrong with it."""
    with open(path, encoding="utf-8") as f:
        schedule = json.load(f) if path.endswith(".json") else __import__("yaml").safe_load(f)
    if schedule["version"] != 1:
        raise ValueError(f"format version {schedule['version']}: this reader knows 1")
    placement, microbatches = schedule["placement"], schedule["microbatches"]
    seen = set()
    for device, ops in enumerate(schedule["ops"]):
        for op in ops:
            key = op["op"], op["stage"], op["microbatch"]
            if key in seen or placement[op["stage"]] != device or not 0 <= op["microbatch"] < microbatches:
                raise ValueError(f"{key} is there twice, or not on its device")
            seen.add(key)
    for stage in range(len(placement)):
        for microbatch in range(microbatches):
            for kind in "FBW":
                if (kind, stage, microbatch) not in seen:
                    raise ValueError(f"{(kind, stage, microbatch)} is missing")
            if (("O", stage, microbatch) in seen) != (("R", stage, microbatch) in seen):
                raise ValueError(f"stage {stage}, microbatch {microbatch}: an offload without its reload")
    return schedule


def offloads(schedule):
    """For each offloaded (stage, microbatch) how long it is away: from the start of O to the start of R, ns."""
    starts = {(op["op"], op["stage"], op["microbatch"]): op["start_ns"] for ops in schedule["ops"] for op in ops}
    return {(stage, j): starts["R", stage, j] - start for (kind, stage, j), start in starts.items() if kind == "O"}


def main():
    schedule = read(sys.argv[1])
    print(f"{len(schedule['ops'])} devices, {len(schedule['placement'])} stages, "
          f"{schedule['microbatches']} microbatches, {schedule['makespan_ns']} ns a step")
    for device, ops in enumerate(schedule["ops"]):
        print(f"device {device}:")
        for op in ops:
            print(f"  {op['start_ns']:>12} ns  {NAMES[op['op']]}, stage {op['stage']}, microbatch {op['microbatch']}")
    print(f"{len(offloads(schedule))} activations leave the device")


if __name__ == "__main__":
    main()
