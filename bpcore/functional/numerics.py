"""The care that small numbers and float16 need."""

from __future__ import annotations

import math
from typing import Any

from bpcore.array import Array, is_half, namespace

Axes = int | tuple[int, ...] | None  # of a reduction: one axis, several, or all

_smallest: dict[tuple[type, Any], float] = {}


def smallest_normal(z: Array) -> float:
    """The smallest normal number of the dtype of z, a Python float, remembered."""
    key = type(z), z.dtype  # the type first: dtypes of two libraries do not compare
    found = _smallest.get(key)
    if found is None:
        found = _smallest[key] = float(namespace(z).finfo(z.dtype).smallest_normal)
    return found


def flush(z: Array) -> Array:
    """z with everything below the square root of the smallest normal number set to zero.

    Products of two numbers that survive are normal: a GEMM with subnormal inputs can run a hundred times slower. float16 is
    let be: that root is 0.008, and hardware that computes in float16 has no such trouble.
    """
    if is_half(z):
        return z
    xp = namespace(z)
    return z * xp.astype(xp.abs(z) >= math.sqrt(smallest_normal(z)), z.dtype)


def sum_over(x: Array, axis: Axes) -> Array:
    """Σ x over an axis or some; float16 is added up in float32, and the sum is float32."""
    xp = namespace(x)
    return xp.sum(x, axis=axis, dtype=xp.float32) if is_half(x) else xp.sum(x, axis=axis)
