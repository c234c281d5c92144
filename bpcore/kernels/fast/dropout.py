"""Dropout: its mask, by Philox4x64-10 with the bits of NumPy's generator, and its arithmetic. Threads share both."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from bpcore.functional.dropout import dropout, keep_mask
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import LEAST, compiled, share, team
from bpcore.philox import smallest_kept
from bpcore.primitive import twin

MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
STEPS_OF_KEY = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
SHORT = 16  # channels; a loop over fewer is slow
COST = 8  # a number of a mask costs as much as 8 of a plain pass


@intrinsic
def _multiply_high(typing_context, a, b):
    """The upper 64 bits of the product of two 64-bit words."""

    def generate(context, builder, signature, values):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in values))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


_high: Any = _multiply_high


@compiled
def _blocks(start, stop, seed, step, micro, use, bound, keep):
    for block in range(start, stop):
        a, b, c, d = np.uint64(block + 1), step, micro, use  # NumPy increments the counter before it draws
        key, other = seed, np.uint64(0)
        for _ in range(10):
            high, low = _high(MULTIPLIERS[0], a), MULTIPLIERS[0] * a
            other_high, other_low = _high(MULTIPLIERS[1], c), MULTIPLIERS[1] * c
            a, b, c, d = other_high ^ b ^ key, other_low, high ^ d ^ other, low
            key, other = key + STEPS_OF_KEY[0], other + STEPS_OF_KEY[1]
        at = 8 * block
        for word in (a, b, c, d):
            for half in (word & LOW, word >> HALF):
                if at < keep.shape[0]:
                    keep[at] = half >= bound
                at += 1


@compiled
def _keep_mask(seed, step, micro, use, bound, keep, threads):
    share(_blocks, (keep.shape[0] + 7) // 8, threads, (seed, step, micro, use, bound, keep))


def nonempty(like, p, key):
    """Whether the mask has entries."""
    return like.size > 0


@twin(keep_mask, serves=nonempty)
def _(like, p, key):
    keep = np.empty(prod(like.shape), np.bool_)
    threads = 0 if like.itemsize == 4 and COST * keep.size >= LEAST else 1  # as in `team`
    _keep_mask(*map(np.uint64, key), np.uint64(smallest_kept(p)), keep, threads)
    return keep.reshape(like.shape)


@compiled
def _drop(start, stop, z, keep, pixels, factor, u):
    c = keep.shape[1]
    while start < stop:
        pixel, first = start // c, start % c
        last = min(start + c - first, stop)
        row, kept, out = z[start:last], keep[pixel // pixels, first:], u[start:last]
        for i in range(out.shape[0]):
            out[i] = row[i] * factor if kept[i] else z.dtype.type(0)
        start = last


@compiled
def _dropout(z, keep, pixels, factor, u):
    share(_drop, u.shape[0], team(u, u.size), (z, keep, pixels, factor, u))


def masked(z, keep, p):
    """Whether z is dense, and the mask has its shape, or is one of enough channels for all pixels of an image."""
    if not (COMPILED.dense(z) and keep.ndim == z.ndim and COMPILED.mask(keep)):
        return False
    return keep.shape == z.shape or (keep.shape == (*z.shape[:1], *[1] * (z.ndim - 2), *z.shape[-1:]) and keep.shape[-1] >= SHORT)


@twin(dropout, serves=masked)
def _(z, keep, p):
    u = np.empty_like(z)
    whole = keep.shape == z.shape
    _dropout(
        z.reshape(-1),
        keep.reshape(1 if whole else len(keep), -1),
        1 if whole else z.size // max(1, keep.size),
        z.dtype.type(1 / (1 - p)),
        u.reshape(-1),
    )
    return u
