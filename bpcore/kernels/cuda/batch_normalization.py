"""Normalisation of each feature over a batch."""

from __future__ import annotations

import cupy

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import SUMMING, by_columns, each_row, kernel, pointer
from bpcore.kernels.cuda.engine.sums import finish, scratch, sum_columns, with_statistics
from bpcore.primitive import twin


@twin(batch_statistics, serves=CUDA.nonempty)
def _(z):
    n, char = z.shape[-1], z.dtype.char
    rows = z.size // n
    grid, block = by_columns(rows, n, char, SUMMING)
    mean, variance, part = scratch(n, char), scratch(n, char), scratch((grid[1], 2 * n), char)
    for about, squares in ((None, None), (mean, variance)):  # about the first row, then about the mean
        kernel("batch_normalization", "moments", char)(grid, block, (rows, n, z, pointer(about), part))
        finish("batch_normalization", "finish_moments", char, 2 * n, grid[1], rows, part, z, mean, pointer(squares))
    return mean, variance


@twin(batch_norm, serves=with_statistics(2))
def _(z, mean, variance, gamma, beta, eps):
    u, n = cupy.empty_like(z), z.shape[-1]
    each_row("batch_normalization", "batch_norm", z.dtype.char, z.size // n, n, z, mean, variance, gamma, beta, float(eps), u)
    return u


@twin(batch_norm_backward, serves=with_statistics(2))
def _(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    n = z.shape[-1]
    sum_columns(v, dbeta, z, mean, variance, dgamma, eps=float(eps))
    if not need_dz:
        return None
    dz = cupy.empty_like(z)
    arrays = (z if of_batch else 0), mean, variance, gamma, v, float(eps), dgamma, dbeta, dz
    each_row("batch_normalization", "batch_norm_backward", z.dtype.char, z.size // n, n, *arrays)
    return dz
