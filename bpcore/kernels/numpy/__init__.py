"""Twins for NumPy arrays by NumPy alone: results written in place (`out=`), and passes over long vectors in blocks."""

from __future__ import annotations

import numpy as np

from bpcore.kernels.numpy import (  # noqa: F401  importing them registers their twins
    activations,
    attention,
    convolution,
    embedding,
    linear,
    losses,
    normalization,
    pooling,
    updates,
)

ARRAY = np.ndarray


def report() -> dict[str, str]:
    """For `bp.backend_info()`: who computes products."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"products": f"NumPy's BLAS, {blas.get('name')} {blas.get('version')}, with threads of its own"}
