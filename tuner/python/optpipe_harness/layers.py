"""The model's layers as modules, by transformers or in plain torch, and the stages made of them.

Layers are numbered: 0 is the embedding, 1 to L the blocks, L + 1 the head. A layer's weights depend on its
number and the seed alone, so that every split trains the same model.
"""

import torch
from torch import nn
from torch.nn import functional

from . import plain
from .control import Refused

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}


class Embedding(nn.Module):
    """Tokens, and positions where they are learned."""

    def __init__(self, tokens, positions):
        super().__init__()
        self.tokens, self.positions = tokens, positions

    def forward(self, x):
        hidden = self.tokens(x)
        if self.positions is not None:
            hidden = hidden + self.positions(torch.arange(x.shape[1], device=x.device)[None])
        return hidden


class Head(nn.Module):
    """The last norm and the projection to the vocabulary."""

    def __init__(self, norm, projection):
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, x):
        return self.projection(self.norm(x))


class Plain:
    """Makes layers in plain torch."""

    name = "plain torch"

    def __init__(self, request):
        self.model = request["model"]

    def embedding(self):
        model = self.model
        learned = model["rope_theta"] is None
        return (nn.Embedding(model["vocabulary"], model["hidden"]),
                nn.Embedding(model["max_positions"], model["hidden"]) if learned else None)

    def block(self, _):
        return plain.Block(self.model)

    def norm(self):
        return plain.norm(self.model)

    def rotary(self, length, device):
        return plain.rotary(self.model, length, device)


class Transformers:
    """Makes layers of the classes that transformers has for this config.json."""

    name = "transformers"

    def __init__(self, request):
        from transformers import AutoConfig, AutoModelForCausalLM

        raw = dict(request["config"])
        if "model_type" not in raw:
            raise Refused("config.json has no model_type, by which transformers knows a model: add it, or set "
                          "run.modules to plain")
        self.config = AutoConfig.for_model(raw.pop("model_type"), **raw)
        # The one that is causal without a mask; what it runs on is torch's choice.
        self.config._attn_implementation = "sdpa"
        self.config.use_cache = False
        for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
            if hasattr(self.config, name):
                setattr(self.config, name, 0.0)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(self.config)
        gpt2 = hasattr(whole, "transformer")
        inner = whole.transformer if gpt2 else whole.model
        self.blocks, self.last_norm = (inner.h, inner.ln_f) if gpt2 else (inner.layers, inner.norm)
        self.tokens, self.positions = (inner.wte, inner.wpe) if gpt2 else (inner.embed_tokens, None)
        self.rotary_class = None if gpt2 else type(inner.rotary_emb)

    def embedding(self):
        def like(table):
            return None if table is None else nn.Embedding(table.num_embeddings, table.embedding_dim)

        return like(self.tokens), like(self.positions)

    def block(self, index):
        return type(self.blocks[index])(self.config, layer_idx=index)

    def norm(self):
        if isinstance(self.last_norm, nn.LayerNorm):
            return nn.LayerNorm(self.last_norm.normalized_shape, eps=self.last_norm.eps)
        return type(self.last_norm)(self.config.hidden_size, eps=self.config.rms_norm_eps)

    def rotary(self, length, device):
        if self.rotary_class is None:
            return None
        positions = torch.arange(length, device=device)[None]
        return self.rotary_class(self.config).to(device)(torch.empty(1, device=device), positions)


def factory(request):
    """What makes the layers, by the request's `modules`: `transformers` or `plain`."""
    return {"plain": Plain, "transformers": Transformers}[request["modules"]](request)


def initialised(module, seed, dtype):
    """Fresh weights in `dtype`, by the seed alone: matrices small and random, norms 1, biases 0."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) * 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module.to(dtype)


class Layers:
    """Makes single layers on a device."""

    def __init__(self, request, device):
        self.model, self.device = request["model"], device
        self.dtype, self.seed = DTYPES[request["precision"]], request["seed"]
        self.length, self.count = request["sequence_length"], request["model"]["layers"] + 2
        self.factory = factory(request)
        tables = self.factory.rotary(self.length, device)
        self.tables = None if tables is None else tuple(t.to(self.dtype) for t in tables)
        window = self.model["sliding_window"]
        self.mask = None
        if window is not None and window < self.length:
            at = torch.arange(self.length, device=device)
            distance = at[:, None] - at[None]
            self.mask = ((distance >= 0) & (distance < window))[None, None]

    def make(self, number):
        """A layer by its number."""
        def fresh(module, role):
            return initialised(module, (self.seed * 1_000_003 + role) % 2**63, self.dtype)

        with torch.device(self.device):
            if number == 0:
                tokens, positions = self.factory.embedding()
                return Embedding(fresh(tokens, 0), None if positions is None else fresh(positions, self.count))
            if number < self.count - 1:
                return fresh(self.factory.block(number - 1), number)
            projection = nn.Linear(self.model["hidden"], self.model["vocabulary"], bias=False)
            # A matrix that is the embedding's, too, starts as that one does.
            role = 0 if self.model["tied_embeddings"] else number
            return Head(fresh(self.factory.norm(), number), fresh(projection, role))

    def shared(self):
        """Tensors that every call of a block uses."""
        return [t for t in (*(self.tables or ()), self.mask) if t is not None]

    def call(self, layer, x):
        """A layer's output."""
        if isinstance(layer, (Embedding, Head)):
            return layer(x)
        more = {} if self.tables is None else dict(position_embeddings=self.tables)
        x = layer(x, attention_mask=self.mask, **more)
        return x[0] if isinstance(x, tuple) else x


class Stage(nn.Module):
    """Consecutive layers, run in order."""

    def __init__(self, layers, numbers):
        super().__init__()
        self.numbers = list(numbers)
        self.maker = layers
        self.layers = nn.ModuleList(layers.make(number) for number in self.numbers)
        # What all microbatches share has to be the module's, or it would leave with one of them.
        for index, shared in enumerate(layers.shared()):
            self.register_buffer(f"shared_{index}", shared, persistent=False)
        if layers.model["tied_embeddings"] and self.first is not None and self.last is not None:
            self.last.projection.weight = self.first.tokens.weight

    def _only(self, kind):
        return next((layer for layer in self.layers if isinstance(layer, kind)), None)

    @property
    def first(self):
        """The embedding, if this stage has it."""
        return self._only(Embedding)

    @property
    def last(self):
        """The head, if this stage has it."""
        return self._only(Head)

    def forward(self, x):
        for layer in self.layers:
            x = self.maker.call(layer, x)
        return x


def ranges(layer_split):
    """The layers of each stage: the embedding is on the first, the head on the last."""
    found, start, last = [], 0, len(layer_split) - 1
    for stage, blocks in enumerate(layer_split):
        end = start + blocks + (stage == 0) + (stage == last)
        found.append(range(start, end))
        start = end
    return found


def loss_fn(logits, target):
    """Mean cross entropy of the next tokens, in float32 at least."""
    logits = logits.flatten(0, 1)
    return functional.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), target.flatten())


def batch(request, sequences, step, device):
    """Random tokens and the tokens that follow them, the same on every rank."""
    generator = torch.Generator().manual_seed(request["seed"] * 1_000_003 + 7919 + step)
    shape = sequences, request["sequence_length"] + 1
    tokens = torch.randint(request["model"]["vocabulary"], shape, generator=generator)
    return tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)
