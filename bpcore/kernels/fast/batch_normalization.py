"""BatchNorm: passes over blocks of rows, which threads share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import all_finite, minus
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import definition, twin

WIDE = 128  # numbers that a row should have: shorter rows are joined, because short loops are slow
BLOCK = 1 << 14  # numbers that one thread sums: the sums do not depend on the number of threads


def joined_rows(z):
    """z (..., c) as a matrix with rows of k · c numbers, k a power of 2."""
    width = z.shape[-1]
    n = z.size // width
    while width < WIDE and n % 2 == 0:
        n //= 2
        width *= 2
    return z.reshape(n, width)


def repeated(z, *vectors) -> Iterator[Any]:
    """Each of the vectors (c,), repeated to the length of a row of z (n, k · c)."""
    for x in vectors:
        out = np.empty((z.shape[1] // len(x), len(x)), z.dtype)
        out[...] = x
        yield out.reshape(-1)


def block_sums(z) -> Any:
    """The number of rows in a block, and two empty arrays for sums over each block."""
    size = max(16, BLOCK // z.shape[1])
    first, second = np.empty((2, -(-len(z) // size), z.shape[1]), z.dtype)
    return size, first, second


def total(sums, out):
    """Writes the sums of each feature to out, over blocks and over joined rows, and returns it."""
    return np.add.reduce(sums.reshape(-1, len(out)), axis=0, out=out)


@compiled
def add_rows(z, first, total):
    """Writes the sum of z - first over the rows of z to total."""
    zero = z.dtype.type(0)
    total[:] = 0
    for i in range(z.shape[0]):
        for j in range(total.shape[0]):
            total[j] += minus(z[i, j], first[j], zero)


@compiled
def add_squares(z, first, mean, square):
    """Writes the sum of (z - first - mean)² over the rows of z to square."""
    square[:] = 0
    for i in range(z.shape[0]):
        for j in range(square.shape[0]):
            d = minus(z[i, j], first[j], mean[j])
            square[j] += d * d


@compiled
def add_moments(z, first, mean, rest, square):
    """Writes the sums of z - first - mean and of its square over the rows of z to rest and square."""
    rest[:] = 0
    square[:] = 0
    for i in range(z.shape[0]):
        for j in range(square.shape[0]):
            d = minus(z[i, j], first[j], mean[j])
            rest[j] += d
            square[j] += d * d


@compiled
def add_products(z, mean, v, total, product):
    """Writes the sums over rows of v to total, and of v (z - mean) to product."""
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
        add_rows(block, block[0], mean)
        for j in range(mean.shape[0]):
            mean[j] /= z.dtype.type(block.shape[0])
        add_squares(block, block[0], mean, squares[k])
        for j in range(mean.shape[0]):
            mean[j] = block[0, j] + minus(mean[j], mean[j], -mean[j])  # an infinity becomes NaN, as in the definition


@compiled
def _run_moments(z, size, means, squares):
    share(_moments, means.shape[0], team(z, z.size), (z, size, means, squares))


@twin(batch_statistics, serves=COMPILED.nonempty)
def _(z):
    mean, variance = np.empty((2, z.shape[-1]), z.dtype)
    n = z.size // len(mean)
    z = joined_rows(z)
    size, means, squares = block_sums(z)
    _run_moments(z, size, means, squares)
    rows = np.full((len(means), 1), size, z.dtype)
    rows[-1] = len(z) - size * (len(means) - 1)
    place = means.reshape(-1, len(mean))[0].copy()  # near most means: their differences from it are small
    (about,) = repeated(z, place)
    np.multiply(total((means - about) * rows, mean), 1 / n, out=mean)
    mean += place
    (about,) = repeated(z, mean)
    np.subtract(means, about, out=means)  # the squares were taken about the mean of each block
    np.multiply(total(squares + rows * means * means, variance), 1 / n, out=variance)
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
    u = np.empty(z.shape, z.dtype)
    z = joined_rows(z)
    _run_scaled(z, *repeated(z, mean, gamma / np.sqrt(variance + eps), beta), joined_rows(u))
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
def combined(start, stop, z, mean, v, factor_v, factor_z, constant, dz):
    """Writes v factor_v + (z - mean) factor_z + constant to dz."""
    for i in range(start, stop):
        row, up, d = z[i], v[i], dz[i]
        for j in range(row.shape[0]):
            d[j] = up[j] * factor_v[j] + (row[j] - mean[j]) * factor_z[j] + constant[j]


@compiled
def _run_combined(z, mean, v, factor_v, factor_z, constant, dz):
    share(combined, z.shape[0], team(z, z.size), (z, mean, v, factor_v, factor_z, constant, dz))
    return all_finite(factor_z)


@twin(batch_norm_backward, serves=COMPILED.nonempty)
def _(*args):
    z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz = args
    shape = z.shape
    inverse_n = shape[-1] / z.size
    z, v = joined_rows(z), joined_rows(v)
    size, sums, products = block_sums(z)
    (means,) = repeated(z, mean)
    _run_products(z, size, means, v, sums, products)
    total(sums, dbeta)
    scale = 1 / np.sqrt(variance + eps)
    np.multiply(total(products, dgamma), scale, out=dgamma)
    if not need_dz:
        return None
    dz = np.empty(shape, z.dtype)
    factor_v = gamma * scale
    if not of_batch:  # dz does not depend on z, which may be infinite
        zeros = np.zeros_like(gamma)
        _run_scaled(v, *repeated(z, zeros, factor_v, zeros), joined_rows(dz))
        return dz
    of_sums = factor_v * -inverse_n
    factors = repeated(z, factor_v, of_sums * scale * dgamma, of_sums * dbeta)
    if not _run_combined(z, means, v, *factors, joined_rows(dz)):
        return definition(batch_norm_backward)(*args)
    return dz
