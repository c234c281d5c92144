"""Passes over long vectors in blocks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bpcore.array import is_half
from bpcore.functional.numerics import smallest_normal

BLOCK = 32768  # numbers: θ, g and two moments of it, and the scratch, lie in a second-level cache together


def blocks(*vectors) -> Iterator[tuple[Any, ...]]:
    """The vectors in pieces of BLOCK numbers, with a scratch array of that length last."""
    n = len(vectors[0])
    scratch = np.empty(min(n, BLOCK), vectors[0].dtype)
    if n <= BLOCK:
        yield (*vectors, scratch)
        return
    for i in range(0, n, BLOCK):
        piece = slice(i, i + BLOCK)
        yield (*(x[piece] for x in vectors), scratch[: n - i])


def flush_in_place(x):
    """`flush`, on an array that the caller made."""
    return x if is_half(x) else np.multiply(x, np.abs(x) >= math.sqrt(smallest_normal(x)), out=x)
