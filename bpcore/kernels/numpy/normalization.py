"""LayerNorm, in place; GroupNorm: as many images at a time as fit in the cache, some of their pixels as one row."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import chunks
from bpcore.functional.normalization import group_norm, group_norm_backward, grouped_shape, layer_norm, layer_norm_backward
from bpcore.functional.numerics import sum_over
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.engine.blocks import BLOCK, row_blocks, side_by_side
from bpcore.kernels.numpy.linear import add_rows
from bpcore.primitive import definition, twin


@twin(layer_norm, serves=not_half)
def _(z, gamma, beta, eps):
    n = z.shape[-1]
    rows = z.reshape(-1, n)
    result = np.empty(rows.shape, z.dtype)
    means, scales = np.empty((2, len(rows), 1), z.dtype)
    for part in row_blocks(*rows.shape):
        u = np.subtract(rows[part], rows[part, :1], out=result[part])
        mean = np.add.reduce(u, axis=-1, keepdims=True, out=means[part])
        np.divide(mean, n, out=mean)
        np.subtract(u, mean, out=u)
        scale = np.vecdot(u, u, out=scales[part, 0])
        np.divide(scale, n, out=scale)
        np.add(scale, eps, out=scale)
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        if not scale.all():  # squares overflowed
            return definition(layer_norm)(z, gamma, beta, eps)
        np.multiply(u, scale[:, None], out=u)
        np.multiply(u, gamma, out=u)
        np.add(u, beta, out=u)
    of_row = (*z.shape[:-1], 1)
    return result.reshape(z.shape), means.reshape(of_row), scales.reshape(of_row)


@twin(layer_norm_backward, serves=not_half)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    n = z.shape[-1]
    rows, v_rows, mean, scale = (x.reshape(-1, x.shape[-1]) for x in (z, v, mean, scale))
    dz = np.empty(rows.shape, z.dtype)
    parts = list(row_blocks(*rows.shape))
    vx_sums, v_sums = np.empty((2, len(parts), n), z.dtype)
    for part, vx, v_sum in zip(parts, vx_sums, v_sums, strict=True):
        v, s = v_rows[part], scale[part]
        x = np.subtract(rows[part], rows[part, :1], out=dz[part])
        np.subtract(x, mean[part], out=x)
        np.multiply(x, s, out=x)
        w = np.multiply(v, x)
        add_rows(w, vx)
        add_rows(v, v_sum)
        if need_dz:
            np.multiply(x, np.matmul(w, gamma)[:, None] / n, out=x)  # x mean(γ v x)
            np.multiply(v, gamma, out=w)
            np.subtract(w, np.matmul(v, gamma)[:, None] / n, out=w)
            np.multiply(np.subtract(w, x, out=x), s, out=x)
    dgamma[...], dbeta[...] = sum_over(vx_sums, 0), sum_over(v_sums, 0)
    if not need_dz:
        return None
    dz = dz.reshape(z.shape)
    return dz if plus is None else np.add(plus, dz, out=dz)


FAR = 0.8  # (mean / root mean square)² up to which a variance is their difference


class Groups:
    """The groups of images z (n, ..., c): `rows` has them as (n, rows, width), some pixels in each row."""

    def __init__(self, z, groups):
        self.shape = _, pixels, self.groups, self.channels = grouped_shape(z, groups)
        self.numbers = pixels * self.channels
        self.times = side_by_side(pixels, z.shape[-1])
        self.width = self.times * z.shape[-1]

    def rows(self, z):
        return z.reshape(self.shape[0], self.shape[1] // self.times, self.width)

    def parts(self):
        return chunks(self.shape[0], self.numbers * self.groups, BLOCK)

    def across(self, x):
        """x (n, groups), a number for each group, as (n, 1, width)."""
        return np.tile(np.repeat(x, self.channels, axis=1), self.times)[:, None]

    def by_channel(self, x):
        """Sums of x (n, rows, width) over pixels: (n, c)."""
        return np.add.reduce(sum_over(x, 1).reshape(len(x), self.times, -1), axis=1)

    def total(self, x):
        """Sums of x (n, c) over the channels of each group: (n, groups)."""
        return np.add.reduce(x.reshape(len(x), self.groups, -1), axis=2)

    def mean(self, x):
        """Means of x (n, rows, width) over each group: (n, groups)."""
        return self.total(self.by_channel(x)) / self.numbers

    def mean_square(self, x):
        """Means of x² over each group, infinite where x² is: (n, groups)."""
        with np.errstate(over="ignore"):
            return self.mean(x * x)

    def firsts(self, z):
        """The first entry of each group: (n, groups)."""
        return z.reshape(self.shape)[:, 0, :, 0]


@twin(group_norm, serves=not_half)
def _(z, gamma, beta, groups, eps):
    of = Groups(z, groups)
    rows, firsts = of.rows(z), of.firsts(z)
    u = np.empty(rows.shape, z.dtype)
    mean, scale = np.empty((2, of.shape[0], 1, groups, 1), z.dtype)
    wide_gamma, wide_beta = np.tile(gamma, of.times), np.tile(beta, of.times)
    for part in of.parts():
        x = np.subtract(rows[part], of.across(firsts[part]), out=u[part])
        m = rest = of.mean(x)
        squares = of.mean_square(x)
        if not np.isfinite(squares).all():  # an entry is not finite, or squares overflowed
            return definition(group_norm)(z, gamma, beta, groups, eps)
        far = m * m > FAR * squares
        if far.any():  # digits of their variance would cancel
            m = m * far
            np.subtract(x, of.across(m), out=x)
            rest = of.mean(x)
            squares, m = of.mean_square(x), m + rest
        s = 1 / np.sqrt(np.maximum(squares - rest * rest, 0) + eps)
        factor = of.across(s) * wide_gamma
        shift = wide_beta - of.across(rest) * factor
        if not np.isfinite(shift).all():
            return definition(group_norm)(z, gamma, beta, groups, eps)
        np.add(np.multiply(x, factor, out=x), shift, out=x)
        mean[part, 0, :, 0], scale[part, 0, :, 0] = m, s
    return u.reshape(z.shape), mean, scale


@twin(group_norm_backward, serves=not_half)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    of = Groups(z, mean.shape[2])
    rows, v_rows, firsts = of.rows(z), of.rows(v), of.firsts(z)
    m, s = mean[:, 0, :, 0], scale[:, 0, :, 0]
    dz = np.empty(rows.shape, z.dtype)
    wide_gamma = np.tile(gamma, of.times)
    vx_sums, v_sums = np.empty((2, of.shape[0], z.shape[-1]), z.dtype)
    for part in of.parts():
        x = np.subtract(rows[part], of.across(firsts[part]), out=dz[part])
        np.subtract(x, of.across(m[part]), out=x)
        np.multiply(x, of.across(s[part]), out=x)
        w = v_rows[part] * x
        vx, v_sum = vx_sums[part], v_sums[part]
        vx[...], v_sum[...] = of.by_channel(w), of.by_channel(v_rows[part])
        mean_wx, mean_w = of.total(gamma * vx) / of.numbers, of.total(gamma * v_sum) / of.numbers
        if not (np.isfinite(mean_wx).all() and np.isfinite(mean_w).all()):
            return definition(group_norm_backward)(z, mean, scale, gamma, v, dgamma, dbeta, need_dz)
        if need_dz:  # s (w - mean(w) - x mean(w x)), w = γ v
            np.multiply(x, of.across(mean_wx), out=x)
            np.subtract(np.multiply(v_rows[part], wide_gamma, out=w), of.across(mean_w), out=w)
            np.multiply(np.subtract(w, x, out=x), of.across(s[part]), out=x)
    dgamma[...], dbeta[...] = sum_over(vx_sums, 0), sum_over(v_sums, 0)
    return dz.reshape(z.shape) if need_dz else None
