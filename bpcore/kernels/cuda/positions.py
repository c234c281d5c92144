"""Rotations by the position of a token."""

from __future__ import annotations

import math
from typing import Any

import cupy

from bpcore.functional.positions import rotate
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each_row
from bpcore.primitive import twin


def pairs(z: Any, /, *others: Any) -> bool:
    """Whether z is dense, not empty, and has tokens with an even number of features."""
    return z.ndim > 1 and z.shape[-1] % 2 == 0 and CUDA.nonempty(z)


@twin(rotate, serves=pairs)
def _(z, sign):
    u = cupy.empty_like(z)
    d = z.shape[-1]
    n = z.shape[-2] * d
    rate = -2 * math.log(10000.0) / d
    each_row("positions", "rotate", z.dtype.char, z.size // n, n, z, d, d, d, rate, float(sign), u)
    return u
