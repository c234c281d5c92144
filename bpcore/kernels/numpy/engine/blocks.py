"""Passes over long vectors in blocks that fit in the cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

BITS = {2: np.int16, 4: np.int32, 8: np.int64}  # integers that have the bits of a float, by its bytes
ZEROS = {np.dtype(dtype): np.zeros((), dtype) for dtype in ("float32", "float64")}  # NumPy takes an array sooner than a number
FLUSHED = {dtype: np.array(np.sqrt(np.finfo(dtype).smallest_normal)) for dtype in ZEROS}  # `flush` makes 0 of what is smaller
ONES = {dtype: np.ones(4096, dtype) for dtype in ZEROS}  # times these, BLAS sums rows two or three times as fast
COMPLEX = {np.dtype("float32"): np.dtype("complex64"), np.dtype("float64"): np.dtype("complex128")}  # of two of these numbers
WIDE = 2048  # numbers in a loop of NumPy's: for fewer its overhead shows
SMALL = 8192  # numbers: on fewer, a question costs more than a pass
BLOCK = 32768  # numbers: blocks of θ, g, two moments and the scratch fit in a second-level cache together


def blocks(*vectors) -> Iterator[tuple[Any, ...]]:
    """The vectors in blocks of BLOCK numbers, each with a scratch array of the same length last."""
    n = len(vectors[0])
    scratch = np.empty(min(n, BLOCK), vectors[0].dtype)
    if n <= BLOCK:
        yield (*vectors, scratch)
        return
    for i in range(0, n, BLOCK):
        block = slice(i, i + BLOCK)
        yield (*(x[block] for x in vectors), scratch[: n - i])


def row_blocks(rows, width) -> Iterator[slice]:
    """Slices of this many rows, of about BLOCK numbers each."""
    step = max(1, BLOCK // max(1, width))
    for i in range(0, rows, step):
        yield slice(i, min(i + step, rows))


@functools.lru_cache
def side_by_side(rows, width) -> int:
    """How many rows of this width to take as one, so that loops are long: a divisor of `rows`."""
    if rows * width <= SMALL:
        return 1
    return next(k for k in range(max(1, min(rows, WIDE // max(1, width))), 0, -1) if rows % k == 0)


def aligned(shape, dtype):
    """An array to write to that begins at a multiple of 64 bytes, unlike NumPy's own: a vector stored there takes one turn."""
    raw = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64
    return raw[start : raw.size - 64 + start].view(dtype).reshape(shape)


def row_sums(x):
    """Σ x over the last axis, which keeps length 1: NumPy's own sum takes three times as long."""
    ones = ONES.get(x.dtype)
    return np.add.reduce(x, axis=-1, keepdims=True) if ones is None or x.shape[-1] > len(ones) else x @ ones[: x.shape[-1], None]


def masked(x, keep, out=None):
    """`masked` of x, in `out` if that is given: its bits times 1 or 0, because np.where takes six times as long."""
    bits = BITS[x.itemsize]
    return np.multiply(x.view(bits), keep, out=None if out is None else out.view(bits)).view(x.dtype)


def flush_in_place(x, scratch=None):
    """`flush` of x, which the caller must own. scratch: an array like x to write to."""
    least = FLUSHED.get(x.dtype)
    if least is None:
        return x
    size = np.abs(x, out=scratch)
    if x.size > SMALL:
        return x if np.min(size) >= least else np.multiply(x, size >= least, out=x)
    return np.multiply(x, (size >= least).astype(x.dtype), out=x)


def flush_positive(x, scratch=None):
    """`flush_in_place` of x >= 0, in one pass where there is nothing to flush."""
    return x if x.size > SMALL and np.min(x) >= FLUSHED.get(x.dtype, 0) else flush_in_place(x, scratch)
