"""Attention for heads of up to 128 features. The matrix of scores is never stored."""

from __future__ import annotations

import math
from typing import Any

import cupy

from bpcore.functional.attention import attention, attention_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import kernel, pointer
from bpcore.kernels.cuda.engine.sums import scratch
from bpcore.primitive import twin

HEADS = (16, 32, 64, 128)  # features of a head for which kernels are compiled; smaller heads are padded with zeros


def constants(D: int, char: str) -> dict[str, int]:
    """The macros that kernels are compiled with. TILE: two tiles of rows take at most 32 KB of shared memory."""
    return {"D": D, "TILE": min(32, 16384 // (D * (8 if char == "d" else 4)))}


def launch(name: str, lanes: int, D: int, qkv: Any, heads: int, causal: bool, p: float, *arrays: Any) -> None:
    """Launch a kernel with `lanes` threads for each row, a query or a key."""
    n, tokens, width = qkv.shape
    size = width // (3 * heads)
    rows = min(128, -(-tokens * lanes // 32) * 32) // lanes
    tiles = -(-tokens // rows)
    sizes = tiles, tokens, heads, size, int(causal), 1 / math.sqrt(size), 1 / (1 - p)
    run = kernel("attention", name, qkv.dtype.char, **constants(D, qkv.dtype.char))
    run((tiles * n * heads,), (lanes, rows), (*sizes, qkv, *arrays))


def compiled_features(qkv: Any, heads: int) -> int:
    """The smallest number of HEADS that holds the features of a head; 0 if a head has too many."""
    return next((D for D in HEADS if D * heads * 3 >= qkv.shape[-1]), 0)


def small_heads(qkv: Any, heads: int, causal: bool, padding: Any, keep: Any, p: float) -> bool:
    """Whether there are kernels for heads of this size, and the arrays are contiguous."""
    return CUDA.nonempty(qkv) and compiled_features(qkv, heads) > 0 and CUDA.mask(padding) and CUDA.mask(keep)


@twin(attention, serves=small_heads)
def _(qkv, heads, causal, padding, keep, p):
    n, tokens, width = qkv.shape
    D = compiled_features(qkv, heads)
    u = cupy.empty((n, tokens, width // 3), qkv.dtype)
    L = scratch((n, heads, tokens), qkv.dtype.char)
    launch("attention", max(1, D // 32), D, qkv, heads, causal, p, pointer(padding), pointer(keep), u, L)
    return u, L


def small_heads_backward(qkv: Any, padding: Any, keep: Any, u: Any, L: Any, v: Any, heads: int, causal: bool, p: float) -> bool:
    """As `small_heads`, for u, L and v too."""
    computed = L.flags.c_contiguous and L.dtype.char == ("d" if qkv.dtype.char == "d" else "f")
    return small_heads(qkv, heads, causal, padding, keep, p) and CUDA.dense(qkv, u, v) and computed


@twin(attention_backward, serves=small_heads_backward)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    D = compiled_features(qkv, heads)
    dqkv = cupy.empty_like(qkv)
    means = cupy.empty_like(L)
    masks = pointer(padding), pointer(keep)
    launch("backward_queries", D // 16, D, qkv, heads, causal, p, *masks, u, L, v, means, dqkv)
    launch("backward_keys", D // 16, D, qkv, heads, causal, p, *masks, L, v, means, dqkv)
    return dqkv
