"""Twins compiled by Numba, and products by oneDNN, for NumPy arrays: the extra `fast`."""

from __future__ import annotations

try:
    import numba as _numba  # noqa: F401  the message below is for people
except ImportError as _error:
    raise ImportError("Numba is not installed: pip install 'bpcore[fast]'") from _error

import numpy as np

from bpcore.kernels.fast.dense import linear, linear_backward

ARRAY = np.ndarray

__all__ = ["linear", "linear_backward"]
