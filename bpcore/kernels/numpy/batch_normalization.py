"""Batch normalisation in place: the operations of the definitions, in their order, without their intermediate arrays."""

from __future__ import annotations

import numpy as np

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.functional.linear import rows
from bpcore.functional.numerics import sum_over
from bpcore.kernels.conditions import not_half
from bpcore.primitive import twin


@twin(batch_statistics, serves=not_half)
def _(z):
    flat = rows(z)
    first = flat[0].copy()
    centred = flat - first
    mean = sum_over(centred, 0) / len(flat)
    np.subtract(centred, mean, out=centred)
    rest = sum_over(centred, 0) / len(flat)
    np.multiply(centred, centred, out=centred)
    return first + (mean + rest), sum_over(centred, 0) / len(flat)


@twin(batch_norm, serves=not_half)
def _(z, mean, variance, gamma, beta, eps):
    u = z - mean
    np.multiply(u, gamma / np.sqrt(variance + eps), out=u)
    return np.add(u, beta, out=u)


@twin(batch_norm_backward, serves=not_half)
def _(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    scale = 1 / np.sqrt(variance + eps)
    v = rows(v)
    x = rows(z - mean)
    np.multiply(x, scale, out=x)
    dz = v * x
    vx, v_sum = sum_over(dz, 0), sum_over(v, 0)
    dgamma[...], dbeta[...] = vx, v_sum
    if not need_dz:
        return None
    if of_batch:
        np.subtract(v, v_sum / len(x), out=dz)
        np.subtract(dz, np.multiply(x, vx / len(x), out=x), out=dz)
        v = dz
    return np.multiply(v, gamma * scale, out=dz).reshape(z.shape)
