"""What modules compute, in PyTorch's words: `reference(F, module, theta, *z)` in training mode, which rows of cases.py name.

F: a PyTorch. theta: windows by path. PyTorch's own layers are asked wherever they can do it, called on θ's windows; dropout's
masks are bpcore's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from harness import MODE

from bpcore.philox import philox_mask


class PyTorch:
    """PyTorch's functions by their names: those of torch.nn.functional, else of torch."""

    def __init__(self, torch: Any):
        self.torch = torch

    def __getattr__(self, name: str) -> Any:
        functional = self.torch.nn.functional
        return getattr(functional if hasattr(functional, name) else self.torch, name)


def under(theta: dict[str, Any], path: str) -> dict[str, Any]:
    """The windows of the module at a path."""
    return {name.removeprefix(path): window for name, window in theta.items() if name.startswith(path)}


# linear layers, norms of rows, dropout


def affine(theta: dict[str, Any], path: str, z: Any) -> Any:
    """The Linear at a path."""
    return z @ theta[path + "W"] + theta[path + "b"]


def normalized(F: Any, theta: dict[str, Any], path: str, z: Any) -> Any:
    """The LayerNorm at a path."""
    return F.layer_norm(z, z.shape[-1:], theta[path + "gamma"], theta[path + "beta"])


def linear(F, m, theta, z):
    return F.linear(z, theta["W"].T, theta.get("b"))


def layer_norm(F, m, theta, z):
    return F.layer_norm(z, z.shape[-1:], theta["gamma"], theta["beta"], m.eps)


def rms_norm(F, m, theta, z):
    return F.rms_norm(z, z.shape[-1:], theta["gamma"], m.eps)


def dropped(F: Any, z: Any, p: float, use: int, shape: Any = None) -> Any:
    """z under the mask of this use of dropout; uses count modules in the walk's order."""
    if not p:
        return z
    keep = philox_mask(tuple(shape or z.shape), p, (MODE["seed"], MODE["step"], MODE["micro"], use))
    return z * F.from_numpy(keep) / (1 - p)


def dropout(F, m, theta, z):
    return dropped(F, z, m.p, 0)


def dropout2d(F, m, theta, z):
    return dropped(F, z, m.p, 0, (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1]))


# images


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


def padded(F: Any, m: Any, z: Any, value: float = 0.0) -> Any:
    """z (n, c, ...) with m's padding around it."""
    pairs = around(m, z.shape[2:], m.kernel, m.stride, getattr(m, "dilation", 1))
    return F.pad(z, [n for pair in reversed(pairs) for n in pair], value=value)


def conv2d(F, m, theta, z):
    z = padded(F, m, first(z))
    W, b = theta["W"].permute(3, 2, 0, 1).contiguous(), theta.get("b")
    return last(F.conv2d(z, W, b, m.stride, 0, m.dilation, m.groups))


def conv1d(F, m, theta, z):
    z = padded(F, m, first(z))
    W, b = theta["W"][0].permute(2, 1, 0), theta.get("b")
    return last(F.conv1d(z, W, b, m.stride, 0, m.dilation, m.groups))


def conv_transpose2d(F, m, theta, z):
    W, b = theta["W"].permute(3, 2, 0, 1).contiguous(), theta.get("b")
    f = F.conv_transpose2d
    return last(f(first(z), W, b, m.stride, m.padding, m.output_padding, 1, m.dilation))


def max_pool2d(F, m, theta, z):
    return last(F.max_pool2d(padded(F, m, first(z), -math.inf), m._kernel, m._stride))


def avg_pool2d(F, m, theta, z):
    return last(F.avg_pool2d(padded(F, m, first(z)), m._kernel, m._stride))


def global_avg_pool(F, m, theta, z):
    return z.mean(tuple(range(1, z.ndim - 1)))


def upsample(F, m, theta, z):
    return last(F.interpolate(first(z), scale_factor=m.factor, mode="nearest"))


def batch_norm(F, m, theta, z):
    return last(F.batch_norm(first(z), None, None, theta["gamma"], theta["beta"], True, 0.1, m.eps))


def group_norm(F, m, theta, z):
    return last(F.group_norm(first(z), m.groups, theta["gamma"], theta["beta"], m.eps))


# sequences


def embedding(F, m, theta, ids):
    return F.embedding(ids.long(), theta["W"])


def unembed(F, m, theta, z):
    return F.linear(z, theta["W"])


def positional_embedding(F, m, theta, z):
    return z + F.embedding(F.arange(z.shape[-2]), theta["W"])


def sinusoidal_positions(F, m, theta, z):
    """Vaswani et al., 2017, section 3.5, entry by entry."""
    table = np.empty(tuple(z.shape[-2:]))
    for t in range(z.shape[-2]):
        for i in range(0, m.d, 2):
            angle = t / 10000 ** (i / m.d)
            table[t, i], table[t, i + 1] = math.sin(angle), math.cos(angle)
    return z + F.from_numpy(table)


