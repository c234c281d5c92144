"""Dropout, and its mask."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy
import numpy as np

from bpcore.functional.dropout import dropout, keep_mask
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each
from bpcore.primitive import twin

WORD = 2**64 - 1


def step_at_hand(like: Any, p: float, key: tuple[Any, ...]) -> bool:
    """Whether the step is a number, or whole numbers on the device."""
    return not isinstance(key[1], cupy.ndarray) or key[1].dtype.char in "lq"


@twin(keep_mask, serves=step_at_hand)
def _(like, p, key):
    seed, step, micro, use = key
    kept = cupy.empty(like.shape, cupy.bool_)
    of_step = (np.uint64(0), step) if isinstance(step, cupy.ndarray) else (np.uint64(step), 0)
    stream = np.uint64(seed & WORD), np.uint64(seed >> 64), *of_step, np.uint64(micro), np.uint64(use)
    bound = min(round(p * 2**32), 2**32 - 1)
    each("dropout", "keep_mask", "f", -(-kept.size // 8), kept.size, *stream, bound, kept)
    return kept


def masked(z: Any, keep: Any, p: float) -> bool:
    """Whether z is dense, and the mask is of its shape, or one for the axes between the first and the last."""
    shared = z.ndim > 1 and keep.shape == (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1])
    return CUDA.dense(z) and CUDA.mask(keep) and (keep.shape == z.shape or shared)


@twin(dropout, serves=masked)
def _(z, keep, p):
    u = cupy.empty_like(z)
    inner = 0 if keep.shape == z.shape else prod(z.shape[1:])
    each("dropout", "dropout", z.dtype.char, z.size, inner, z.shape[-1] if z.ndim else 1, z, keep, 1 / (1 - p), u)
    return u
