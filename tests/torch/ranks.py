"""Real processes over gloo for the tests of optpipe_torch. The ranks are forks of one process and run several
cases, as loading torch costs more than they do.

    ranks.py FOLDER: FOLDER/cases.json lists the cases; prints one JSON object: case, then result by rank.
"""

import copy
import datetime
import json
import logging
import os
import shutil
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch import nn

torch.set_num_threads(1)
WIDTH, LENGTH, CLASSES = 16, 4, 11


class Block(nn.Module):
    """Norm, two matrices, a residual: saves some tensors that leave and some that stay."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Stage(nn.Module):
    """The first stage looks tokens up, the last one gives logits."""

    def __init__(self, index, count):
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, WIDTH) if index == 0 else None
        self.blocks = nn.Sequential(*[Block(WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES) if index == count - 1 else None

    def forward(self, x):
        x = self.blocks(x if self.tokens is None else self.tokens(x))
        return x if self.head is None else self.head(x)


def loss_fn(logits, target):
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def modules(count):
    torch.manual_seed(1)
    return [Stage(i, count).double() for i in range(count)]


def batch(microbatches, seed=2):
    torch.manual_seed(seed)
    return torch.randint(CLASSES, (2, microbatches * 2, LENGTH)).unbind(0)


def apart(found, wanted):
    """Largest difference, relative to the largest entry; a gradient that is not there counts as 0."""
    if found is None:
        return 1.0
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))


def reference(stages, inputs, target):
    stages = copy.deepcopy(stages)
    x = inputs
    for stage in stages:
        x = stage(x)
    loss = loss_fn(x, target)
    loss.backward()
    return float(loss.detach()), [[p.grad for p in stage.parameters()] for stage in stages]


def build(case, rank):
    from torch.distributed.pipelining import PipelineStage

    placement = case["placement"]
    whole = modules(len(placement))
    own = {s: copy.deepcopy(whole[s]) for s, device in enumerate(placement) if device == rank}
    stages = [PipelineStage(own[s], s, len(placement), torch.device("cpu")) for s in own]
    return whole, stages


def run_step(step, whole, stages, inputs, target):
    """One step against the model without a pipeline."""
    for stage in stages:
        stage.submod.zero_grad()
    wanted, gradients = reference(whole, inputs, target)
    loss = step(*([inputs] if stages[0].is_first else []), target=target if stages[-1].is_last else None)
    worst = max(apart(p.grad, g) for stage in stages
                for p, g in zip(stage.submod.parameters(), gradients[stage.stage_index]))
    return max(worst, 0.0 if loss is None else abs(loss - wanted) / abs(wanted))


def train(case, rank, folder):
    """Steps of a schedule; a newer one replaces the file in between if there is one."""
    from optpipe_torch import OptPipeSchedule

    path = folder / f"{case['name']}.running" / "schedule.yaml"
    if rank == 0:
        path.parent.mkdir()
        shutil.copy(case["problem"], path.with_name("problem.yaml"))
        shutil.copy(case["schedule"], path)
    dist.barrier()
    whole, stages = build(case, rank)
    schedule = OptPipeSchedule(path, stages, loss_fn)
    errors, peaks = [], []
    for step in range(2):
        errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], step)))
        peaks.append(schedule.saved_peak)
    result = dict(errors=errors, peaks=peaks, predicted=schedule.predicted_peak,
                  bytes={str(s): b for s, b in schedule.stage_bytes().items()},
                  offloaded=schedule.ledger.offloaded, left=schedule.ledger.held)
    for newer in case.get("newer", []):
        if rank == 0:
            partial = path.with_suffix(".new")
            shutil.copy(newer, partial)
            os.replace(partial, path)
        dist.barrier()
        for step in range(2):
            errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], 7 + step)))
    result.update(swaps=schedule.swaps, rejected=schedule.rejected)
    schedule.write_measured(folder / f"{case['name']}.measured.yaml")
    return result


def plain(case, rank, folder):
    """The exported file on torch alone."""
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

    whole, stages = build(case, rank)
    schedule = _PipelineScheduleRuntime(stages, case["microbatches"], loss_fn=loss_fn)
    schedule._load_csv(case["csv"])

    def step(*args, target=None):
        losses = []
        schedule.step(*args, target=target, losses=losses)
        return float(torch.stack(losses).mean().detach()) if losses else None

    return dict(errors=[run_step(step, whole, stages, *batch(case["microbatches"]))])


def refused(case, rank, folder):
    """A construction that fails has to do so on every rank, in the same words."""
    import optpipe_torch
    from optpipe_torch import OptPipeSchedule

    text, problem = Path(case["schedule"]).read_text(), Path(case["problem"])
    own = folder / f"{case['name']}.{rank}"
    own.mkdir()
    shutil.copy(problem, own / "problem.yaml")
    version = torch.__version__
    if case["how"] == "torch" and rank == 1:
        torch.__version__ = "2.6.0"
    if case["how"] == "disagree" and rank == 1:
        schedule = yaml.safe_load(text)
        schedule["note"] = "another file"
        text = yaml.safe_dump(schedule)
    if case["how"] == "missing" and rank == 1:
        text = None
    if text is not None:
        (own / "schedule.yaml").write_text(text)
    model = dict(case, placement=case["model_placement"]) if "model_placement" in case else case
    _, stages = build(model, rank)
    try:
        OptPipeSchedule(own / "schedule.yaml", stages, loss_fn)
    except optpipe_torch.Disagreement as e:
        return dict(error=str(e).replace(str(own), "FOLDER"))
    finally:
        torch.__version__ = version
    return dict(error=None)


def run_rank(rank, ranks, cases, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store.{ranks}'}", rank=rank, world_size=ranks,
                            timeout=datetime.timedelta(seconds=100))
    table = {}
    for case in cases:
        try:
            table[case["name"]] = globals()[case["do"]](case, rank, folder)
        except Exception:
            table[case["name"]] = dict(failed=traceback.format_exc())
        (folder / f"results.{ranks}.{rank}.json").write_text(json.dumps(table))
        if "failed" in table[case["name"]]:
            # The other ranks may wait for this one: they see its connections close.
            return 1
    dist.barrier()
    dist.destroy_process_group()
    return 0


def main():
    folder = Path(sys.argv[1]).resolve()
    cases = json.loads((folder / "cases.json").read_text())
    # Loaded here once, for all forks.
    import optpipe_torch  # noqa: F401
    import torch.distributed.pipelining  # noqa: F401
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)
    logging.getLogger("optpipe_torch").setLevel(logging.CRITICAL)
    table = {}
    for ranks in sorted({case["ranks"] for case in cases}):
        group = [case for case in cases if case["ranks"] == ranks]
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = run_rank(rank, ranks, group, folder)
                finally:
                    os._exit(code)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        found = [folder / f"results.{ranks}.{rank}.json" for rank in range(ranks)]
        found = [json.loads(path.read_text()) if path.exists() else {} for path in found]
        table.update({case["name"]: [rank.get(case["name"]) for rank in found] for case in group})
    print(json.dumps(table))


if __name__ == "__main__":
    main()
