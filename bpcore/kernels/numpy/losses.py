"""Cross-entropy for class indices, in place."""

from __future__ import annotations

import numpy as np

from bpcore.functional.losses import cross_entropy, cross_entropy_backward, of_relative, relative, weighted_mean
from bpcore.kernels.numpy.engine.blocks import flush_in_place
from bpcore.primitive import twin


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
