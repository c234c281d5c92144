"""Dropout: its mask, which is a function of a key, and its arithmetic."""

from __future__ import annotations

from typing import Any

from bpcore.array import Array
from bpcore.backend import backend_of
from bpcore.functional.numerics import masked
from bpcore.library import is_array
from bpcore.philox import philox_mask
from bpcore.primitive import primitive

__all__ = ["dropout", "keep_mask"]


@primitive()
def keep_mask(like: Array, p: float, key: tuple[Any, ...]) -> Array:
    """Booleans of the shape of `like`, on its device, each False with probability p. Drawn on the host by `philox_mask`.

    key: (seed, step, micro-batch, use), whole numbers. The step may be an int64 on the device; then the host waits for it.
    """
    seed, step, *rest = key
    step = int(backend_of(step).to_host(step)) if is_array(step) else step
    return backend_of(like).asarray(philox_mask(tuple(like.shape), p, (seed, step, *rest)))


@primitive()
def dropout(z: Array, keep: Array, p: float) -> Array:
    """z / (1 - p) where `keep` is True, 0 elsewhere; its expected value is z.

    keep: booleans that broadcast to the shape of z; 0 <= p < 1. Linear in z and its own adjoint: B[dropout, z](v) = dropout(v).

    Srivastava et al., 2014
    """
    return masked(z * (1 / (1 - p)), keep)
