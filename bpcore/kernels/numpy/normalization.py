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
    u = np.subtract(z, z[..., :1])
    mean = np.add.reduce(u, axis=-1, keepdims=True)
    np.divide(mean, n, out=mean)
    np.subtract(u, mean, out=u)
    scale = np.vecdot(u, u)[..., None]
    np.divide(scale, n, out=scale)
    np.add(scale, eps, out=scale)
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)
    if not scale.all():  # squares overflowed
        return definition(layer_norm)(z, gamma, beta, eps)
    np.multiply(u, scale, out=u)
    np.multiply(u, gamma, out=u)
    return np.add(u, beta, out=u), mean, scale


@twin(layer_norm_backward, serves=not_half)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    if z.size <= BLOCK:
        return backward_at_once(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus)
    z, mean, scale, v_rows = (x.reshape(-1, x.shape[-1]) for x in (z, mean, scale, v))
    plus = None if plus is None else plus.reshape(z.shape)
    parts = list(row_blocks(*z.shape))
    sums = np.empty((2, len(parts), z.shape[1]), z.dtype)
    dz = np.empty(z.shape, z.dtype) if need_dz else None
    for i, part in enumerate(parts):
        x = None if plus is None else plus[part]
        d = backward_at_once(z[part], mean[part], scale[part], gamma, v_rows[part], *sums[:, i], need_dz, x)
        if dz is not None:
            dz[part] = d
    dgamma[...], dbeta[...] = sum_over(sums, 1)
    return None if dz is None else dz.reshape(v.shape)


def backward_at_once(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    """layer_norm_backward, for rows that fit in the cache."""
    n = z.shape[-1]
    x = np.subtract(z, z[..., :1])
    np.subtract(x, mean, out=x)
    np.multiply(x, scale, out=x)
    w = np.multiply(v, x)
    add_rows(w.reshape(-1, n), dgamma)
    add_rows(v.reshape(-1, n), dbeta)
    if not need_dz:
        return None
    np.multiply(x, np.matmul(w, gamma)[..., None] / n, out=x)  # x mean(γ v x)
    np.multiply(v, gamma, out=w)
    np.subtract(w, np.matmul(v, gamma)[..., None] / n, out=w)
    np.subtract(w, x, out=w)
    np.multiply(w, scale, out=w)
    return w if plus is None else np.add(plus, w, out=w)


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
