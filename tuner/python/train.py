"""An example of a training loop on this schedule: random tokens, AdamW. Takes transformers beside torch.

    bash launch.sh --model CONFIG_FOLDER_OR_HUB_NAME
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from transformers import AutoConfig, AutoModelForCausalLM

from optpipe_torch import OptPipeSchedule

HERE = Path(__file__).resolve().parent


class Stage(nn.Module):
    """The modules of one stage, run in order; between stages goes the hidden state."""

    def __init__(self, model, names):
        super().__init__()
        part = {name: model.get_submodule(name) for name in names}
        pick = lambda *ends: next((part[name] for name in part if name.split(".")[-1] in ends), None)
        self.tokens, self.positions = pick("embed_tokens", "wte"), pick("wpe")
        self.rotary, self.norm, self.head = pick("rotary_emb"), pick("norm", "ln_f"), pick("lm_head")
        self.blocks = nn.ModuleList(module for name, module in part.items() if name.split(".")[-1].isdigit())

    def forward(self, x):
        if self.tokens is not None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            x = self.tokens(x) + (0 if self.positions is None else self.positions(positions))
        more = {}
        if self.rotary is not None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            more = dict(position_embeddings=self.rotary(x, positions), position_ids=positions)
        for block in self.blocks:
            x = block(x, **more)
            x = x[0] if isinstance(x, tuple) else x
        x = x if self.norm is None else self.norm(x)
        return x if self.head is None else self.head(x)


def loss_fn(logits, tokens):
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def tie(described, stages):
    """Where embedding and head share a matrix and are on two ranks, each has a copy: makes what adds up both
    gradients before an update, so that the copies stay the same. Every rank calls it."""
    first, last = described["stage_to_rank"][0], described["stage_to_rank"][-1]
    if not described["tied_embeddings"] or first == last:
        return lambda: None
    group = dist.new_group([first, last])
    modules = [module for stage in stages for module in (stage.submod.tokens, stage.submod.head) if module is not None]

    def add_up():
        for module in modules:
            dist.all_reduce(module.weight.grad, group=group)

    return add_up


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--microbatch-size", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--measure-every", type=int, default=10, metavar="STEPS",
                        help="write measured.yaml so often: `optpipe solve --watch --measured` follows it")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    rank = dist.get_rank()
    described = json.loads((HERE / "stages.json").read_text("utf-8"))
    if described["modules"] is None:
        raise SystemExit("stages.json names no modules: export a schedule that has a model and a layer_split")

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model))
    count = len(described["modules"])
    stages = [PipelineStage(Stage(model, names).to(device), i, count, device)
              for i, (names, at) in enumerate(zip(described["modules"], described["stage_to_rank"])) if at == rank]
    schedule = OptPipeSchedule(HERE / "schedule.yaml", stages, loss_fn, layer_split=described["layer_split"])
    add_up = tie(described, stages)
    parameters = {id(p): p for stage in stages for p in stage.submod.parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=args.learning_rate)
    for step in range(args.steps):
        torch.manual_seed(step)
        shape = described["microbatches"] * args.microbatch_size, args.sequence_length
        tokens = torch.randint(model.config.vocab_size, shape).to(device)
        first, last = stages[0].is_first, stages[-1].is_last
        loss = schedule.step(*([tokens] if first else []), target=tokens if last else None)
        add_up()
        optimizer.step()
        optimizer.zero_grad()
        if loss is not None:
            print(f"step {step}: loss {loss:.6f}", flush=True)
        # The first step on a schedule is not one to measure by.
        if schedule.steps > 1 and (step + 1) % args.measure_every == 0:
            schedule.write_measured(HERE / "measured.yaml")
    schedule.write_measured(HERE / "measured.yaml")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
