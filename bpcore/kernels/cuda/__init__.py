"""Twins for CuPy's arrays: CUDA kernels. Importing this package needs CuPy, but no GPU."""

from __future__ import annotations

from bpcore.packages import CUDA, imported

try:
    cupy = imported("cupy", "CUDA kernels need CuPy", CUDA)
except RuntimeError as _error:
    raise ImportError(str(_error)) from _error

from bpcore.kernels.cuda import (  # noqa: F401  importing them registers their twins
    activations,
    arithmetic,
    attention,
    batch_normalization,
    convolution,
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
from bpcore.kernels.cuda.engine import cublas, cublaslt

ARRAY = cupy.ndarray


def report() -> dict[str, str]:
    """For `bp.backend_info()`: which library computes products, and adds a bias to them."""
    own = "cuBLAS through a handle of bpcore's own"
    return {
        "products": own if cublas.LIBRARY is not None else f"CuPy's, since {cublas.WHY_NOT}",
        "bias": "in the product, by cublasLt" if cublaslt.LIBRARY is not None else f"a kernel after it, since {cublaslt.WHY_NOT}",
    }
