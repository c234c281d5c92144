"""BatchNorm in passes over blocks of rows, which threads share."""

from __future__ import annotations

import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.fast.dense import dense
from bpcore.kernels.fast.threads import compiled, share, team

WIDE = 128  # numbers in a row for a loop that pays: rows of fewer are taken several at a time
BLOCK = 1 << 14  # numbers whose sums one thread takes: the sums are the same for any number of threads


def wide(z):
    """z (..., c) as rows of k · c numbers, k a power of 2."""
    n, width = z.size // z.shape[-1], z.shape[-1]
    while width < WIDE and n % 2 == 0:
        n, width = n // 2, width * 2
    return z.reshape(n, width)


@compiled
def block_rows(z):
    """Rows of a block."""
    return max(16, BLOCK // z.shape[1])


@compiled
def partial(z):
    """Where the sums of each block go."""
    size = block_rows(z)
    return np.empty(((z.shape[0] + size - 1) // size, z.shape[1]), z.dtype)


@compiled
def repeated(x, z):
    """x (c,) for each number of a row of z (n, k · c)."""
    c, out = x.shape[0], np.empty(z.shape[1], z.dtype)
    for k in range(0, out.shape[0], c):
        out[k : k + c] = x
    return out


@compiled
def collect(sums, out):
    """Writes the sums of each feature over blocks, and over the rows that were taken together."""
    c = out.shape[0]
    out[:] = 0
    for k in range(sums.shape[0]):
        for j in range(0, sums.shape[1], c):
            for i in range(c):
                out[i] += sums[k, j + i]


@compiled
def _moments(start, stop, z, sums, squares):
    size = block_rows(z)
    for k in range(start, stop):
        block, total, square = z[k * size : (k + 1) * size], sums[k], squares[k]
        share_of = z.dtype.type(1) / z.dtype.type(block.shape[0])
        total[:] = 0
        square[:] = 0
        for i in range(block.shape[0]):
            row = block[i]
            for j in range(total.shape[0]):
                total[j] += row[j]
        for i in range(block.shape[0]):
            row = block[i]
            for j in range(total.shape[0]):
                d = row[j] - total[j] * share_of
                square[j] += d * d


@compiled
def _batch_statistics(z, mean, variance):
    sums, squares = partial(z), partial(z)
    share(_moments, sums.shape[0], team(z, z.size), (z, sums, squares))
    share_of = z.dtype.type(1) / z.dtype.type(z.size // mean.shape[0])
    collect(sums, mean)
    mean *= share_of
    means = repeated(mean, z)
    for k in range(sums.shape[0]):  # the squares were about the block's mean
        n = z.dtype.type(min(block_rows(z), z.shape[0] - k * block_rows(z)))
        for j in range(means.shape[0]):
            d = sums[k, j] / n - means[j]
            squares[k, j] += n * d * d
    collect(squares, variance)
    variance *= share_of


@serves(lambda z: dense(z) and z.size > 0)
def batch_statistics(z):
    mean, variance = np.empty(z.shape[-1], z.dtype), np.empty(z.shape[-1], z.dtype)
    _batch_statistics(wide(z), mean, variance)
    return mean, variance


@compiled
def _scaled(start, stop, z, mean, scale, shift, u):
    for i in range(start, stop):
        row, out = z[i], u[i]
        for j in range(row.shape[0]):
            out[j] = (row[j] - mean[j]) * scale[j] + shift[j]


@compiled
def _batch_norm(z, mean, scale, shift, u):
    share(_scaled, z.shape[0], team(z, z.size), (z, repeated(mean, z), repeated(scale, z), repeated(shift, z), u))


@serves(lambda z, mean, variance, gamma, beta, eps: dense(z, mean, variance, gamma, beta) and z.size > 0)
def batch_norm(z, mean, variance, gamma, beta, eps):
    u = np.empty(z.shape, z.dtype)
    _batch_norm(wide(z), mean, gamma / np.sqrt(variance + eps), beta, wide(u))
    return u


@compiled
def _products(start, stop, z, mean, v, sums, products):
    size = block_rows(z)
    for k in range(start, stop):
        block, of_block, total, product = z[k * size : (k + 1) * size], v[k * size : (k + 1) * size], sums[k], products[k]
        total[:] = 0
        product[:] = 0
        for i in range(block.shape[0]):
            row, up = block[i], of_block[i]
            for j in range(total.shape[0]):
                total[j] += up[j]
                product[j] += up[j] * (row[j] - mean[j])


@compiled
def _combined(start, stop, z, mean, v, of_v, of_z, constant, dz):
    for i in range(start, stop):
        row, up, d = z[i], v[i], dz[i]
        for j in range(row.shape[0]):
            d[j] = up[j] * of_v[j] + (row[j] - mean[j]) * of_z[j] + constant[j]


@compiled
def _batch_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, dz):
    sums, products, means = partial(z), partial(z), repeated(mean, z)
    share(_products, sums.shape[0], team(z, z.size), (z, means, v, sums, products))
    collect(sums, dbeta)
    collect(products, dgamma)
    dgamma *= scale
    if dz.size:
        share_of, of_v = z.dtype.type(1) / z.dtype.type(z.size // mean.shape[0]), gamma * scale
        of_z, constant = -of_v * scale * dgamma * share_of, -of_v * dbeta * share_of
        share(
            _combined, z.shape[0], team(z, z.size), (z, means, v, repeated(of_v, z), repeated(of_z, z), repeated(constant, z), dz)
        )


@serves(lambda z, mean, variance, gamma, v, eps, of_batch, *out: dense(z, mean, variance, gamma, v, *out[:2]) and z.size > 0)
def batch_norm_backward(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    scale, through = 1 / np.sqrt(variance + eps), need_dz and of_batch
    dz = np.empty(z.shape if through else (0, 1), z.dtype)
    _batch_norm_backward(wide(z), mean, scale, gamma, wide(v), dgamma, dbeta, wide(dz))
    return dz if through else np.multiply(v, gamma * scale) if need_dz else None
