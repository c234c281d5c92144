"""LayerNorm and GroupNorm in place, as many rows or images at a time as fit in the cache, some pixels of an image as one row."""

from __future__ import annotations

import functools

import numpy as np

from bpcore.functional.normalization import group_norm, group_norm_backward, grouped_shape, layer_norm, layer_norm_backward
from bpcore.functional.numerics import PART, sum_over
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.engine.blocks import BLOCK, aligned, row_blocks, row_sums, side_by_side
from bpcore.kernels.numpy.linear import add_rows
from bpcore.primitive import definition, twin


@twin(layer_norm, serves=not_half)
def _(z, gamma, beta, eps):
    if z.size <= BLOCK:
        u, mean, scale = at_once(z, gamma, beta, eps)
    else:
        rows = z.reshape(-1, z.shape[-1])
        u = aligned(rows.shape, z.dtype)
        mean, scale = np.empty((2, len(rows), 1), z.dtype)
        for part in row_blocks(*rows.shape):
            _, mean[part], scale[part] = at_once(rows[part], gamma, beta, eps, u[part])
        u, mean, scale = u.reshape(z.shape), mean.reshape(*z.shape[:-1], 1), scale.reshape(*z.shape[:-1], 1)
    return (u, mean, scale) if scale.all() else definition(layer_norm)(z, gamma, beta, eps)


def at_once(z, gamma, beta, eps, u=None):
    """layer_norm, for rows that fit in the cache; to u if there is one. Its scale is 0 where squares overflowed."""
    n = z.shape[-1]
    u = np.subtract(z, z[..., :1], out=u)
    mean = row_sums(u)
    np.divide(mean, n, out=mean)
    np.subtract(u, mean, out=u)
    scale = np.vecdot(u, u)[..., None]
    np.divide(scale, n, out=scale)
    np.add(scale, eps, out=scale)
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)
    np.multiply(u, scale, out=u)
    np.multiply(u, gamma, out=u)
    return np.add(u, beta, out=u), mean, scale


@twin(layer_norm_backward, serves=not_half)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    if z.size <= BLOCK:
        return backward_at_once(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus)
    shape = v.shape
    z, mean, scale, v = (x.reshape(-1, x.shape[-1]) for x in (z, mean, scale, v))
    plus = None if plus is None else plus.reshape(z.shape)
    parts = list(row_blocks(*z.shape))
    sums = np.empty((2, len(parts), z.shape[1]), z.dtype)
    dz = aligned(z.shape, z.dtype) if need_dz else None
    w = aligned((parts[0].stop, z.shape[1]), z.dtype)
    for i, part in enumerate(parts):
        of_part = z[part], mean[part], scale[part], gamma, v[part], *sums[:, i], need_dz, None if plus is None else plus[part]
        backward_at_once(*of_part, None if dz is None else dz[part], w[: part.stop - part.start])
    dgamma[...], dbeta[...] = sum_over(sums, 1)
    return None if dz is None else dz.reshape(shape)


def backward_at_once(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus, x=None, w=None):
    """layer_norm_backward, for rows that fit in the cache; to x if there is one. w: scratch."""
    n = z.shape[-1]
    x = np.subtract(z, z[..., :1], out=x)
    np.subtract(x, mean, out=x)
    np.multiply(x, scale, out=x)
    w = np.multiply(v, x, out=w)
    add_rows(w.reshape(-1, n), dgamma)
    add_rows(v.reshape(-1, n), dbeta)
    if not need_dz:
        return None
    np.multiply(x, np.matmul(w, gamma)[..., None] / n, out=x)  # x mean(γ v x)
    np.multiply(v, gamma, out=w)
    np.subtract(w, np.matmul(v, gamma)[..., None] / n, out=w)
    np.subtract(w, x, out=x)
    np.multiply(x, scale, out=x)
    return x if plus is None else np.add(plus, x, out=x)


FAR = 0.95  # (mean / root mean square)² up to which a variance is their difference
IMAGES = 2 * BLOCK  # numbers of images at a time: of fewer, what is done for each image takes longer


@functools.lru_cache
def pixels_in_a_row(pixels, c):
    """How many pixels to take as one row, so that rows are long, and few enough to be added one after the other."""
    times = side_by_side(pixels, c)
    return times if pixels // times <= PART else next(k for k in range(-(-pixels // PART), pixels + 1) if pixels % k == 0)


