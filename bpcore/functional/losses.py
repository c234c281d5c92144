"""Losses of section 7.4.3: J = Σ w ℓ / Σ w over the examples, w = 1 unless weights are given.

The outputs of one example lie along the last axis and ℓ sums over them; an array with one axis is one output an example.
Backward functions take v = dJ'/dJ (a number, or a scalar array) and flush what they return (see `flush`).
"""

from __future__ import annotations

from typing import Any

from bpcore.array import Array, device, namespace
from bpcore.functional.activations import sigmoid
from bpcore.functional.numerics import flush, smallest_normal
from bpcore.primitive import primitive

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "huber",
    "huber_backward",
    "logistic",
    "logistic_backward",
    "squared_error",
    "squared_error_backward",
]

Scalar = Any  # a Python number, or a scalar array on the device


def per_example(ell: Array) -> Array:
    """ℓ summed over the outputs of each example."""
    return ell if ell.ndim <= 1 else namespace(ell).sum(ell, axis=-1)


def weighted_mean(ell: Array, weights: Array | None) -> Array:
    """J = Σ w ℓ / Σ w. A scalar."""
    xp = namespace(ell)
    if weights is None:
        return xp.mean(ell)
    return xp.sum(weights * ell) / total(weights)


def total(weights: Array) -> Array:
    """Σ w, but above zero: where all weights are zero, J and its gradient are zero."""
    xp = namespace(weights)
    sum_w = xp.sum(weights)
    return xp.maximum(sum_w, xp.full_like(sum_w, smallest_normal(weights)))


def share(v: Scalar, weights: Array | None, shape: tuple[int, ...], ndim: int) -> Scalar:
    """dJ/dℓ times v: v w / Σ w, with a last axis of one where ℓ was summed over outputs. shape: that of ℓ."""
    if weights is None:
        size = 1
        for n in shape:
            size *= n
        return v / size
    w = weights * (v / total(weights))
    return namespace(w).expand_dims(w, axis=-1) if ndim > len(shape) else w


def examples(z: Array) -> tuple[int, ...]:
    """The shape of ℓ for outputs z: z without its last axis, or z itself where it has one axis or none."""
    return tuple(z.shape[:-1]) if z.ndim > 1 else tuple(z.shape)


@primitive()
def squared_error(z: Array, y: Array, weights: Array | None) -> Array:
    """ℓ = ½ ‖z - y‖², the notes' ½ (z - y)² summed over outputs.

    section 7.4.3
    """
    r = z - y
    return weighted_mean(per_example(0.5 * (r * r)), weights)


@primitive()
def squared_error_backward(z: Array, y: Array, weights: Array | None, v: Scalar) -> Array:
    """B[ℓ_MSE, z](v) = (z - y) v."""
    return flush((z - y) * share(v, weights, examples(z), z.ndim))


@primitive()
def huber(z: Array, y: Array, weights: Array | None, delta: float) -> Array:
    """ℓ = Σ ½ r² where |r| <= δ, δ (|r| - ½ δ) elsewhere, r = z - y.

    Huber, 1964
    """
    xp = namespace(z)
    size = xp.abs(z - y)
    inside = xp.minimum(size, xp.full_like(size, delta))
    return weighted_mean(per_example(inside * (size - 0.5 * inside)), weights)


@primitive()
def huber_backward(z: Array, y: Array, weights: Array | None, v: Scalar, delta: float) -> Array:
    """B[ℓ, z](v) = min(max(r, -δ), δ) v."""
    xp = namespace(z)
    bound = xp.full_like(z, delta)
    return flush(xp.maximum(xp.minimum(z - y, bound), -bound) * share(v, weights, examples(z), z.ndim))


def logistic_per_example(t: Array, y: Array) -> Array:
    """ℓ of each example, as in `logistic`."""
    xp = namespace(t)
    return per_example(xp.maximum(t, xp.zeros_like(t)) - y * t + xp.log1p(xp.exp(-xp.abs(t))))


@primitive()
def logistic(t: Array, y: Array, weights: Array | None) -> Array:
    """ℓ = log(1 + eᵗ) - y t = max(t, 0) - y t + log(1 + e^-|t|), y in 0..1 and of t's dtype.

    (7.70)
    """
    return weighted_mean(logistic_per_example(t, y), weights)


@primitive()
def logistic_backward(t: Array, y: Array, weights: Array | None, v: Scalar) -> Array:
    """B[ℓ_logistic, t](v) = (1 / (1 + e⁻ᵗ) - y) v.

    (7.70)
    """
    return flush((sigmoid(t) - y) * share(v, weights, examples(t), t.ndim))


def target_rows(t: Array, y: Array, smoothing: float) -> Array:
    """The distribution that y stands for: e_y for class indices, rows as they are; (1 - ε) of it, and ε / k each."""
    xp = namespace(t)
    k = t.shape[-1]
    if y.ndim < t.ndim:
        classes = xp.arange(k, dtype=xp.int64, device=device(y))  # in y's own dtype, uint8 say, they could wrap
        y = xp.astype(xp.expand_dims(xp.astype(y, xp.int64), axis=-1) == classes, t.dtype)  # (..., k)
    return y if not smoothing else (1 - smoothing) * y + smoothing / k


@primitive()
def cross_entropy(t: Array, y: Array, weights: Array | None, smoothing: float) -> tuple[Array, Array]:
    """ℓ = -Σ_j y_j log φ_j with φ = softmax(t): log Σ eᵗ - t_y for a class index y.

    t (..., k); y integers (...) or probability rows (..., k). Returns J, and φ (..., k) for the backward function.

    (7.71)
    """
    xp = namespace(t)
    t = t - xp.max(t, axis=-1, keepdims=True)  # exp would overflow
    e = xp.exp(t)
    total = xp.sum(e, axis=-1, keepdims=True)
    ell = -xp.sum(target_rows(t, y, smoothing) * (t - xp.log(total)), axis=-1)
    return weighted_mean(ell, weights), e / total


@primitive()
def cross_entropy_backward(phi: Array, y: Array, weights: Array | None, v: Scalar, smoothing: float) -> Array:
    """B[ℓ_ce, t](v) = (φ - e_y) v.

    (7.71); for rows y that sum to 1
    """
    weight = share(v, weights, tuple(phi.shape[:-1]), phi.ndim)
    return flush((phi - target_rows(phi, y, smoothing)) * weight)
