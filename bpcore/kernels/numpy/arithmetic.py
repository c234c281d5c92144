"""Powers by multiplications, in blocks that fit in the cache. Sums over axes before the last, as products with a vector of ones:
NumPy's own sums of short rows are slow.
"""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from bpcore.functional.arithmetic import kept, power, summation
from bpcore.functional.numerics import PART, sum_over
from bpcore.kernels.numpy.engine.blocks import ONES, WIDE, blocks
from bpcore.primitive import twin

MOST = 16  # NumPy's power of negative numbers takes a hundred times as long as a product
LEAST = 8  # rows: of fewer, a product is no faster


@functools.lru_cache
def in_parts(n):
    """Into how many parts n rows divide, each of LEAST to PART rows; 0 if they do not."""
    return next((k for k in range(-(-n // PART), n // LEAST + 1) if n % k == 0), 0)


def between(axis):
    """The first of the axes, and the one after the last; both 0 unless they are neighbours, in order."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return (axes[0], axes[0] + len(axes)) if axes and axes == tuple(range(axes[0], axes[0] + len(axes))) else (0, 0)


def rows_between(z, axis, keepdims):
    """Whether the axes are neighbours, and short rows of float32 or float64 come after them."""
    if axis is None or axis == -1 or z.dtype not in ONES or z.size == 0:
        return False
    first, end = between(axis)
    return 0 <= first < end < z.ndim and 1 < prod(z.shape[end:]) < WIDE and in_parts(prod(z.shape[first:end])) > 0


@twin(summation, serves=rows_between)
def _(z, axis, keepdims):
    first, end = between(axis)
    n, after = prod(z.shape[first:end]), z.shape[end:]
    parts = in_parts(n)
    u = np.matmul(ONES[z.dtype][None, : n // parts], z.reshape(-1, n // parts, prod(after)))
    if parts > 1:
        u = sum_over(u.reshape(-1, parts, prod(after)), 1)
    return u.reshape(kept(z.shape, axis) if keepdims else (*z.shape[:first], *after))


def small_whole(z, exponent) -> bool:
    """Whether the exponent is whole, and from 2 to MOST, and z float32 or float64."""
    return 2 <= exponent <= MOST and exponent == int(exponent) and z.dtype.char in "fd"


@twin(power, serves=small_whole)
def _(z, exponent):
    u = np.empty(z.size, z.dtype)
    for z_block, out, _ in blocks(z.reshape(-1), u):
        x = z_block
        for bit in f"{int(exponent):b}"[1:]:
            x = np.multiply(x, x, out=out)
            if bit == "1":
                np.multiply(x, z_block, out=out)
    return u.reshape(z.shape)
