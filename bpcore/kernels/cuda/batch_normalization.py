"""Normalisation of each feature over a batch."""

from __future__ import annotations

import cupy

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward
from bpcore.kernels.cuda.engine.launch import each
from bpcore.kernels.cuda.engine.sums import sum_columns, with_statistics
from bpcore.primitive import twin


@twin(batch_norm, serves=with_statistics(2))
def _(z, mean, variance, gamma, beta, eps):
    u = cupy.empty_like(z)
    each("batch_normalization", "batch_norm", z.dtype.char, z.size, z.shape[-1], z, mean, variance, gamma, beta, float(eps), u)
    return u


@twin(batch_norm_backward, serves=with_statistics(2))
def _(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    n = z.shape[-1]
    sum_columns(v, dbeta, z, mean, variance, dgamma, span=z.size, width=1, eps=float(eps))
    if not need_dz:
        return None
    dz = cupy.empty_like(z)
    arrays = (z if of_batch else 0), mean, variance, gamma, v, float(eps), dgamma, dbeta, dz
    each("batch_normalization", "batch_norm_backward", z.dtype.char, z.size, n, *arrays)
    return dz
