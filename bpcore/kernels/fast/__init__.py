"""Twins for NumPy's arrays, compiled by Numba, with products by oneDNN: the extra `fast`."""

from __future__ import annotations

try:
    import numba as _numba  # noqa: F401  for the message below, which says what to install
except ImportError as _error:
    raise ImportError(f"Numba cannot be imported ({_error}): pip install 'bpcore[fast]'") from _error

import numpy as np

from bpcore.kernels.fast import (  # noqa: F401  importing them registers their twins
    activations,
    attention,
    batch_normalization,
    convolution,
    dropout,
    embedding,
    linear,
    losses,
    normalization,
    pooling,
    softmax,
    updates,
)
from bpcore.kernels.fast.engine import memory, onednn, threads

ARRAY = np.ndarray
memory.keep_freed()


def report() -> dict[str, str]:
    """For `bp.backend_info()`: the threads, and which library computes products."""
    pool = f"{threads.count()} in libgomp's pool, for loops and oneDNN (OMP_NUM_THREADS)"
    products = f"NumPy's BLAS, since {onednn.WHY_NOT}"
    if onednn.LIBRARY is not None:
        own = f"float32 by oneDNN {onednn.version()} above {onednn.SMALL} multiplications"
        products = f"{own}; else NumPy's BLAS, with threads of its own"
    return {"threads": pool if threads.LIBRARY is not None else "1: libgomp.so.1 is not installed", "products": products}
