"""Rotations by the position of a token."""

from __future__ import annotations

import math
from typing import Any

import cupy

from bpcore.functional.positions import rotate, rotate_heads
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each_row
from bpcore.primitive import twin


def pairs(z: Any, /, *others: Any) -> bool:
    """Whether z is dense, not empty, and has tokens with an even number of features."""
    return z.ndim > 1 and z.shape[-1] % 2 == 0 and CUDA.nonempty(z)


def pairs_of_heads(qkv: Any, heads: int, sign: float) -> bool:
    """Whether qkv is dense, not empty, and has heads with an even number of features."""
    return qkv.ndim == 3 and qkv.shape[-1] % (6 * heads) == 0 and CUDA.nonempty(qkv)


def rotated(z: Any, features: int, d: int, sign: float) -> Any:
    """z with the first features of each token rotated, in heads of d features."""
    u, width = cupy.empty_like(z), z.shape[-1]
    n = z.shape[-2] * width
    each_row(
        "positions", "rotate", z.dtype.char, z.size // n, n, z, width, features, d, -2 * math.log(10000.0) / d, float(sign), u
    )
    return u


@twin(rotate, serves=pairs)
def _(z, sign):
    return rotated(z, z.shape[-1], z.shape[-1], sign)


@twin(rotate_heads, serves=pairs_of_heads)
def _(qkv, heads, sign):
    d = qkv.shape[-1] // 3
    return rotated(qkv, 2 * d, d // heads, sign)
