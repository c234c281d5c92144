"""Twins for NumPy's arrays, compiled by Numba, with products by oneDNN: the extra `fast`."""

from __future__ import annotations

import numpy as np

from bpcore.packages import imported, pip

try:
    _numba = imported("numba", "compiled twins need Numba", pip("fast"))
except RuntimeError as _error:
    raise ImportError(str(_error)) from _error
if _numba.config.DISABLE_JIT:
    raise ImportError("compiled twins need Numba's compiler, which NUMBA_DISABLE_JIT=1 switches off: unset it")

from bpcore.kernels.fast import (  # noqa: F401  importing them registers their twins
    activations,
    arithmetic,
    batch_normalization,
    dropout,
    embedding,
    linear,
    losses,
    normalization,
    pooling,
    positions,
    recurrent,
    softmax,
    updates,
)
from bpcore.kernels.fast.engine import memory, onednn, threads

if onednn.LIBRARY is not None:  # their products and convolutions are oneDNN's alone
    from bpcore.kernels.fast import attention, convolution  # noqa: F401

ARRAY = np.ndarray
memory.keep_freed()


def report() -> dict[str, str]:
    """For `bp.backend_info()`: the threads, and which library computes products."""
    shared = "for loops and oneDNN (OMP_NUM_THREADS)" if threads.LIBRARY is not None else f"for loops, since {threads.WHY_NOT}"
    products = f"NumPy's BLAS, since {onednn.WHY_NOT}"
    if onednn.LIBRARY is not None:
        own = f"float32 by oneDNN {onednn.version(onednn.LIBRARY)} above {onednn.SMALL} multiplications"
        products = f"{own}; else NumPy's BLAS, with threads of its own"
    return {"threads": f"{threads.count()} in {threads.POOL} pool, {shared}", "products": products}
