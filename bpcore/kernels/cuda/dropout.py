"""Dropout, and its mask."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy
import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each

WORD = 2**64 - 1


def _serves_mask(like: Any, p: float, key: tuple[Any, ...]) -> bool:
    return not isinstance(key[1], cupy.ndarray) or key[1].dtype.char in "lq"


@serves(_serves_mask)
def keep_mask(like, p, key):
    seed, step, micro, use = key
    kept = cupy.empty(like.shape, cupy.bool_)
    of_step = (np.uint64(0), step) if isinstance(step, cupy.ndarray) else (np.uint64(step), 0)
    stream = np.uint64(seed & WORD), np.uint64(seed >> 64), *of_step, np.uint64(micro), np.uint64(use)
    bound = min(round(p * 2**32), 2**32 - 1)
    each("dropout", "keep_mask", "f", -(-kept.size // 8), kept.size, *stream, bound, kept)
    return kept


def _serves_dropout(z: Any, keep: Any, p: float) -> bool:
    shared = z.ndim > 1 and keep.shape == (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1])
    return dense(z) and keep.dtype.char == "?" and keep.flags.c_contiguous and (keep.shape == z.shape or shared)


@serves(_serves_dropout)
def dropout(z, keep, p):
    u = cupy.empty_like(z)
    inner = 0 if keep.shape == z.shape else prod(z.shape[1:])
    each("dropout", "dropout", z.dtype.char, z.size, inner, z.shape[-1] if z.ndim else 1, z, keep, 1 / (1 - p), u)
    return u
