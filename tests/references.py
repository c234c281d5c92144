"""What modules of images and sequences compute, in PyTorch's words: `reference(torch, module, theta, *z)` in training mode.

theta: windows by path, `theta[path + "W"]`. PyTorch's own layers are asked wherever they can do it, called on θ's windows;
dropout's masks are bpcore's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from cases import MODE

import bpcore as bp
from bpcore.philox import philox_mask


def first(z: Any) -> Any:
    """(n, ..., channels) as (n, channels, ...)."""
    return z.movedim(-1, 1)


def last(z: Any) -> Any:
    """(n, channels, ...) as (n, ..., channels)."""
    return z.movedim(1, -1)


def two(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


def around(m: Any, sizes: Any, kernel: Any, stride: Any, dilation: Any = 1) -> list[tuple[int, int]]:
    """(before, after) of each axis: "same" gives ceil(size / stride) places, the odd entry after."""
    if m.padding == "valid":
        return [(0, 0)] * len(sizes)
    if m.padding != "same":
        return [(p, p) for p in (two(m.padding) if len(sizes) == 2 else (m.padding,))]
    totals = []
    for size, k, s, d in zip(sizes, two(kernel), two(stride), two(dilation), strict=False):
        totals.append(max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size))
    return [(total // 2, math.ceil(total / 2)) for total in totals]


def padded(torch: Any, m: Any, z: Any, value: float = 0.0) -> Any:
    """z (n, c, ...) with m's padding around it."""
    pairs = around(m, z.shape[2:], m.kernel, m.stride, getattr(m, "dilation", 1))
    return torch.nn.functional.pad(z, [n for pair in reversed(pairs) for n in pair], value=value)


def conv2d(torch, m, theta, path, z):
    z = padded(torch, m, first(z))
    W, b = theta[path + "W"].permute(3, 2, 0, 1).contiguous(), theta.get(path + "b")
    return last(torch.nn.functional.conv2d(z, W, b, m.stride, 0, m.dilation, m.groups))


def conv1d(torch, m, theta, path, z):
    z = padded(torch, m, first(z))
    W, b = theta[path + "W"][0].permute(2, 1, 0), theta.get(path + "b")
    return last(torch.nn.functional.conv1d(z, W, b, m.stride, 0, m.dilation, m.groups))


def conv_transpose2d(torch, m, theta, path, z):
    W, b = theta[path + "W"].permute(3, 2, 0, 1).contiguous(), theta.get(path + "b")
    f = torch.nn.functional.conv_transpose2d
    return last(f(first(z), W, b, m.stride, m.padding, m.output_padding, 1, m.dilation))


def max_pool2d(torch, m, theta, path, z):
    return last(torch.nn.functional.max_pool2d(padded(torch, m, first(z), -math.inf), m._kernel, m._stride))


def avg_pool2d(torch, m, theta, path, z):
    return last(torch.nn.functional.avg_pool2d(padded(torch, m, first(z)), m._kernel, m._stride))


def global_avg_pool(torch, m, theta, path, z):
    return z.mean(tuple(range(1, z.ndim - 1)))


def upsample(torch, m, theta, path, z):
    return last(torch.nn.functional.interpolate(first(z), scale_factor=m.factor, mode="nearest"))


def batch_norm(torch, m, theta, path, z):
    return last(
        torch.nn.functional.batch_norm(first(z), None, None, theta[path + "gamma"], theta[path + "beta"], True, 0.1, m.eps)
    )


def group_norm(torch, m, theta, path, z):
    return last(torch.nn.functional.group_norm(first(z), m.groups, theta[path + "gamma"], theta[path + "beta"], m.eps))


def dropped(torch: Any, z: Any, p: float, use: int, shape: Any = None) -> Any:
    """z under the mask of this use of dropout; uses count modules in the walk's order."""
    if not p:
        return z
    keep = philox_mask(tuple(shape or z.shape), p, (MODE["seed"], MODE["step"], MODE["micro"], use))
    return z * torch.from_numpy(keep) / (1 - p)


def dropout2d(torch, m, theta, path, z):
    return dropped(torch, z, m.p, 0, (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1]))


def embedding(torch, m, theta, path, ids):
    return torch.nn.functional.embedding(ids.long(), theta[path + "W"])


def unembed(torch, m, theta, path, z):
    return torch.nn.functional.linear(z, theta[path + "W"])


def positional_embedding(torch, m, theta, path, z):
    return z + torch.nn.functional.embedding(torch.arange(z.shape[-2]), theta[path + "W"])


def sinusoidal_positions(torch, m, theta, path, z):
    """Vaswani et al., 2017, section 3.5, entry by entry."""
    table = np.empty(tuple(z.shape[-2:]))
    for t in range(z.shape[-2]):
        for i in range(0, m.d, 2):
            angle = t / 10000 ** (i / m.d)
            table[t, i], table[t, i + 1] = math.sin(angle), math.cos(angle)
    return z + torch.from_numpy(table)


