"""Positions of tokens: their sines and cosines are computed once for each number of tokens and features."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bpcore.functional.arithmetic import add
from bpcore.functional.positions import add_sinusoids, rotate, rotate_heads, sinusoids
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

remembered = functools.lru_cache(4)


@remembered
def table(tokens: int, d: int, char: str) -> Any:
    """`sinusoids` in this dtype, remembered."""
    return sinusoids(tokens, d, np.empty(0, char))


@twin(add_sinusoids, serves=COMPILED.dense)
def _(z):
    return add(z, table(*z.shape[-2:], z.dtype.char))


@compiled
def _rotate(start, stop, z, waves, sign, features, u):
    pairs = waves.shape[1] // 2
    for i in range(start, stop):
        token = waves[i % waves.shape[0]]
        for first in range(0, features, 2 * pairs):
            row, out = z[i, first : first + 2 * pairs], u[i, first : first + 2 * pairs]
            for j in range(pairs):
                a, b, sin, cos = row[2 * j], row[2 * j + 1], sign * token[2 * j], token[2 * j + 1]
                out[2 * j] = a * cos - b * sin
                out[2 * j + 1] = a * sin + b * cos
        row, out = z[i, features:], u[i, features:]
        for j in range(row.shape[0]):
            out[j] = row[j]


@compiled
def _run_rotate(z, waves, sign, features, u):
    share(_rotate, z.shape[0], team(z, z.size), (z, waves, sign, features, u))


def rotated(z, features, d, sign):
    """z (..., tokens, k) with the first features of each token rotated, in heads of d features."""
    u = np.empty_like(z)
    rows = -1, z.shape[-1]
    _run_rotate(z.reshape(rows), table(z.shape[-2], d, z.dtype.char), z.dtype.type(sign), features, u.reshape(rows))
    return u


def pairs(z, sign) -> bool:
    """Whether z is dense, not empty, and has tokens with an even number of features."""
    return z.ndim > 1 and z.shape[-1] % 2 == 0 and COMPILED.nonempty(z)


@twin(rotate, serves=pairs)
def _(z, sign):
    return rotated(z, z.shape[-1], z.shape[-1], sign)


def pairs_of_heads(qkv, heads, sign) -> bool:
    """Whether qkv is dense, not empty, and has heads with an even number of features."""
    return qkv.ndim == 3 and qkv.shape[-1] % (6 * heads) == 0 and COMPILED.nonempty(qkv)


@twin(rotate_heads, serves=pairs_of_heads)
def _(qkv, heads, sign):
    d = qkv.shape[-1] // 3
    return rotated(qkv, 2 * d, d // heads, sign)
