"""Llama, Mistral, Qwen and GPT-2 in plain torch, with the module names that transformers has (GPT-2: Llama's
names inside of a block)."""

import math

import torch
from torch import nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Scale only, computed in float32 at least."""

    def __init__(self, width, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        wide = x if x.dtype == torch.float64 else x.float()
        return self.weight * functional.rms_norm(wide, wide.shape[-1:], None, self.epsilon).to(x.dtype)


def norm(model):
    """The model's norm."""
    if model["norm"] == "rms":
        return RMSNorm(model["hidden"], model["norm_epsilon"])
    return nn.LayerNorm(model["hidden"], eps=model["norm_epsilon"])


def rotate(x, cos, sin):
    """Rotary positions."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention; fewer key and value heads than query heads are shared."""

    def __init__(self, model):
        super().__init__()
        hidden, width = model["hidden"], model["head_dim"]
        self.heads, self.kv_heads, self.width = model["heads"], model["kv_heads"], width
        bias = model["qkv_bias"]
        self.q_proj = nn.Linear(hidden, self.heads * width, bias=bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * width, bias=bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * width, bias=bias)
        self.o_proj = nn.Linear(self.heads * width, hidden, bias=model["output_bias"])
        if model["qk_norm"]:
            self.q_norm, self.k_norm = (RMSNorm(width, model["norm_epsilon"]) for _ in range(2))

    def forward(self, x, position_embeddings, attention_mask):
        batch, length, _ = x.shape
        q, k, v = (projection(x).view(batch, length, -1, self.width)
                   for projection in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if position_embeddings is not None:
            cos, sin = (t.unsqueeze(1) for t in position_embeddings)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_mask, is_causal=attention_mask is None, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(x.transpose(1, 2).reshape(batch, length, -1))


class GatedMlp(nn.Module):
    """Llama's."""

    def __init__(self, model):
        super().__init__()
        hidden, inner, bias = model["hidden"], model["intermediate"], model["mlp_bias"]
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DenseMlp(nn.Module):
    """GPT-2's."""

    def __init__(self, model):
        super().__init__()
        hidden, inner, bias = model["hidden"], model["intermediate"], model["mlp_bias"]
        self.up_proj, self.down_proj = nn.Linear(hidden, inner, bias=bias), nn.Linear(inner, hidden, bias=bias)

    def forward(self, x):
        return self.down_proj(functional.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, model):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norm(model), norm(model)
        self.self_attn = Attention(model)
        self.mlp = GatedMlp(model) if model["mlp"] == "gated_silu" else DenseMlp(model)

    def forward(self, x, position_embeddings=None, attention_mask=None):
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        return x + self.mlp(self.post_attention_layernorm(x))


def rotary(model, length, device):
    """Cosines and sines of every position, in float32, or None with learned positions."""
    if model["rope_theta"] is None:
        return None
    width = model["head_dim"]
    frequencies = model["rope_theta"] ** -(torch.arange(0, width, 2, device=device).float() / width)
    scaling = model["rope_scaling"]
    if scaling is not None:
        low, high = scaling["low_frequency_factor"], scaling["high_frequency_factor"]
        turns = scaling["original_positions"] * frequencies / (2 * math.pi)
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (blend + (1 - blend) / scaling["factor"])
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)[None]
    return angles.cos(), angles.sin()
