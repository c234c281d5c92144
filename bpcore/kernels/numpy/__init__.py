"""Twins for NumPy's arrays that need only NumPy: they write in place (`out=`) and go through long vectors in blocks."""

from __future__ import annotations

import numpy as np

from bpcore.kernels.numpy import (  # noqa: F401  importing them registers their twins
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
    softmax,
    updates,
)

ARRAY = np.ndarray


def report() -> dict[str, str]:
    """For `bp.backend_info()`: which library computes products."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {"products": f"NumPy's BLAS, {blas.get('name', 'unknown')} {blas.get('version', '')}, with threads of its own"}
