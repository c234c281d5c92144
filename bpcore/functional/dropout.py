"""Dropout's arithmetic; the mask itself comes from the mode."""

from __future__ import annotations

from bpcore.backend import namespace
from bpcore.functional.primitive import primitive


@primitive
def dropout(z, keep, p):
    """z ⊙ keep / (1 - p): the mean stays.        Srivastava et al., 2014

    z (...), keep booleans of the same shape, 0 <= p < 1. Linear in z and its own adjoint: B[dropout, z](v) = dropout(v).
    """
    return z * (namespace(z).astype(keep, z.dtype) * (1 / (1 - p)))
