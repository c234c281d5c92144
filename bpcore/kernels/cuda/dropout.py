"""Dropout and its mask."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy
import numpy as np

from bpcore.functional.dropout import dropout, keep_mask
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, each_row, each_wide
from bpcore.philox import smallest_kept
from bpcore.primitive import twin

WORD = 2**64 - 1  # the largest 64-bit word


def whole_step(like: Any, p: float, key: tuple[Any, ...]) -> bool:
    """Whether the step is a Python number or an int64 on the device."""
    return not isinstance(key[1], cupy.ndarray) or key[1].dtype.char in "lq"


@twin(keep_mask, serves=whole_step)
def _(like, p, key):
    seed, step, micro, use = key
    keep = cupy.empty(like.shape, cupy.bool_)
    steps = (np.uint64(0), step) if isinstance(step, cupy.ndarray) else (np.uint64(step), 0)
    stream = np.uint64(seed & WORD), np.uint64(seed >> 64), *steps, np.uint64(micro), np.uint64(use)
    each("dropout", "keep_mask", "f", -(-keep.size // 8), keep.size, *stream, smallest_kept(p), keep)
    return keep


def masked(z: Any, keep: Any, p: float) -> bool:
    """Whether z is dense, and the mask has its shape, or 1 for each axis between the first and the last."""
    by_channel = z.ndim > 1 and keep.shape == (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1])
    return CUDA.dense(z) and CUDA.mask(keep) and (keep.shape == z.shape or by_channel)


@twin(dropout, serves=masked)
def _(z, keep, p):
    u, char, factor = cupy.empty_like(z), z.dtype.char, 1 / (1 - p)
    if keep.shape == z.shape:
        each_wide("dropout", "dropout", char, z.size, z, keep, factor, u)
    elif z.size:
        n = z.shape[-1]
        each_row("dropout", "dropout_rows", char, z.size // n, n, z, keep, prod(z.shape[1:-1]), factor, u)
    return u