def turned(torch: Any, z: Any) -> Any:
    """Su et al., 2021, section 3.4.2: pairs are complex numbers, times e^(i t θ_j)."""
    tokens, d = z.shape[-2:]
    rate = torch.tensor([10000.0 ** (-2 * j / d) for j in range(d // 2)], dtype=torch.float64)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rate)
    pairs = torch.complex(z[..., 0::2], z[..., 1::2]) * torch.exp(1j * angle)
    return torch.view_as_real(pairs).flatten(-2)


def rotary_positions(torch, m, theta, path, z):
    return turned(torch, z)


def attention(torch, m, theta, path, z, keep=None, use=0):
    """nn.MultiheadAttention, or by hand what it has not: rotary positions, bpcore's masks of dropout, no key at all."""
    W, b, W_o, b_o = (theta[path + name] for name in ("W", "b", "W_o", "b_o"))
    n, tokens, d = z.shape
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    hidden = torch.zeros(n, tokens, tokens, dtype=torch.bool) if keep is None else ~keep[:, None, :].expand(n, tokens, tokens)
    hidden = hidden | later if m.causal else hidden
    if not (m.dropout or m.rotary or hidden.all(-1).any()):
        layer = torch.nn.MultiheadAttention(d, m.heads, batch_first=True, dtype=torch.float64)
        mapped = {"in_proj_weight": W.T, "in_proj_bias": b, "out_proj.weight": W_o.T, "out_proj.bias": b_o}
        masks = {
            "key_padding_mask": None if keep is None else ~keep,
            "attn_mask": later if m.causal else None,
            "need_weights": False,
        }
        return torch.func.functional_call(layer, mapped, (z, z, z), masks)[0]
    q, k, v = ((z @ W + b)[..., i * d : (i + 1) * d].unflatten(-1, (m.heads, -1)).transpose(1, 2) for i in range(3))
    if m.rotary:
        q, k = turned(torch, q), turned(torch, k)
    scores = (q @ k.mT / math.sqrt(d // m.heads)).masked_fill(hidden[:, None], -math.inf)
    A = torch.softmax(scores.masked_fill(hidden.all(-1)[:, None, :, None], 0.0), -1)
    A = dropped(torch, A * ~hidden[:, None], m.dropout, use)
    return (A @ v).transpose(1, 2).flatten(-2) @ W_o + b_o


def transformer_block(torch, m, theta, path, z, keep=None, use=0):
    """nn.TransformerEncoderLayer, or by hand with dropout and rotary positions."""
    if not (m.dropout or m.rotary):
        width = m.hidden or 4 * m.d
        options = {"batch_first": True, "norm_first": True, "dtype": torch.float64}
        layer = torch.nn.TransformerEncoderLayer(m.d, m.heads, width, 0.0, "gelu", **options)
        names = {
            "self_attn.in_proj_weight": "attention.W",
            "self_attn.in_proj_bias": "attention.b",
            "self_attn.out_proj.weight": "attention.W_o",
            "self_attn.out_proj.bias": "attention.b_o",
            "linear1.weight": "feed.body.1.W",
            "linear1.bias": "feed.body.1.b",
            "linear2.weight": "feed.body.3.W",
            "linear2.bias": "feed.body.3.b",
            "norm1.weight": "norm.gamma",
            "norm1.bias": "norm.beta",
            "norm2.weight": "feed.body.0.gamma",
            "norm2.bias": "feed.body.0.beta",
        }
        mapped = {
            theirs: theta[path + ours].T if ours[-1] in "Wo" and theta[path + ours].ndim == 2 else theta[path + ours]
            for theirs, ours in names.items()
        }
        later = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).triu(1) if m.causal else None
        masks = {"src_mask": later, "src_key_padding_mask": None if keep is None else ~keep}
        return torch.func.functional_call(layer, mapped, (z,), masks)

    def norm(z, at):
        return torch.nn.functional.layer_norm(z, z.shape[-1:], theta[path + at + "gamma"], theta[path + at + "beta"])

    def linear(z, at):
        return z @ theta[path + at + "W"] + theta[path + at + "b"]

    h = attention(torch, m.children["attention"], theta, path + "attention.", norm(z, "norm."), keep, use + 2)
    z = z + dropped(torch, h, m.dropout, use + 3)
    h = linear(torch.nn.functional.gelu(linear(norm(z, "feed.body.0."), "feed.body.1.")), "feed.body.3.")
    return z + dropped(torch, h, m.dropout, use + 10)


def lstm(torch, m, theta, path, z):
    """nn.LSTM has two biases, of which the second is zero here."""
    W, U, b = (theta[path + name] for name in "WUb")
    state = (torch.zeros(1, z.shape[0], m.n_out, dtype=torch.float64),) * 2
    return torch._VF.lstm(z, state, (W.T, U.T, b, torch.zeros_like(b)), True, 1, 0.0, True, False, True)[0]


def gru(torch, m, theta, path, z):
    W, U, b, d = (theta[path + name] for name in "WUbd")
    state = torch.zeros(1, z.shape[0], m.n_out, dtype=torch.float64)
    return torch._VF.gru(z, state, (W.T, U.T, b, d), True, 1, 0.0, True, False, True)[0]


REFERENCES = {
    bp.Conv2d: conv2d,
    bp.Conv1d: conv1d,
    bp.ConvTranspose2d: conv_transpose2d,
    bp.MaxPool2d: max_pool2d,
    bp.AvgPool2d: avg_pool2d,
    bp.GlobalAvgPool: global_avg_pool,
    bp.Upsample: upsample,
    bp.BatchNorm: batch_norm,
    bp.GroupNorm: group_norm,
    bp.Dropout2d: dropout2d,
    bp.Embedding: embedding,
    bp.Unembed: unembed,
    bp.PositionalEmbedding: positional_embedding,
    bp.SinusoidalPositions: sinusoidal_positions,
    bp.RotaryPositions: rotary_positions,
    bp.MultiHeadAttention: attention,
    bp.TransformerBlock: transformer_block,
    bp.LSTM: lstm,
    bp.GRU: gru,
}


def reference(torch: Any, module: bp.Module, theta: dict[str, Any], *z: Any) -> Any:
    """u, as PyTorch computes it."""
    return REFERENCES[type(module)](torch, module, theta, "", *z)
