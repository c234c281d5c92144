"""Losses in blocks that fit in the cache; cross-entropy for class indices, in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bpcore.functional.losses import (
    cross_entropy,
    cross_entropy_backward,
    examples,
    huber,
    huber_backward,
    logistic,
    logistic_backward,
    of_relative,
    relative,
    squared_error,
    squared_error_backward,
    weighted_mean,
)
from bpcore.kernels.numpy import activations
from bpcore.kernels.numpy.engine.blocks import BLOCK, flush_in_place, row_blocks
from bpcore.primitive import definition, twin


def class_indices(t, y, weights, smoothing):
    """Whether y has class indices for rows t, and there is no smoothing."""
    return t.ndim > 1 and y.ndim == t.ndim - 1 and not smoothing


@twin(cross_entropy, serves=class_indices)
def _(t, y, weights, smoothing):
    phi = np.subtract(t, np.maximum.reduce(t, axis=-1, keepdims=True))
    y = y.reshape(-1)
    own = phi.reshape(-1, t.shape[-1])[np.arange(len(y)), y]  # t_y less the maximum
    np.exp(phi, out=phi)
    total = np.add.reduce(phi, axis=-1, keepdims=True)
    np.divide(phi, total, out=phi)
    ell = np.log(total.reshape(-1))
    np.subtract(ell, own, out=ell)
    J = np.add.reduce(ell) / len(ell) if weights is None else weighted_mean(ell, weights.reshape(-1))
    return J, phi


def class_indices_backward(phi, y, weights, v, smoothing):
    """As `class_indices`."""
    return class_indices(phi, y, weights, smoothing)


@twin(cross_entropy_backward, serves=class_indices_backward)
def _(phi, y, weights, v, smoothing):
    dt = phi.reshape(-1, phi.shape[-1]).copy()
    y = y.reshape(-1)
    weights = None if weights is None else relative(weights.reshape(-1))
    dt[np.arange(len(y)), y] -= 1
    np.multiply(dt, of_relative(v, weights, y.shape, 2), out=dt)
    if weights is not None:
        dt[weights == 0] = 0
    return flush_in_place(dt).reshape(phi.shape)


def outputs_and_labels(z, y, weights, /, *others):
    """Whether z, y of its shape, and weights, one for each example, have one dtype: float32 or float64."""
    fit = y.shape == z.shape and y.dtype == z.dtype and z.dtype.char in "fd" and z.size > 0
    return fit and (weights is None or (weights.shape == examples(z) and weights.dtype == z.dtype))


def register(loss: Any, loss_backward: Any, double: Callable[..., None], slope: Callable[..., None]) -> None:
    """Register the twins of a loss and of its backward function.

    double(z, y, s, t), or with a constant before s, writes 2 ℓ of each output of a block to s, which may be NaN where z or y is
    infinite; slope(z, y, d), or with a constant before d, writes dℓ/dz to d.
    """

    @twin(loss, serves=outputs_and_labels)
    def _(z, y, weights, /, *c):
        n = math.prod(examples(z))
        width, ell, J = z.size // n, np.empty(0 if weights is None else n, z.dtype), 0.0
        labels, scratch = y.reshape(n, width), np.empty((2, min(n, max(1, BLOCK // width)), width), z.dtype)
        for rows in row_blocks(n, width):
            s, t = scratch[:, : rows.stop - rows.start]
            double(z.reshape(n, width)[rows], labels[rows], *c, s, t)
            if weights is None:
                J += float(np.add.reduce(s, axis=None))
            else:
                np.add.reduce(s, axis=1, out=ell[rows])
        J = J / n if weights is None else weighted_mean(ell, weights.reshape(n))
        return z.dtype.type(0.5 * J) if math.isfinite(J) else definition(loss)(z, y, weights, *c)

    @twin(loss_backward, serves=outputs_and_labels)
    def _(z, y, weights, v, /, *c):
        n = math.prod(examples(z))
        dz, width = np.empty(z.shape, z.dtype), z.size // n
        weights = None if weights is None else relative(weights.reshape(n))
        factor = of_relative(v, weights, (n,), 2)
        for rows in row_blocks(n, width):
            d = dz.reshape(n, width)[rows]
            slope(z.reshape(n, width)[rows], y.reshape(n, width)[rows], *c, d)
            np.multiply(d, z.dtype.type(factor) if weights is None else factor[rows], out=d)
            if weights is not None:
                d[weights[rows] == 0] = 0
            flush_in_place(d)
        return dz


def double_squared_error(z, y, s, t):
    """r² with r = z - y."""
    np.multiply(np.subtract(z, y, out=t), t, out=s)


def squared_error_slope(z, y, d):
    """r."""
    np.subtract(z, y, out=d)


def double_huber(z, y, delta, s, t):
    """i (2 |r| - i) with i = min(|r|, δ)."""
    np.abs(np.subtract(z, y, out=s), out=s)
    np.minimum(s, delta, out=t)
    np.subtract(np.add(s, s, out=s), t, out=s)
    np.multiply(s, t, out=s)


def huber_slope(z, y, delta, d):
    """min(max(r, -δ), δ)."""
    np.clip(np.subtract(z, y, out=d), -delta, delta, out=d)


def double_logistic(t, y, s, wrong):
    """2 (log(1 + e^-|t|) + (1{t >= 0} - y) t)."""
    np.log1p(np.exp(np.negative(np.abs(t, out=s), out=s), out=s), out=s)
    np.subtract(np.greater_equal(t, 0, out=wrong), y, out=wrong)
    np.add(s, np.multiply(wrong, t, out=wrong), out=s)
    np.add(s, s, out=s)


def logistic_slope(t, y, d):
    """1 / (1 + e⁻ᵗ) - y."""
    np.subtract(activations.logistic(activations.limited(t, d), d), y, out=d)


register(squared_error, squared_error_backward, double_squared_error, squared_error_slope)
register(huber, huber_backward, double_huber, huber_slope)
register(logistic, logistic_backward, double_logistic, logistic_slope)