class Groups:
    """The groups of images z (n, ..., c): `rows` has them as (n, rows, width), some pixels in each row."""

    def __init__(self, z, groups):
        self.shape = n, pixels, self.groups, self.channels = grouped_shape(z, groups)
        self.numbers = pixels * self.channels
        self.times = pixels_in_a_row(pixels, z.shape[-1])
        self.laid = n, pixels // self.times, self.times * z.shape[-1]
        self.images = min(max(1, n), max(1, IMAGES // max(1, self.numbers * groups)))
        self.ones = np.ones(self.laid[1], z.dtype)

    def rows(self, z):
        return z.reshape(self.laid)

    def parts(self):
        return [slice(i, i + self.images) for i in range(0, self.shape[0], self.images)]

    def across(self, x):
        """x (n, groups), a number for each group, as (n, 1, width)."""
        wide = np.empty((len(x), self.times, self.groups, self.channels), x.dtype)
        wide[...] = x[:, None, :, None]
        return wide.reshape(len(x), 1, -1)

    def sums(self, x, y):
        """Sums over rows of x, and of x y, (n, rows, width) both: (2, n, times, groups, channels)."""
        sums = np.empty((2, len(x), x.shape[2]), x.dtype)
        np.matmul(self.ones, x, out=sums[0])
        np.einsum("nrw,nrw->nw", x, y, out=sums[1])
        return sums.reshape(2, len(x), self.times, self.groups, self.channels)

    def means(self, x):
        """Means of x (n, rows, width), and of x², infinite where that is, over each group: (n, groups) both."""
        with np.errstate(over="ignore"):
            return sum_over(self.sums(x, x), (2, 4)) / self.numbers

    def firsts(self, z):
        """The first entry of each group: (n, groups)."""
        return z.reshape(self.shape)[:, 0, :, 0]


@twin(group_norm, serves=not_half)
def _(z, gamma, beta, groups, eps):
    of = Groups(z, groups)
    rows, firsts = of.rows(z), of.firsts(z)
    u = aligned(rows.shape, z.dtype)
    mean, scale = np.empty((2, of.shape[0], 1, groups, 1), z.dtype)
    wide_gamma, wide_beta = np.tile(gamma, of.times), np.tile(beta, of.times)
    for part in of.parts():
        x = np.subtract(rows[part], of.across(firsts[part]), out=u[part])
        m, squares = of.means(x)
        rest = m
        if not np.isfinite(squares).all():  # an entry is not finite, or squares overflowed
            return definition(group_norm)(z, gamma, beta, groups, eps)
        far = m * m > FAR * squares
        if far.any():  # digits of their variance would cancel
            m = m * far
            np.subtract(x, of.across(m), out=x)
            rest, squares = of.means(x)
            m = m + rest
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
    dz = aligned(rows.shape, z.dtype)
    w, wide_gamma = aligned((of.images, *of.laid[1:]), z.dtype), np.tile(gamma, of.times)
    sums = np.empty((2, of.shape[0], of.groups, of.channels), z.dtype)  # of v and of v x
    for part in of.parts():
        x = np.subtract(rows[part], of.across(firsts[part]), out=dz[part])
        np.subtract(x, of.across(m[part]), out=x)
        sums[:, part] = np.add.reduce(of.sums(v_rows[part], x), axis=2)
        sums[1, part] *= s[part, :, None]
        mean_w, mean_wx = np.add.reduce(sums[:, part] * gamma.reshape(of.groups, -1), axis=3) / of.numbers
        if not np.isfinite(mean_w + mean_wx).all():
            return definition(group_norm_backward)(z, mean, scale, gamma, v, dgamma, dbeta, need_dz)
        if need_dz:  # s (w - (mean(w) + s x mean(w s x))), w = γ v
            np.add(np.multiply(x, of.across(mean_wx * s[part]), out=x), of.across(mean_w), out=x)
            d = np.multiply(v_rows[part], wide_gamma, out=w[: len(x)])
            np.multiply(np.subtract(d, x, out=x), of.across(s[part]), out=x)
    dbeta[...], dgamma[...] = sum_over(sums, 1).reshape(2, -1)
    return dz.reshape(z.shape) if need_dz else None
