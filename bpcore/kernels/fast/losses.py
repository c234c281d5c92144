"""Cross-entropy for class indices: one pass over the rows forward and one backward."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.losses import cross_entropy, cross_entropy_backward, relative, total, weighted_mean
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed, minus, writable
from bpcore.kernels.fast.engine.exponential import exp
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team
from bpcore.primitive import twin


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
