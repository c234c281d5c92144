"""Losses: one pass forward and one backward; cross-entropy for class indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from bpcore.functional.losses import (
    cross_entropy,
    cross_entropy_backward,
    examples,
    huber,
    huber_backward,
    logistic,
    logistic_backward,
    relative,
    squared_error,
    squared_error_backward,
    total,
    weighted_mean,
)
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed, minus, writable
from bpcore.kernels.fast.engine.double import log1p_exp
from bpcore.kernels.fast.engine.double import logistic as sigmoid_of
from bpcore.kernels.fast.engine.exponential import exp
from bpcore.kernels.fast.engine.threads import COST, REASSOCIATE, compiled, share, team, wide
from bpcore.primitive import twin

PART = 4096  # numbers whose ℓ are summed at a time: the sum does not depend on the number of threads


def class_indices(t, y, weights, smoothing):
    """As `COMPILED.class_indices`, for t with two axes or more, without smoothing."""
    return t.ndim > 1 and not smoothing and COMPILED.class_indices(t, y, weights)


def class_indices_backward(phi, y, weights, v, smoothing):
    """As `class_indices`."""
    return class_indices(phi, y, weights, smoothing)


def flat(x, dtype):
    """x in this dtype as a writable vector."""
    return writable(np.asarray(x, dtype)).reshape(-1)


@compiled
def _expect_classes(y, k):
    for own in y:
        if own < 0 or own >= k:
            raise IndexError("class indices must be from 0 to one less than the number of outputs; recode the labels")


@compiled
def _softmax_rows(start, stop, t, y, phi, ell):
    for i in range(start, stop):
        row, u = t[i], phi[i]
        largest = row[0]
        for j in range(row.shape[0]):
            largest = row[j] if row[j] > largest else largest
        total = t.dtype.type(0)
        for j in range(row.shape[0]):
            u[j] = exp(row[j] - largest)
        for j in range(row.shape[0]):
            total += u[j]
        inverse = t.dtype.type(1) / total
        for j in range(row.shape[0]):
            u[j] *= inverse
        ell[i] = minus(largest, row[y[i]], -math.log(total))


@compiled
def _cross_entropy(t, y, phi, ell):
    _expect_classes(y, t.shape[1])
    share(_softmax_rows, t.shape[0], team(t, COST * t.size), (t, y, phi, ell))
    J = 0.0  # float64, since the examples may be many
    for i in range(ell.shape[0]):
        J += ell[i]
    return J / ell.shape[0]


@twin(cross_entropy, serves=class_indices)
def _(t, y, weights, smoothing):
    k = t.shape[-1]
    phi, ell = np.empty_like(t), np.empty(y.size, t.dtype)
    J = _cross_entropy(t.reshape(-1, k), flat(y, np.int64), phi.reshape(-1, k), ell)
    J = t.dtype.type(J) if weights is None else weighted_mean(ell, weights.reshape(-1))
    return J, phi


@compiled
def _difference_rows(start, stop, phi, y, w, scale, least, dt):
    for i in range(start, stop):
        row, d = phi[i], dt[i]
        factor = scale * w[i] if w.shape[0] else scale
        own = y[i]
        for j in range(row.shape[0]):
            d[j] = flushed(row[j] * factor, least)
        d[own] = flushed((row[own] - phi.dtype.type(1)) * factor, least)


@compiled
def _cross_entropy_backward(phi, y, w, scale, least, dt):
    _expect_classes(y, phi.shape[1])
    share(_difference_rows, phi.shape[0], team(phi, phi.size), (phi, y, w, scale, least, dt))


@twin(cross_entropy_backward, serves=class_indices_backward)
def _(phi, y, weights, v, smoothing):
    k = phi.shape[-1]
    weights = None if weights is None else relative(weights)
    w = np.empty(0, phi.dtype) if weights is None else flat(weights, phi.dtype)
    scale = v / (y.size if weights is None else total(weights))
    dt = np.empty_like(phi)
    least = flush_threshold(phi)
    scale = phi.dtype.type(scale)
    _cross_entropy_backward(phi.reshape(-1, k), flat(y, np.int64), w, scale, least, dt.reshape(-1, k))
    if weights is not None:
        dt.reshape(-1, k)[w == 0] = 0
    return dt


@numba.njit(error_model="numpy", fastmath=REASSOCIATE)  # not cached itself: `run` of `register` is, and contains it
def _sums(start, stop, f, z, y, w, c, sums):
    wide()
    for i in range(start, stop):
        part, labels, weights = z[i * PART : (i + 1) * PART], y[i * PART : (i + 1) * PART], w[i * PART : (i + 1) * PART]
        total, zero = 0.0, z.dtype.type(0)  # in float64, since the numbers may be many
        if w.shape[0]:
            for j in range(part.shape[0]):
                total += weights[j] * f(part[j], labels[j], c) if weights[j] != 0 else zero
        else:
            for j in range(part.shape[0]):
                total += f(part[j], labels[j], c)
        sums[i] = total


@numba.njit(error_model="numpy", fastmath=REASSOCIATE)
def _slopes(start, stop, f, z, y, w, c, scale, least, dz):
    wide()
    z, y, w, dz, zero = z[start:stop], y[start:stop], w[start:stop], dz[start:stop], z.dtype.type(0)
    if w.shape[0]:
        for i in range(z.shape[0]):
            dz[i] = flushed(f(z[i], y[i], c) * (scale * w[i]), least) if w[i] != 0 else zero
    else:
        for i in range(z.shape[0]):
            dz[i] = flushed(f(z[i], y[i], c) * scale, least)


def outputs_and_labels(z, y, weights, /, *others):
    """Whether z, y of its shape, and weights, one for each example, are `nonempty`."""
    return y.shape == z.shape and COMPILED.nonempty(z, y, weights) and (weights is None or weights.shape == examples(z))


def vectors(z, y, weights):
    """z and y as vectors; the weight of each number in them, nothing without weights; and Σ w over the examples."""
    n = math.prod(examples(z))
    if weights is None:
        return z.reshape(-1), y.reshape(-1), np.empty(0, z.dtype), n
    w = relative(weights).reshape(-1)
    return z.reshape(-1), y.reshape(-1), np.repeat(w, z.size // n), total(w)


def register(loss: Any, loss_backward: Any, f: Callable[..., Any], slope: Callable[..., Any]) -> None:
    """Register the twins of a loss and of its backward function: f(z, y, c) is ℓ of an output, slope(z, y, c) dℓ/dz."""
    f, slope = register_jitable(f), register_jitable(slope)

    @compiled
    def run(z, y, w, c, sums):
        share(_sums, sums.shape[0], team(z, COST * z.size), (f, z, y, w, c, sums))
        J = 0.0
        for i in range(sums.shape[0]):
            J += sums[i]
        return J

    @compiled
    def run_backward(z, y, w, c, scale, least, dz):
        share(_slopes, z.shape[0], team(z, COST * z.size), (slope, z, y, w, c, scale, least, dz))

    @twin(loss, serves=outputs_and_labels)
    def _(z, y, weights, /, *c):
        number = z.dtype.type
        *arrays, sum_w = vectors(z, y, weights)
        return number(run(*arrays, number(*c), np.empty(-(-z.size // PART))) / float(sum_w))

    @twin(loss_backward, serves=outputs_and_labels)
    def _(z, y, weights, v, /, *c):
        number, dz = z.dtype.type, np.empty_like(z)
        *arrays, sum_w = vectors(z, y, weights)
        run_backward(*arrays, number(*c), number(v / sum_w), flush_threshold(z), dz.reshape(-1))
        return dz


def _squared_error(z, y, c):
    return (z - y) * (z - y) * type(z)(0.5)


def _squared_error_slope(z, y, c):
    return z - y


def _huber(z, y, delta):
    size = abs(z - y)
    inside = delta if size > delta else size
    return inside * (size - inside * type(z)(0.5))


def _huber_slope(z, y, delta):
    r = z - y
    return delta if r > delta else (-delta if r < -delta else r)


def _logistic(t, y, c):
    zero, one, size = type(t)(0), type(t)(1), abs(t)
    wrong = one - y if t >= 0 else y
    return (wrong * size if wrong != 0 else zero) + log1p_exp(-size)


def _logistic_slope(t, y, c):
    return sigmoid_of(t) - y


register(squared_error, squared_error_backward, _squared_error, _squared_error_slope)
register(huber, huber_backward, _huber, _huber_slope)
register(logistic, logistic_backward, _logistic, _logistic_slope)
