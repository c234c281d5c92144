"""Passes over long vectors in blocks that fit in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bpcore.array import is_half
from bpcore.functional.numerics import smallest_normal

BITS = {2: np.int16, 4: np.int32, 8: np.int64}  # integers that have the bits of a float, by its bytes
ZEROS = {np.dtype(dtype): np.zeros((), dtype) for dtype in ("float32", "float64")}  # NumPy takes an array sooner than a number
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


def masked(x, keep):
    """`masked` of x: its bits times 1 or 0, because np.where takes six times as long."""
    return np.multiply(x.view(BITS[x.itemsize]), keep).view(x.dtype)


def flush_in_place(x):
    """`flush` of x, which the caller must own."""
    return x if is_half(x) else np.multiply(x, np.abs(x) >= math.sqrt(smallest_normal(x)), out=x)
