"""Cross-entropy from class indices, in place."""

from __future__ import annotations

import numpy as np

from bpcore.functional.losses import cross_entropy, cross_entropy_backward, share, weighted_mean
from bpcore.kernels.numpy.blocks import flush_in_place
from bpcore.primitive import twin


def classes(t, y, weights, smoothing):
    """Whether y holds class indices of rows t, and their distributions are not smoothed."""
    return t.ndim > 1 and y.ndim == t.ndim - 1 and not smoothing


@twin(cross_entropy, serves=classes)
def _(t, y, weights, smoothing):
    phi = np.subtract(t, np.maximum.reduce(t, axis=-1, keepdims=True))
    rows, y = phi.reshape(-1, t.shape[-1]), y.reshape(-1)
    own = rows[np.arange(len(y)), y]
    np.exp(phi, out=phi)
    total = np.add.reduce(phi, axis=-1, keepdims=True)
    np.divide(phi, total, out=phi)
    ell = np.log(total.reshape(-1))
    np.subtract(ell, own, out=ell)
    return (np.add.reduce(ell) / len(ell) if weights is None else weighted_mean(ell, weights.reshape(-1))), phi


def classes_backward(phi, y, weights, v, smoothing):
    """As `classes`."""
    return classes(phi, y, weights, smoothing)


@twin(cross_entropy_backward, serves=classes_backward)
def _(phi, y, weights, v, smoothing):
    dt = phi.reshape(-1, phi.shape[-1]).copy()
    y, weights = y.reshape(-1), None if weights is None else weights.reshape(-1)
    dt[np.arange(len(y)), y] -= 1
    np.multiply(dt, share(v, weights, y.shape, 2), out=dt)
    return flush_in_place(dt).reshape(phi.shape)
