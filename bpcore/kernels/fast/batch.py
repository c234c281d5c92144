"""BatchNorm in passes over blocks of rows, and GroupNorm image by image; threads share the blocks, or the images."""

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
def _moments(start, stop, z, means, squares):
    size = block_rows(z)
    for k in range(start, stop):
        block = z[k * size : (k + 1) * size]
        add_rows(block, means[k])
        means[k] /= z.dtype.type(block.shape[0])
        add_squares(block, means[k], squares[k])


@compiled
def _batch_statistics(z, mean, variance):
    means, squares = partial(z), partial(z)
    share(_moments, means.shape[0], team(z, z.size), (z, means, squares))
    size, share_of = block_rows(z), z.dtype.type(1) / z.dtype.type(z.size // mean.shape[0])
    sizes = np.empty((means.shape[0], 1), z.dtype)
    sizes[:] = size
    sizes[-1] = z.shape[0] - (means.shape[0] - 1) * size
    collect(means * sizes, mean)
    mean *= share_of
    means -= repeated(mean, z)
    collect(squares + sizes * means * means, variance)  # the squares were about the block's mean
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
        rows = slice(k * size, (k + 1) * size)
        add_products(z[rows], mean, v[rows], sums[k], products[k])


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


@compiled
def _group_norm(start, stop, z, gamma, beta, eps, u, mean, scale):
    groups, c = mean.shape[1], z.shape[2] // mean.shape[1]
    share_of = z.dtype.type(1) / z.dtype.type(z.shape[1] * c)
    means, scales = np.empty(z.shape[2], z.dtype), np.empty(z.shape[2], z.dtype)
    for n in range(start, stop):
        add_rows(z[n], means)
        for g in range(groups):
            of_group = slice(g * c, (g + 1) * c)
            mean[n, g] = means[of_group].sum() * share_of
            means[of_group] = mean[n, g]
        add_squares(z[n], means, scales)
        for g in range(groups):
            of_group = slice(g * c, (g + 1) * c)
            scale[n, g] = 1 / np.sqrt(scales[of_group].sum() * share_of + eps)
            scales[of_group] = gamma[of_group] * scale[n, g]
        _scaled(0, z.shape[1], z[n], means, scales, beta, u[n])


@compiled
def _group_norms(z, gamma, beta, eps, u, mean, scale):
    share(_group_norm, z.shape[0], team(z, z.size), (z, gamma, beta, eps, u, mean, scale))


@serves(lambda z, gamma, beta, groups, eps: dense(z, gamma, beta) and z.size > 0)
def group_norm(z, gamma, beta, groups, eps):
    u, mean, scale = np.empty(z.shape, z.dtype), np.empty((len(z), groups), z.dtype), np.empty((len(z), groups), z.dtype)
    images = len(z), -1, z.shape[-1]
    _group_norms(z.reshape(images), gamma, beta, z.dtype.type(eps), u.reshape(images), mean, scale)
    return u, mean.reshape(-1, 1, groups, 1), scale.reshape(-1, 1, groups, 1)


@compiled
def _group_gradient(start, stop, z, mean, scale, gamma, v, sums, products, dz):
    c = z.shape[2] // mean.shape[1]
    share_of = z.dtype.type(1) / z.dtype.type(z.shape[1] * c)
    scratch = np.empty((4, z.shape[2]), z.dtype)
    means, of_v, of_z, constant = scratch[0], scratch[1], scratch[2], scratch[3]
    for n in range(start, stop):
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
def _group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, dz):
    sums, products = np.empty((z.shape[0], z.shape[2]), z.dtype), np.empty((z.shape[0], z.shape[2]), z.dtype)
    share(_group_gradient, z.shape[0], team(z, z.size), (z, mean, scale, gamma, v, sums, products, dz))
    collect(sums, dbeta)
    collect(products, dgamma)


def _serves_group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    # dz of a group of very few numbers is what rounding leaves of its three terms
    return dense(z, mean, scale, gamma, v, dgamma, dbeta) and z.size >= 16 * mean.size > 0


@serves(_serves_group_norm_backward)
def group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    dz = np.empty(z.shape if need_dz else (len(z), 0, z.shape[-1]), z.dtype)
    z, v = (x.reshape(len(x), -1, x.shape[-1]) for x in (z, v))
    groups, out = (mean.shape[0], mean.shape[2]), dz.reshape(len(z), z.shape[1] if need_dz else 0, z.shape[2])
    _group_norm_backward(z, mean.reshape(groups), scale.reshape(groups), gamma, v, dgamma, dbeta, out)
    return dz if need_dz else None
