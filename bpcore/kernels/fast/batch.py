"""BatchNorm in passes over blocks of rows, and GroupNorm image by image; threads share the blocks, or the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


@serves(lambda z: dense(z) and z.size > 0)
def batch_statistics(z):
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
def _scaled(start, stop, z, mean, scale, shift, u):
    for i in range(start, stop):
        row, out = z[i], u[i]
        for j in range(row.shape[0]):
            out[j] = (row[j] - mean[j]) * scale[j] + shift[j]


@compiled
def _run_scaled(z, mean, scale, shift, u):
    share(_scaled, z.shape[0], team(z, z.size), (z, mean, scale, shift, u))


@serves(lambda z, mean, variance, gamma, beta, eps: dense(z, mean, variance, gamma, beta) and z.size > 0)
def batch_norm(z, mean, variance, gamma, beta, eps):
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
def _combined(start, stop, z, mean, v, of_v, of_z, constant, dz):
    for i in range(start, stop):
        row, up, d = z[i], v[i], dz[i]
        for j in range(row.shape[0]):
            d[j] = up[j] * of_v[j] + (row[j] - mean[j]) * of_z[j] + constant[j]


@compiled
def _run_combined(z, mean, v, of_v, of_z, constant, dz):
    share(_combined, z.shape[0], team(z, z.size), (z, mean, v, of_v, of_z, constant, dz))


@serves(lambda z, mean, variance, gamma, v, eps, of_batch, *out: dense(z, mean, variance, gamma, v, *out[:2]) and z.size > 0)
def batch_norm_backward(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
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


@compiled
def _group_norm(start, stop, z, gamma, beta, eps, scratch, u, mean, scale):
    c = z.shape[2] // mean.shape[1]
    share_of, one = z.dtype.type(1) / z.dtype.type(z.shape[1] * c), z.dtype.type(1)
    for n in range(start, stop):
        means, scales = scratch[n, 0], scratch[n, 1]
        add_rows(z[n], means)
        for g in range(mean.shape[1]):
            total = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                total += means[j]
            mean[n, g] = total * share_of
            for j in range(g * c, (g + 1) * c):
                means[j] = mean[n, g]
        add_squares(z[n], means, scales)
        for g in range(mean.shape[1]):
            total = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                total += scales[j]
            scale[n, g] = one / np.sqrt(total * share_of + eps)
            for j in range(g * c, (g + 1) * c):
                scales[j] = gamma[j] * scale[n, g]
        _scaled(0, z.shape[1], z[n], means, scales, beta, u[n])


@compiled
def _run_group_norm(z, gamma, beta, eps, scratch, u, mean, scale):
    share(_group_norm, z.shape[0], team(z, z.size), (z, gamma, beta, eps, scratch, u, mean, scale))


@serves(lambda z, gamma, beta, groups, eps: dense(z, gamma, beta) and z.size > 0)
def group_norm(z, gamma, beta, groups, eps):
    u, mean, scale = np.empty(z.shape, z.dtype), np.empty((len(z), groups), z.dtype), np.empty((len(z), groups), z.dtype)
    images = len(z), -1, z.shape[-1]
    scratch = np.empty((len(z), 2, z.shape[-1]), z.dtype)
    _run_group_norm(z.reshape(images), gamma, beta, z.dtype.type(eps), scratch, u.reshape(images), mean, scale)
    return u, mean.reshape(-1, 1, groups, 1), scale.reshape(-1, 1, groups, 1)


@compiled
def _group_gradient(start, stop, z, mean, scale, gamma, v, scratch, sums, products, dz):
    c = z.shape[2] // mean.shape[1]
    share_of = z.dtype.type(1) / z.dtype.type(z.shape[1] * c)
    for n in range(start, stop):
        means, of_v, of_z, constant = scratch[n, 0], scratch[n, 1], scratch[n, 2], scratch[n, 3]
        for j in range(z.shape[2]):
            means[j] = mean[n, j // c]
            of_v[j] = gamma[j] * scale[n, j // c]
        add_products(z[n], means, v[n], sums[n], products[n])
        for g in range(mean.shape[1]):
            of_w, of_wx = z.dtype.type(0), z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                products[n, j] *= scale[n, g]
                of_w += of_v[j] * sums[n, j] * share_of
                of_wx += of_v[j] * products[n, j] * share_of
            for j in range(g * c, (g + 1) * c):
                constant[j] = -of_w
                of_z[j] = -of_wx * scale[n, g]
        _combined(0, dz.shape[1], z[n], means, v[n], of_v, of_z, constant, dz[n])


@compiled
def _run_group_gradient(z, mean, scale, gamma, v, scratch, sums, products, dz):
    share(_group_gradient, z.shape[0], team(z, z.size), (z, mean, scale, gamma, v, scratch, sums, products, dz))


def _serves_group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    # dz of a group of very few numbers is what rounding leaves of its three terms
    return dense(z, mean, scale, gamma, v, dgamma, dbeta) and z.size >= 16 * mean.size > 0


@serves(_serves_group_norm_backward)
def group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    dz = np.empty(z.shape if need_dz else (len(z), 0, z.shape[-1]), z.dtype)
    z, v = (x.reshape(len(x), -1, x.shape[-1]) for x in (z, v))
    groups, out = (mean.shape[0], mean.shape[2]), dz.reshape(len(z), z.shape[1] if need_dz else 0, z.shape[2])
    sums, products = np.empty((2, len(z), z.shape[2]), z.dtype)
    scratch = np.empty((len(z), 4, z.shape[2]), z.dtype)  # threads allocate nothing: see `share`
    _run_group_gradient(z, mean.reshape(groups), scale.reshape(groups), gamma, v, scratch, sums, products, out)
    np.add.reduce(sums, axis=0, out=dbeta)
    np.add.reduce(products, axis=0, out=dgamma)
    return dz if need_dz else None
