"""Batch normalisation, in place and in blocks that fit in the cache, their examples side by side where there are few features."""

from __future__ import annotations

import numpy as np

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.functional.linear import rows
from bpcore.functional.numerics import sum_over
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.engine.blocks import SMALL, row_blocks, side_by_side
from bpcore.primitive import twin


def laid_wide(z, *vectors):
    """The rows of z, some of them as one, and the vectors, of a row's length, repeated alike."""
    z = rows(z)
    times = side_by_side(*z.shape)
    return (z, *vectors) if times == 1 else (z.reshape(-1, times * z.shape[1]), *(np.tile(x, times) for x in vectors))


def repeated(x, width):
    """The vector x again and again, up to this width."""
    return x if len(x) == width else np.tile(x, width // len(x))


def column_sums(x, c):
    """Σ over rows of x, which have some rows of c numbers each."""
    total = np.add.reduce(x, axis=0)
    return total if len(total) == c else np.add.reduce(total.reshape(-1, c), axis=0)


@twin(batch_statistics, serves=not_half)
def _(z):
    c = z.shape[-1]
    z, first = laid_wide(z, rows(z)[0])
    parts = list(row_blocks(*z.shape))
    means, squares = np.empty((2, len(parts), c), z.dtype)
    sizes = np.asarray([[z[part].size // c] for part in parts], z.dtype)
    for part, n, mean, square in zip(parts, sizes, means, squares, strict=True):
        x = z[part] - first
        mean[...] = column_sums(x, c) / n
        np.subtract(x, repeated(mean, len(first)), out=x)
        mean += column_sums(x, c) / n  # rounding error of a mean far from the first row
        square[...] = column_sums(np.multiply(x, x, out=x), c)
    if len(parts) == 1:
        return first[:c] + mean, square / n
    n = z.size // c
    mean = sum_over(means * sizes, 0) / n
    between = means - mean
    return first[:c] + mean, (sum_over(squares, 0) + sum_over(between * between * sizes, 0)) / n


@twin(batch_norm, serves=not_half)
def _(z, mean, variance, gamma, beta, eps):
    if z.size <= SMALL:
        u = z - mean
        np.multiply(u, gamma / np.sqrt(variance + eps), out=u)
        return np.add(u, beta, out=u)
    shape = z.shape
    z, mean, factor, beta = laid_wide(z, mean, gamma / np.sqrt(variance + eps), beta)
    u = np.empty(z.shape, z.dtype)
    for part in row_blocks(*z.shape):
        x = np.subtract(z[part], mean, out=u[part])
        np.add(np.multiply(x, factor, out=x), beta, out=x)
    return u.reshape(shape)


@twin(batch_norm_backward, serves=not_half)
def _(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    if z.size <= SMALL:
        return backward_at_once(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz)
    shape, c = z.shape, z.shape[-1]
    scale = 1 / np.sqrt(variance + eps)
    z, mean, wide_scale, factor = laid_wide(z, mean, scale, gamma * scale)
    v = v.reshape(z.shape)
    parts = list(row_blocks(*z.shape))
    vx_sums, v_sums = np.empty((2, len(parts), c), z.dtype)
    for part, vx, v_sum in zip(parts, vx_sums, v_sums, strict=True):
        x = z[part] - mean
        np.multiply(np.multiply(x, wide_scale, out=x), v[part], out=x)
        vx[...], v_sum[...] = column_sums(x, c), column_sums(v[part], c)
    dgamma[...], dbeta[...] = vx, v_sum = sum_over(vx_sums, 0), sum_over(v_sums, 0)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    n = z.size // c
    if of_batch:
        slope, shift = (repeated(x, len(mean)) for x in (scale * (vx / n), v_sum / n))
    for part in parts:
        d = dz[part]
        if of_batch:
            np.multiply(np.subtract(z[part], mean, out=d), slope, out=d)
            np.subtract(v[part], np.add(d, shift, out=d), out=d)
            np.multiply(d, factor, out=d)
        else:
            np.multiply(v[part], factor, out=d)
    return dz.reshape(shape)


def backward_at_once(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    """batch_norm_backward, for few examples."""
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
