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
import subprocess
import sys
import time
import traceback
from pathlib import Path

import parts
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
    loss = None if loss is None else float(loss)
    worst = max(apart(p.grad, g) for stage in stages
                for p, g in zip(stage.submod.parameters(), gradients[stage.stage_index]))
    return max(worst, 0.0 if loss is None else abs(loss - wanted) / abs(wanted))


def most_sends(schedule):
    """The most sends that are under way at once on this rank."""
    held = most = 0
    for action in schedule.runtime.pipeline_order_with_comms[schedule.rank]:
        name = action.computation_type.name
        held += name.startswith("SEND_") - name.startswith("WAIT_SEND_")
        most = max(most, held)
    return most


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
    schedule = OptPipeSchedule(path, stages, loss_fn, **case.get("options", {}))
    errors, peaks = [], []
    for step in range(2):
        errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], step)))
        peaks.append(schedule.saved_peak)
    result = dict(errors=errors, peaks=peaks, sends=most_sends(schedule), predicted=schedule.predicted_peak,
                  bytes={str(s): b for s, b in schedule.stage_bytes().items()},
                  offloaded=schedule.ledger.offloaded, left=schedule.ledger.held)
    for newer in case.get("newer", []):
        if rank == 0:
            partial = path.with_suffix(".new")
            shutil.copy(newer, partial)
            os.replace(partial, path)
        dist.barrier()
        # Steps go on until the file has been read, beside them; all ranks see it at the same one.
        before, steps = (schedule.swaps, schedule.rejected), 0
        while (schedule.swaps, schedule.rejected) == before and steps < 500:
            errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], 7 + steps)))
            steps += 1
        errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], 6)))
        result.setdefault("took", []).append(steps)
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

    how, schedule = case["how"], yaml.safe_load(Path(case["schedule"]).read_text())
    own = folder / f"{case['name']}.{rank}"
    own.mkdir()
    shutil.copy(case["problem"], own / "problem.yaml")
    version, options = torch.__version__, {}
    one = rank == 1  # what is wrong is wrong on one rank only
    if how == "torch" and one:
        torch.__version__ = "2.6.0"
    if how == "disagree" and one:
        schedule["note"] = "another file"
    if how == "doubled" and one:
        schedule["ops"][1].append(dict(schedule["ops"][1][0]))
    if how == "lost" and one:
        schedule["ops"][1].pop()
    if how == "reload" and one:
        schedule["ops"][1].append(dict(schedule["ops"][1][-1], op="O"))
    if how == "split":
        schedule.update(model="llama", layer_split=[2, 1])
        options = dict(model="llama", layer_split=[1, 2] if one else [2, 1])
    if how == "watch":
        options = dict(watch=not one)
    if how == "scale":
        options = dict(scale_grads=not one)
    if how != "missing" or not one:
        (own / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    model = dict(case, placement=case["model_placement"]) if "model_placement" in case else case
    whole, stages = build(model, rank)
    if how == "empty" and one:
        stages = []
    error = None
    try:
        running = OptPipeSchedule(own / "schedule.yaml", stages, loss_fn, **options)
        if how == "batch":
            inputs, target = batch(case["microbatches"])
            running.step(*([inputs[1:]] if rank == 0 else []), target=target if one else None)
    except optpipe_torch.Disagreement as e:
        error = str(e)
        for other in range(case["ranks"]):
            error = error.replace(str(folder / f"{case['name']}.{other}"), "FOLDER")
    finally:
        torch.__version__ = version
    # An error in a batch breaks nothing.
    after = [run_step(running.step, whole, stages, *batch(case["microbatches"]))] if how == "batch" else []
    return dict(error=error, errors=after)


def follow(case, rank, folder):
    """A run with a stage slower than planned, and `optpipe solve --watch --measured` beside it: the schedule for what
    is measured is taken up."""
    from optpipe_torch import OptPipeSchedule

    at = Path(case["folder"])
    whole, stages = build(case, rank)
    for stage in stages:
        if stage.stage_index == 1:
            stage.submod.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    schedule = OptPipeSchedule(at / "schedule.yaml", stages, loss_fn)
    words = ["solve", "problem.yaml", "-o", "schedule.yaml", "--problem-out", "problem.yaml", "--measured",
             "measured.yaml", "--watch=90s", "--time-limit", "1s", "--drift", "50%", "--quiet"]
    solver = None if rank else subprocess.Popen([case["optpipe"], *words], cwd=at, stdout=subprocess.DEVNULL,
                                                env=dict(os.environ, OPTPIPE_CACHE_DIR=case["no_cache"]))
    errors, began, done = [], time.monotonic(), False
    while not done:
        errors.append(run_step(schedule.step, whole, stages, *batch(case["microbatches"], len(errors))))
        if schedule.steps > 1 and schedule.steps % 4 == 0:
            schedule.write_measured(at / "measured.yaml")
        # The plan of the first rank's clock is the others', too: all leave at one step.
        over = torch.tensor([int(time.monotonic() - began > 80)])
        dist.all_reduce(over, op=dist.ReduceOp.MAX)
        done = bool(over) or schedule.plan.problem["time_ns"]["forward"][1] > 5_000_000
    if solver is not None:
        solver.terminate()
        solver.wait()
    return dict(errors=errors, swaps=schedule.swaps, rejected=schedule.rejected, times=schedule.plan.problem["time_ns"])


def harness(case, rank, folder):
    """The tuner's own stages on a schedule, against the same layers as one stage. A clock that is off is put right."""
    from optpipe_harness.layers import Stage as Layered, batch as tokens, loss_fn as mean
    from optpipe_harness.run import build as layered
    from optpipe_harness.serve import Rank
    from optpipe_harness.weights import tie
    from optpipe_torch import OptPipeSchedule
    from optpipe_torch.measure import clock_offset

    request = case["request"]
    ahead = 5_000_000_000 * rank
    offset = clock_offset(dist.group.WORLD, now=lambda: time.time_ns() + ahead)
    here = Rank(None, rank, case["ranks"], torch.device("cpu"), dist.group.WORLD, [], 0)
    layers, stages = layered(here, request, case["placement"])
    schedule = OptPipeSchedule(case["schedule"], stages, mean, problem=case["problem"], watch=False, scale_grads=False)
    tied = tie(stages, case["placement"], rank, request["model"])
    inputs, target = tokens(request, case["microbatches"] * request["microbatch_size"], 0, "cpu")
    loss = schedule.step(*([inputs] if stages[0].is_first else []), target=target if stages[-1].is_last else None)
    loss = None if loss is None else float(loss)
    if tied is not None:
        tied.add_up()
    whole = Layered(layers, range(layers.count))
    wanted = mean(whole(inputs), target)
    wanted.backward()
    errors = [0.0 if loss is None else abs(loss - float(wanted.detach())) / float(wanted.detach())]
    for stage in stages:
        for number, layer in zip(stage.submod.numbers, stage.submod.layers):
            found = [parameter.sums / case["microbatches"] for parameter in layer.parameters()]
            there = [parameter.grad for parameter in whole.layers[number].parameters()]
            errors.append(max(apart(a, b) for a, b in zip(found, there, strict=True)))
    return dict(errors=errors, offset_error_ns=abs(offset - ahead), offloaded=schedule.ledger.offloaded)


def transformers(case, rank, folder):
    """The layers in plain torch against those of transformers with the same weights, by family."""
    from optpipe_harness.layers import Layers

    model = case["model"]
    common = dict(hidden_size=model["hidden"], num_hidden_layers=model["layers"], num_attention_heads=model["heads"],
                  num_key_value_heads=model["kv_heads"], head_dim=model["head_dim"], vocab_size=model["vocabulary"],
                  intermediate_size=model["intermediate"], max_position_embeddings=model["max_positions"],
                  rms_norm_eps=model["norm_epsilon"], rope_theta=model["rope_theta"], tie_word_embeddings=False)
    stretched = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=16)
    scaling = dict(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=16)
    gpt2 = dict(n_embd=model["hidden"], n_layer=model["layers"], n_head=model["heads"], n_inner=model["intermediate"],
                vocab_size=model["vocabulary"], n_positions=model["max_positions"], bos_token_id=0, eos_token_id=0)
    families = dict(
        llama=(dict(common, model_type="llama"), {}),
        llama3=(dict(common, model_type="llama", rope_scaling=stretched), dict(rope_scaling=scaling)),
        mistral=(dict(common, model_type="mistral", sliding_window=5), dict(sliding_window=5)),
        qwen2=(dict(common, model_type="qwen2"), dict(qkv_bias=True)),
        qwen3=(dict(common, model_type="qwen3"), dict(qk_norm=True)),
        gpt2=(dict(gpt2, model_type="gpt2"), dict(
            norm="layer", mlp="dense_gelu", rope_theta=None, qkv_bias=True, output_bias=True, mlp_bias=True,
            kv_heads=model["heads"], head_dim=model["hidden"] // model["heads"])))
    found = {}
    for name, (config, more) in families.items():
        request = dict(model=dict(model, **more), config=config, precision="f32", seed=1, sequence_length=32)
        own, theirs = (Layers(dict(request, modules=modules), torch.device("cpu"))
                       for modules in ("plain", "transformers"))
        one, other = own.make(1), theirs.make(1)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
            state = one.state_dict()
            if name == "gpt2":
                state = as_gpt2(state)
            other.load_state_dict(state)
            x, tokens = torch.randn(2, 32, model["hidden"]), torch.randint(model["vocabulary"], (2, 32))
            ends = [(layers.make(0)(tokens), layers.make(layers.count - 1)(x)) for layers in (own, theirs)]
            pairs = [(own.call(one, x), theirs.call(other, x)), *zip(*ends)]
        found[name] = max(apart(a, b) for a, b in pairs)
    return dict(families=found)


def as_gpt2(state):
    """A plain block's weights by the names and in the shapes that transformers' GPT-2 has."""
    attention = [state[f"self_attn.{x}_proj.weight"] for x in "qkv"], [state[f"self_attn.{x}_proj.bias"] for x in "qkv"]
    found = {"attn.c_attn.weight": torch.cat(attention[0]).T, "attn.c_attn.bias": torch.cat(attention[1])}
    for theirs, own in (("attn.c_proj", "self_attn.o_proj"), ("mlp.c_fc", "mlp.up_proj"),
                        ("mlp.c_proj", "mlp.down_proj")):
        found |= {f"{theirs}.weight": state[f"{own}.weight"].T, f"{theirs}.bias": state[f"{own}.bias"]}
    for theirs, own in (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")):
        found |= {f"{theirs}.{x}": state[f"{own}.{x}"] for x in ("weight", "bias")}
    return found


def run_rank(rank, ranks, cases, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store.{ranks}'}", rank=rank, world_size=ranks,
                            timeout=datetime.timedelta(seconds=100))
    table = {}
    for case in cases:
        try:
            act = globals().get(case["do"]) or getattr(parts, case["do"])
            table[case["name"]] = act(case, rank, folder)
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
