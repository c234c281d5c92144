"""Care for small numbers, for entries that are left out or not finite, and for float16."""

from __future__ import annotations

import math
from typing import Any

from bpcore.array import Array, device, is_half, namespace

Axes = int | tuple[int, ...] | None  # the axes of a reduction: one, several, or all

PART = 512  # numbers that may be added one after the other

_smallest: dict[tuple[type, Any], float] = {}


def smallest_normal(z: Array) -> float:
    """The smallest normal number of the dtype of z, a Python float, remembered."""
    key = type(z), z.dtype  # the type first: dtypes of two libraries do not compare
    smallest = _smallest.get(key)
    if smallest is None:
        smallest = _smallest[key] = float(namespace(z).finfo(z.dtype).smallest_normal)
    return smallest


def flush(z: Array) -> Array:
    """z with entries below the square root of the smallest normal number set to 0.

    Then the product of two nonzero entries is a normal number: a GEMM with subnormal numbers can be a hundred times slower.
    float16 stays as it is: that square root is 0.008, and hardware that computes in float16 is not slower on subnormal numbers.
    """
    if is_half(z):
        return z
    xp = namespace(z)
    return z * xp.astype(xp.abs(z) >= math.sqrt(smallest_normal(z)), z.dtype)


def masked(x: Array, keep: Array) -> Array:
    """x where `keep` is True, 0 elsewhere, whatever x is there: a product with 0 would keep NaN, and make one of an infinity."""
    xp = namespace(x)
    return xp.where(keep, x, xp.zeros((), dtype=x.dtype, device=device(x)))


def sum_over(x: Array, axis: Axes) -> Array:
    """Σ x over an axis, several, or all; float16 is summed in float32, and the result is float32.

    Long axes are summed in parts: NumPy adds row after row, and the sum of a million rows of 0.1 would be wrong by 1 %.
    """
    if axis is not None:
        axes = sorted(i % x.ndim for i in ((axis,) if isinstance(axis, int) else axis))
        if math.prod(x.shape[i] for i in axes) > PART:
            for i in reversed(axes):
                x = sum_long(x, i)
            return x
    return sum_at_once(x, axis)


def sum_long(x: Array, axis: int) -> Array:
    """Σ x over an axis that may be long, counted from the first axis."""
    n = x.shape[axis]
    whole = n - n % PART
    if n <= 2 * PART:
        return sum_at_once(x, axis)
    before: tuple[Any, ...] = (slice(None),) * axis
    parts = namespace(x).reshape(x[(*before, slice(whole), ...)], (*x.shape[:axis], -1, PART, *x.shape[axis + 1 :]))
    total = sum_long(sum_at_once(parts, axis + 1), axis)
    return total if whole == n else total + sum_at_once(x[(*before, slice(whole, None), ...)], axis)


def mean_over(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean over these axes, which keep length 1, by `sum_over`."""
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return namespace(x).reshape(sum_over(x, axes), shape) / math.prod(x.shape[i] for i in axes)


def sum_at_once(x: Array, axis: Axes) -> Array:
    """`sum_over` by the array's library."""
    xp = namespace(x)
    return xp.sum(x, axis=axis, dtype=xp.float32) if is_half(x) else xp.sum(x, axis=axis)


def inverse_deviation(x: Array, axis: int | tuple[int, ...], eps: float) -> Array:
    """1 / √(mean(x²) + ε) over these axes, which keep length 1. Large entries are scaled down first: their squares overflow."""
    xp = namespace(x)
    largest = xp.max(xp.abs(x), axis=axis, keepdims=True)
    largest = xp.maximum(largest, xp.ones_like(largest))
    scaled = x / largest
    return 1 / (largest * xp.sqrt(xp.mean(scaled * scaled, axis=axis, keepdims=True) + eps / largest / largest))
