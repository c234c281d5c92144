"""Losses of section 7.4.3: J = Σ w ℓ / Σ w over the examples; w = 1 where weights is None.

An example of weight 0 is left out: it adds nothing to J and its gradient is 0, also where its outputs or its label are NaN.

The outputs of an example lie along the last axis, and ℓ is a sum over them; an array with one axis has one output per example.
Backward functions take v, the gradient with respect to J (a number or a scalar array), and flush their results (see `flush`).
"""

from __future__ import annotations

from typing import Any

from bpcore.array import Array, device, namespace
from bpcore.functional.activations import sigmoid
from bpcore.functional.numerics import flush, masked, smallest_normal
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
    if tuple(weights.shape) != tuple(ell.shape):
        got = f"{tuple(ell.shape)} and weights of shape {tuple(weights.shape)}"
        raise ValueError(f"weighted_mean expected one number for each example, got ℓ of shape {got}; sum ℓ over the outputs")
    weights = relative(weights)
    return xp.sum(masked(weights * ell, weights != 0)) / total(weights)


def total(weights: Array) -> Array:
    """Σ w, but at least the smallest normal number: if all weights are 0, J and its gradient are 0, not NaN."""
    xp = namespace(weights)
    sum_w = xp.sum(weights)
    return xp.maximum(sum_w, xp.full_like(sum_w, smallest_normal(weights)))


def relative(weights: Array) -> Array:
    """The weights over the largest of them: J stays the same, and Σ w neither overflows nor vanishes."""
    xp = namespace(weights)
    largest = xp.max(weights)
    return weights / xp.maximum(largest, xp.full_like(largest, smallest_normal(weights)))


def example_weights(v: Scalar, weights: Array | None, shape: tuple[int, ...], ndim: int) -> Scalar:
    """v dJ/dℓ = v w / Σ w, with a last axis of length 1 if the outputs have `ndim` > len(shape) axes. shape: that of ℓ."""
    return of_relative(v, None if weights is None else relative(weights), shape, ndim)


def of_relative(v: Scalar, weights: Array | None, shape: tuple[int, ...], ndim: int) -> Scalar:
    """`example_weights` of weights that are `relative` already."""
    if weights is None:
        size = 1
        for n in shape:
            size *= n
        return v / size
    w = weights * (v / total(weights))
    return namespace(w).expand_dims(w, axis=-1) if ndim > len(shape) else w


def weighted(d: Array, weights: Array | None, v: Scalar, shape: tuple[int, ...]) -> Array:
    """B[J, z](v) for d = dℓ/dz: d v w / Σ w, and 0 for examples of weight 0. shape: that of ℓ."""
    weights = None if weights is None else relative(weights)
    dz = flush(d * of_relative(v, weights, shape, d.ndim))
    if weights is None:
        return dz
    counts = weights != 0
    return masked(dz, namespace(d).expand_dims(counts, axis=-1) if d.ndim > len(shape) else counts)


def examples(z: Array) -> tuple[int, ...]:
    """The shape of ℓ for outputs z: the shape of z without its last axis, or all of it if z has at most one axis."""
    return tuple(z.shape[:-1]) if z.ndim > 1 else tuple(z.shape)


@primitive()
def squared_error(z: Array, y: Array, weights: Array | None) -> Array:
    """ℓ = ½ ‖z - y‖²: the notes' ½ (z - y)², summed over outputs.

    section 7.4.3
    """
    r = z - y
    return weighted_mean(per_example(0.5 * (r * r)), weights)


@primitive()
def squared_error_backward(z: Array, y: Array, weights: Array | None, v: Scalar) -> Array:
    """B[J, z](v) = (z - y) v w / Σ w."""
    return weighted(z - y, weights, v, examples(z))


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
    """B[J, z](v) = min(max(r, -δ), δ) v w / Σ w."""
    xp = namespace(z)
    bound = xp.full_like(z, delta)
    return weighted(xp.maximum(xp.minimum(z - y, bound), -bound), weights, v, examples(z))


def logistic_per_example(t: Array, y: Array) -> Array:
    """The ℓ of `logistic` for each example."""
    xp = namespace(t)
    size = xp.abs(t)
    wrong = xp.where(t >= 0, 1 - y, y)  # the part of the label that disagrees with the sign of t
    return per_example(masked(wrong * size, wrong != 0) + xp.log1p(xp.exp(-size)))


@primitive()
def logistic(t: Array, y: Array, weights: Array | None) -> Array:
    """ℓ = log(1 + eᵗ) - y t = max(t, 0) - y t + log(1 + e^-|t|), y between 0 and 1, of the dtype of t.

    t = ±∞ gives ℓ = 0 if y is the label of its sign, else ∞.

    (7.70)
    """
    return weighted_mean(logistic_per_example(t, y), weights)


@primitive()
def logistic_backward(t: Array, y: Array, weights: Array | None, v: Scalar) -> Array:
    """B[J, t](v) = (1 / (1 + e⁻ᵗ) - y) v w / Σ w.

    (7.70)
    """
    return weighted(sigmoid(t) - y, weights, v, examples(t))


def target_rows(t: Array, y: Array, smoothing: float) -> Array:
    """The targets (..., k): e_y for class indices y (...), y itself for probabilities (..., k).

    smoothing: ε, which turns targets e into (1 - ε) e + ε / k.
    """
    xp = namespace(t)
    k = t.shape[-1]
    if y.ndim < t.ndim:
        classes = xp.arange(k, dtype=xp.int64, device=device(y))  # in the dtype of y, for example uint8, they could wrap around
        y = xp.astype(xp.expand_dims(xp.astype(y, xp.int64), axis=-1) == classes, t.dtype)  # (..., k)
    return y if not smoothing else (1 - smoothing) * y + smoothing / k


@primitive()
def cross_entropy(t: Array, y: Array, weights: Array | None, smoothing: float) -> tuple[Array, Array]:
    """ℓ = -Σ_j y_j log φ_j with φ = softmax(t): log Σ eᵗ - t_y for a class index y.

    t (..., k); y: integers (...) or probabilities (..., k). Returns J, and φ (..., k) for the backward function. A class with
    y_j = 0 adds nothing, also if φ_j = 0: a logit of -∞ leaves a class out.

    (7.71)
    """
    xp = namespace(t)
    t = t - xp.max(t, axis=-1, keepdims=True)  # exp would overflow
    e = xp.exp(t)
    sum_e = xp.sum(e, axis=-1, keepdims=True)
    target = target_rows(t, y, smoothing)
    ell = -xp.sum(masked(target * (t - xp.log(sum_e)), target != 0), axis=-1)
    return weighted_mean(ell, weights), e / sum_e


@primitive()
def cross_entropy_backward(phi: Array, y: Array, weights: Array | None, v: Scalar, smoothing: float) -> Array:
    """B[J, t](v) = (φ - e_y) v w / Σ w. Probabilities y must sum to 1.

    (7.71)
    """
    return weighted(phi - target_rows(phi, y, smoothing), weights, v, tuple(phi.shape[:-1]))
