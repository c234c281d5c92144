"""Small helpers of compiled twins: the form in which they take arrays, and the flushing of small numbers."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from bpcore.functional.numerics import smallest_normal
from bpcore.kernels.fast.engine.threads import compiled


def rows(x: np.ndarray) -> np.ndarray:
    """x (..., m) as a view (n, m)."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def writable(x: np.ndarray) -> np.ndarray:
    """x, or a copy of it, C-contiguous and writable: for read-only arrays, loops would be compiled a second time."""
    return x if x.flags.carray else x.copy()


@compiled
def flushed(x, least):
    """x, or 0 if |x| is below `least`, a number of the same dtype; None leaves x as it is. For compiled code."""
    if least is None:
        return x
    return type(x)(0) if abs(x) < least else x  # NaN stays NaN


@compiled
def all_finite(x):
    """Whether all numbers of a vector are finite. For compiled code."""
    zero = total = x.dtype.type(0)
    for j in range(x.shape[0]):
        total += x[j] * zero  # NaN if x[j] is infinite or NaN
    return total == zero


exact: Any = numba.njit(error_model="numpy", fastmath={"contract"})  # unlike `compiled`, without "reassoc"


@exact
def minus(z, first, mean):
    """(z - first) - mean, for compiled code, in this order: z - first is exact where they are close, first + mean is rounded."""
    return z - first - mean


_thresholds: dict[Any, Any] = {}


def flush_threshold(z: np.ndarray) -> Any:
    """The number below which `flush` sets entries of z to 0, in the dtype of z, remembered."""
    least = _thresholds.get(z.dtype)
    if least is None:
        least = _thresholds[z.dtype] = z.dtype.type(math.sqrt(smallest_normal(z)))
    return least


def aligned(size: int, dtype: Any) -> np.ndarray:
    """An empty vector that begins at a multiple of 64 bytes, where oneDNN's convolution reads its kernels up to 15 % faster."""
    memory = np.empty(size + 64, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize
    return memory[start : start + size]
