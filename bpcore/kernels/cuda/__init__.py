"""Twins for CuPy arrays: CUDA kernels. Importing needs CuPy, and no GPU."""

from __future__ import annotations

try:
    import cupy
except ImportError as _error:
    raise ImportError(
        f"CuPy cannot be imported ({_error}): pip install 'bpcore[cuda13]' (driver for CUDA 13) or 'bpcore[cuda12]'"
    ) from _error

from bpcore.kernels.cuda import (
    activations,
    attention,
    cublas,
    dense,
    dropout,
    embedding,
    images,
    losses,
    normalization,
    sums,
    updates,
)
from bpcore.kernels.cuda.graph import Graph as Graph  # of no primitive: training/replay.py asks for it by name

ARRAY = cupy.ndarray

for _family in (activations, attention, dense, dropout, embedding, images, losses, normalization, sums, updates):
    globals().update({name: one for name, one in vars(_family).items() if hasattr(one, "serves")})  # a twin has a condition


def report() -> dict[str, str]:
    """For `bp.backend_info()`: who computes products."""
    return {
        "products": "cuBLAS through a handle of bpcore's own" if cublas.LIBRARY is not None else f"CuPy's, since {cublas.WHY_NOT}"
    }
