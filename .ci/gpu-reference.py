"""What PyTorch takes on the first GPU for a Llama-3-8B block and its operations, with 4,096 tokens in bf16 and its own
flash attention: `python gpu-reference.py MODEL_CONFIG`. Prints JSON, times in microseconds: the median of 7 samples of
20 runs between two events.
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

config = json.load(open(sys.argv[1]))
TOKENS, HIDDEN, WIDE = 4096, config["hidden_size"], config["intermediate_size"]
HEADS, GROUPS = config["num_attention_heads"], config["num_key_value_heads"]
WIDTH = config.get("head_dim", HIDDEN // HEADS)
VOCABULARY, LOGIT_ROWS = config["vocab_size"], 1024
torch.manual_seed(0)


def random(*shape, gradient=True):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=gradient)


def time(work):
    for _ in range(3):
        work()
    samples = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(20):
            work()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / 20)
    return statistics.median(samples)


def both(forward, inputs):
    """Time of the forward, and of the backward by all inputs."""
    with torch.no_grad():
        ahead = time(forward)
    output = forward()
    gradient = torch.ones_like(output)
    return ahead, time(lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True))


class Block(torch.nn.Module):
    """As trainers write it: grouped queries, rotated pairs, a gated MLP, norms in front."""

    def __init__(self):
        super().__init__()
        linear = lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16)
        norm = lambda: torch.nn.RMSNorm(HIDDEN, eps=1e-5, device="cuda", dtype=torch.bfloat16)
        self.norms = torch.nn.ModuleList([norm(), norm()])
        self.queries, self.output = linear(HIDDEN, HEADS * WIDTH), linear(HEADS * WIDTH, HIDDEN)
        self.keys, self.values = linear(HIDDEN, GROUPS * WIDTH), linear(HIDDEN, GROUPS * WIDTH)
        self.gate, self.up, self.down = linear(HIDDEN, WIDE), linear(HIDDEN, WIDE), linear(WIDE, HIDDEN)

    def forward(self, x):
        normed = self.norms[0](x)
        heads = lambda y, count: y.view(1, TOKENS, count, WIDTH).transpose(1, 2)
        queries, keys = rotate(heads(self.queries(normed), HEADS)), rotate(heads(self.keys(normed), GROUPS))
        x = x + self.output(attend(queries, keys, heads(self.values(normed), GROUPS)).transpose(1, 2).reshape(1, TOKENS, -1))
        normed = self.norms[1](x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


angles = torch.outer(torch.arange(TOKENS), 5e5 ** (-torch.arange(0, WIDTH, 2) / WIDTH)).repeat(1, 2).cuda()
cosines, sines = angles.cos().bfloat16(), angles.sin().bfloat16()


def rotate(x):
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def attend(queries, keys, values):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)


times = {}


def row(name, pair):
    times[f"{name}_forward"], times[f"{name}_backward"] = pair


x, weight = random(TOKENS, HIDDEN), random(HIDDEN)
row("rms_norm", both(lambda: F.rms_norm(x, (HIDDEN,), weight, 1e-5), (x, weight)))
gate, up = random(TOKENS, WIDE), random(TOKENS, WIDE)
row("swiglu", both(lambda: F.silu(gate) * up, (gate, up)))
queries = random(1, HEADS, TOKENS, WIDTH)
row("rope", both(lambda: rotate(queries), (queries,)))
keys, values = random(1, GROUPS, TOKENS, WIDTH), random(1, GROUPS, TOKENS, WIDTH)
row("attention", both(lambda: attend(queries, keys, values), (queries, keys, values)))
logits, targets = random(LOGIT_ROWS, VOCABULARY), torch.randint(VOCABULARY, (LOGIT_ROWS,), device="cuda")
row("cross_entropy", both(lambda: F.cross_entropy(logits, targets), (logits,)))
weights = torch.nn.Parameter(random(HIDDEN, WIDE, gradient=False).float())
weights.grad = torch.randn_like(weights)
times["adamw"] = time(torch.optim.AdamW([weights], fused=True).step)
del logits, weights, gate, up
block, x = Block(), random(1, TOKENS, HIDDEN)
row("block", both(lambda: block(x), (x, *block.parameters())))
print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "us": times}))
