"""Softmax and its logarithm along an axis."""

from __future__ import annotations

from bpcore.array import Array, namespace
from bpcore.functional.numerics import flush
from bpcore.primitive import primitive

__all__ = ["log_softmax", "log_softmax_backward", "softmax", "softmax_backward"]


@primitive(float32=True)
def softmax(z: Array, axis: int) -> Array:
    """eᶻ / Σ eᶻ along an axis."""
    xp = namespace(z)
    e = xp.exp(z - xp.max(z, axis=axis, keepdims=True))  # subtract the maximum: exp would overflow
    return flush(e / xp.sum(e, axis=axis, keepdims=True))


@primitive(float32=True)
def softmax_backward(u: Array, v: Array, axis: int) -> Array:
    """B[softmax, z](v) = u ⊙ (v - Σ u v), the Jacobian diag(u) - u uᵀ applied to v."""
    xp = namespace(u)
    return flush(u * (v - xp.sum(u * v, axis=axis, keepdims=True)))


@primitive(float32=True)
def log_softmax(z: Array, axis: int) -> Array:
    """z - log Σ eᶻ along an axis."""
    xp = namespace(z)
    z = z - xp.max(z, axis=axis, keepdims=True)  # exp would overflow
    return z - xp.log(xp.sum(xp.exp(z), axis=axis, keepdims=True))


@primitive(float32=True)
def log_softmax_backward(u: Array, v: Array, axis: int) -> Array:
    """B[log softmax, z](v) = v - eᵘ Σ v."""
    xp = namespace(u)
    return flush(v - xp.exp(u) * xp.sum(v, axis=axis, keepdims=True))
