"""LayerNorm, in place."""

from __future__ import annotations

import numpy as np

from bpcore.functional.normalization import layer_norm, layer_norm_backward
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.linear import add_rows
from bpcore.primitive import definition, twin


@twin(layer_norm, serves=not_half)
def _(z, gamma, beta, eps):
    n = z.shape[-1]
    u = np.subtract(z, z[..., :1])
    mean = np.add.reduce(u, axis=-1, keepdims=True)
    np.divide(mean, n, out=mean)
    np.subtract(u, mean, out=u)
    scale = np.vecdot(u, u)[..., None]
    np.divide(scale, n, out=scale)
    np.add(scale, eps, out=scale)
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)
    if not scale.all():  # squares overflowed
        return definition(layer_norm)(z, gamma, beta, eps)
    np.multiply(u, scale, out=u)
    np.multiply(u, gamma, out=u)
    return np.add(u, beta, out=u), mean, scale


@twin(layer_norm_backward, serves=not_half)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    n = z.shape[-1]
    x = np.subtract(z, z[..., :1])
    np.subtract(x, mean, out=x)
    np.multiply(x, scale, out=x)
    w = np.multiply(v, x)
    add_rows(w.reshape(-1, n), dgamma)
    add_rows(v.reshape(-1, n), dbeta)
    if not need_dz:
        return None
    np.multiply(x, np.matmul(w, gamma)[..., None] / n, out=x)  # x mean(γ v x)
    np.multiply(v, gamma, out=w)
    np.subtract(w, np.matmul(v, gamma)[..., None] / n, out=w)
    np.subtract(w, x, out=w)
    np.multiply(w, scale, out=w)
    return w if plus is None else np.add(plus, w, out=w)
