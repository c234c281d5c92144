"""BatchNorm in passes over blocks of rows, which threads share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

WIDE = 128  # numbers in a row for a loop that pays: rows of fewer are taken several at a time
BLOCK = 1 << 14  # numbers whose sums one thread takes: the sums are the same for any number of threads


def wide(z):
    """z (..., c) as rows of k · c numbers, k a power of 2."""
    n, width = z.size // z.shape[-1], z.shape[-1]
    while width < WIDE and n % 2 == 0:
        n, width = n // 2, width * 2
    return z.reshape(n, width)


def repeated(z, *vectors) -> Iterator[Any]:
    """Each of vectors (c,) for every number of a row of z (n, k · c)."""
    for x in vectors:
        out = np.empty((z.shape[1] // len(x), len(x)), z.dtype)
        out[...] = x
        yield out.reshape(-1)


def partial(z) -> Any:
    """Rows of a block, and two arrays for the sums of each block."""
    size = max(16, BLOCK // z.shape[1])
    return size, *np.empty((2, -(-len(z) // size), z.shape[1]), z.dtype)


def collected(sums, out):
    """Writes the sums of each feature, over blocks and over the rows that were taken together."""
    return np.add.reduce(sums.reshape(-1, len(out)), axis=0, out=out)


@compiled
def add_rows(z, total):
    """Writes the sum of the rows of z."""
    total[:] = 0
    for i in range(z.shape[0]):
        for j in range(total.shape[0]):
            total[j] += z[i, j]


@compiled
def add_squares(z, mean, square):
    """Writes the sum of (z - mean)² over the rows of z."""
    square[:] = 0
    for i in range(z.shape[0]):
        for j in range(square.shape[0]):
            d = z[i, j] - mean[j]
            square[j] += d * d


@compiled
def add_products(z, mean, v, total, product):
    """Writes the sums of v and of v (z - mean) over rows."""
    total[:] = 0
    product[:] = 0
    for i in range(z.shape[0]):
        for j in range(total.shape[0]):
            total[j] += v[i, j]
            product[j] += v[i, j] * (z[i, j] - mean[j])


@compiled
def _moments(start, stop, z, size, means, squares):
    for k in range(start, stop):
        block, mean = z[k * size : (k + 1) * size], means[k]
        add_rows(block, mean)
        for j in range(mean.shape[0]):
            mean[j] /= z.dtype.type(block.shape[0])
        add_squares(block, mean, squares[k])


@compiled
def _run_moments(z, size, means, squares):
    share(_moments, means.shape[0], team(z, z.size), (z, size, means, squares))


@twin(batch_statistics, serves=COMPILED.nonempty)
def _(z):
    mean, variance = np.empty((2, z.shape[-1]), z.dtype)
    n, z = z.size // len(mean), wide(z)
    size, means, squares = partial(z)
    _run_moments(z, size, means, squares)
    rows = np.full((len(means), 1), size, z.dtype)
    rows[-1] = len(z) - size * (len(means) - 1)
    np.multiply(collected(means * rows, mean), 1 / n, out=mean)
    (of_row,) = repeated(z, mean)
    np.subtract(means, of_row, out=means)  # the squares were about the block's mean
    np.multiply(collected(squares + rows * means * means, variance), 1 / n, out=variance)
    return mean, variance


@compiled
def scaled(start, stop, z, mean, scale, shift, u):
    """Writes (z - mean) scale + shift to u."""
    for i in range(start, stop):
        row, out = z[i], u[i]
        for j in range(row.shape[0]):
            out[j] = (row[j] - mean[j]) * scale[j] + shift[j]


@compiled
def _run_scaled(z, mean, scale, shift, u):
    share(scaled, z.shape[0], team(z, z.size), (z, mean, scale, shift, u))


@twin(batch_norm, serves=COMPILED.nonempty)
def _(z, mean, variance, gamma, beta, eps):
    u, z = np.empty(z.shape, z.dtype), wide(z)
    _run_scaled(z, *repeated(z, mean, gamma / np.sqrt(variance + eps), beta), wide(u))
    return u


@compiled
def _products(start, stop, z, size, mean, v, sums, products):
    for k in range(start, stop):
        rows = slice(k * size, (k + 1) * size)
        add_products(z[rows], mean, v[rows], sums[k], products[k])


@compiled
def _run_products(z, size, mean, v, sums, products):
    share(_products, sums.shape[0], team(z, z.size), (z, size, mean, v, sums, products))


@compiled
def combined(start, stop, z, mean, v, of_v, of_z, constant, dz):
    """Writes v of_v + (z - mean) of_z + constant to dz."""
    for i in range(start, stop):
        row, up, d = z[i], v[i], dz[i]
        for j in range(row.shape[0]):
            d[j] = up[j] * of_v[j] + (row[j] - mean[j]) * of_z[j] + constant[j]


@compiled
def _run_combined(z, mean, v, of_v, of_z, constant, dz):
    share(combined, z.shape[0], team(z, z.size), (z, mean, v, of_v, of_z, constant, dz))


@twin(batch_norm_backward, serves=COMPILED.nonempty)
def _(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    shape, share_of = z.shape, z.shape[-1] / z.size
    z, v = wide(z), wide(v)
    size, sums, products = partial(z)
    (means,) = repeated(z, mean)
    _run_products(z, size, means, v, sums, products)
    collected(sums, dbeta)
    scale = 1 / np.sqrt(variance + eps)
    np.multiply(collected(products, dgamma), scale, out=dgamma)
    if not need_dz:
        return None
    dz, of_v = np.empty(shape, z.dtype), gamma * scale
    of_z, constant = (-of_v * scale * dgamma * share_of, -of_v * dbeta * share_of) if of_batch else (np.zeros_like(of_v),) * 2
    _run_combined(z, means, v, *repeated(z, of_v, of_z, constant), wide(dz))
    return dz
