"""Dropout: its mask, a function of a key, and its arithmetic."""

from __future__ import annotations

from typing import Any

from bpcore.array import Array, namespace
from bpcore.backend import backend_of
from bpcore.library import is_array
from bpcore.philox import philox_mask
from bpcore.primitive import primitive

__all__ = ["dropout", "keep_mask"]


@primitive()
def keep_mask(like: Array, p: float, key: tuple[Any, ...]) -> Array:
    """Booleans shaped and placed like `like`, each False with probability p, drawn on the host: see `philox_mask`.

    key: (seed, step, micro-batch, use), whole numbers; the step may be an int64 on the device, which is looked at here.
    """
    seed, step, *rest = key
    step = int(backend_of(step).to_host(step)) if is_array(step) else step
    return backend_of(like).asarray(philox_mask(tuple(like.shape), p, (seed, step, *rest)))


@primitive()
def dropout(z: Array, keep: Array, p: float) -> Array:
    """z ⊙ keep / (1 - p): the mean stays.

    z (...), keep booleans of the same shape, 0 <= p < 1. Linear in z and its own adjoint: B[dropout, z](v) = dropout(v).

    Srivastava et al., 2014
    """
    return z * (namespace(z).astype(keep, z.dtype) * (1 / (1 - p)))