def turned(F: Any, z: Any) -> Any:
    """Su et al., 2021, section 3.4.2: pairs are complex numbers, times e^(i t θ_j)."""
    tokens, d = z.shape[-2:]
    rate = F.tensor([10000.0 ** (-2 * j / d) for j in range(d // 2)], dtype=F.float64)
    angle = F.outer(F.arange(tokens, dtype=F.float64), rate)
    pairs = F.complex(z[..., 0::2], z[..., 1::2]) * F.exp(1j * angle)
    return F.view_as_real(pairs).flatten(-2)


def rotary_positions(F, m, theta, z):
    return turned(F, z)


def attention(F, m, theta, z, keep=None, use=0):
    """nn.MultiheadAttention, or by hand what it has not: rotary positions, bpcore's masks of dropout, no key at all."""
    W, b, W_o, b_o = (theta[name] for name in ("W", "b", "W_o", "b_o"))
    n, tokens, d = z.shape
    later = F.ones(tokens, tokens, dtype=F.bool).triu(1)
    hidden = F.zeros(n, tokens, tokens, dtype=F.bool) if keep is None else ~keep[:, None, :].expand(n, tokens, tokens)
    hidden = hidden | later if m.causal else hidden
    if not (m.dropout or m.rotary or hidden.all(-1).any()):
        layer = F.nn.MultiheadAttention(d, m.heads, batch_first=True, dtype=F.float64)
        mapped = {"in_proj_weight": W.T, "in_proj_bias": b, "out_proj.weight": W_o.T, "out_proj.bias": b_o}
        masks = {
            "key_padding_mask": None if keep is None else ~keep,
            "attn_mask": later if m.causal else None,
            "need_weights": False,
        }
        return F.func.functional_call(layer, mapped, (z, z, z), masks)[0]
    q, k, v = ((z @ W + b)[..., i * d : (i + 1) * d].unflatten(-1, (m.heads, -1)).transpose(1, 2) for i in range(3))
    if m.rotary:
        q, k = turned(F, q), turned(F, k)
    scores = (q @ k.mT / math.sqrt(d // m.heads)).masked_fill(hidden[:, None], -math.inf)
    A = F.softmax(scores.masked_fill(hidden.all(-1)[:, None, :, None], 0.0), -1)
    A = dropped(F, A * ~hidden[:, None], m.dropout, use)
    return (A @ v).transpose(1, 2).flatten(-2) @ W_o + b_o


def transformer_block(F, m, theta, z, keep=None, use=0):
    """nn.TransformerEncoderLayer, or by hand with dropout and rotary positions."""
    if not (m.dropout or m.rotary):
        width = m.hidden or 4 * m.d
        options = {"batch_first": True, "norm_first": True, "dtype": F.float64}
        layer = F.nn.TransformerEncoderLayer(m.d, m.heads, width, 0.0, "gelu", **options)
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
            theirs: theta[ours].T if ours[-1] in "Wo" and theta[ours].ndim == 2 else theta[ours] for theirs, ours in names.items()
        }
        later = F.ones(z.shape[1], z.shape[1], dtype=F.bool).triu(1) if m.causal else None
        masks = {"src_mask": later, "src_key_padding_mask": None if keep is None else ~keep}
        return F.func.functional_call(layer, mapped, (z,), masks)

    h = attention(F, m.children["attention"], under(theta, "attention."), normalized(F, theta, "norm.", z), keep, use + 2)
    z = z + dropped(F, h, m.dropout, use + 3)
    h = F.gelu(affine(theta, "feed.body.1.", normalized(F, theta, "feed.body.0.", z)))
    return z + dropped(F, affine(theta, "feed.body.3.", h), m.dropout, use + 10)


def lstm(F, m, theta, z):
    """nn.LSTM has two biases, of which the second is zero here."""
    W, U, b = (theta[name] for name in "WUb")
    state = (F.zeros(1, z.shape[0], m.n_out, dtype=F.float64),) * 2
    return F._VF.lstm(z, state, (W.T, U.T, b, F.zeros_like(b)), True, 1, 0.0, True, False, True)[0]


def gru(F, m, theta, z):
    W, U, b, d = (theta[name] for name in "WUbd")
    state = F.zeros(1, z.shape[0], m.n_out, dtype=F.float64)
    return F._VF.gru(z, state, (W.T, U.T, b, d), True, 1, 0.0, True, False, True)[0]


# losses, means of what each example loses


def mean(F: Any, ell: Any, weights: Any = None) -> Any:
    return F.mean(ell) if weights is None else F.sum(weights * ell) / F.sum(weights)


def of_examples(ell: Any) -> Any:
    """Summed over an example's outputs, where it has several."""
    return ell if ell.ndim == 1 else ell.sum(-1)


def squared_error(F, m, theta, z, y, weights=None):
    return 0.5 * mean(F, of_examples(F.mse_loss(z, y, reduction="none")), weights)


def huber(F, m, theta, z, y, weights=None):
    return mean(F, of_examples(F.huber_loss(z, y, reduction="none", delta=m.delta)), weights)


def logistic_loss(F, m, theta, t, y, weights=None):
    return mean(F, of_examples(F.binary_cross_entropy_with_logits(t, y.to(t.dtype), reduction="none")), weights)


def cross_entropy(F, m, theta, t, y, weights=None):
    k, flat = t.shape[-1], y.reshape(-1, t.shape[-1]) if y.is_floating_point() else y.reshape(-1).long()
    ell = F.cross_entropy(t.reshape(-1, k), flat, reduction="none", label_smoothing=m.smoothing)
    return mean(F, ell.reshape(t.shape[:-1]), weights)
