"""Dropout: its mask, a function of a key, and its arithmetic."""

from __future__ import annotations

from typing import Any

from bpcore import backend
from bpcore.array import Array
from bpcore.backend import namespace
from bpcore.primitive import primitive

__all__ = ["dropout", "keep_mask"]


@primitive
def keep_mask(like: Array, p: float, key: tuple[Any, ...]) -> Array:
    """Booleans shaped and placed like `like`, each False with probability p, drawn on the host: see `backend.keep_mask`.

    key: (seed, step, micro-batch, use), whole numbers; the step may be an int64 on the device, which is looked at here.
    """
    seed, step, *rest = key
    step = int(backend.backend_of(step).to_host(step)) if backend.is_array(step) else step
    return backend.keep_mask(like, p, (seed, step, *rest))


@primitive
def dropout(z: Array, keep: Array, p: float) -> Array:
    """z ⊙ keep / (1 - p): the mean stays.

    z (...), keep booleans of the same shape, 0 <= p < 1. Linear in z and its own adjoint: B[dropout, z](v) = dropout(v).

    Srivastava et al., 2014
    """
    return z * (namespace(z).astype(keep, z.dtype) * (1 / (1 - p)))
