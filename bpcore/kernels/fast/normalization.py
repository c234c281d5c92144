"""LayerNorm and RMSNorm: one pass over memory forward and one backward. GroupNorm: image by image."""

from __future__ import annotations

import numpy as np

from bpcore.functional.normalization import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.batch_normalization import add_products, add_rows, add_squares, combined, scaled
from bpcore.kernels.fast.engine.arrays import rows
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team
from bpcore.primitive import twin

PARTS = 16  # sums over rows are taken over this many parts first: they do not depend on the number of threads


@compiled
def _norm(start, stop, z, gamma, beta, eps, centred, u, mean, scale):
    n = z.dtype.type(z.shape[1])
    one = z.dtype.type(1)
    m = z.dtype.type(0)
    for i in range(start, stop):
        row, out = z[i], u[i]
        if centred:
            m = z.dtype.type(0)
            for j in range(row.shape[0]):
                m += row[j]
            m /= n
        square = z.dtype.type(0)
        for j in range(row.shape[0]):
            square += (row[j] - m) * (row[j] - m)
        s = one / np.sqrt(square / n + eps)
        mean[i] = m
        scale[i] = s
        for j in range(row.shape[0]):
            out[j] = gamma[j] * ((row[j] - m) * s) + beta[j]


@compiled
def _run_norm(z, gamma, beta, eps, centred, u, mean, scale):
    share(_norm, z.shape[0], team(z, COST * z.size), (z, gamma, beta, eps, centred, u, mean, scale))


def norm(z, gamma, beta, eps, centred):
    """u = γ (z - μ) / √(s² + ε) + β, then μ and 1 / √(s² + ε), both (..., 1). μ is 0 unless `centred`."""
    u = np.empty_like(z)
    mean, scale = np.empty((2, *z.shape[:-1], 1), z.dtype)
    _run_norm(rows(z), gamma, beta, z.dtype.type(eps), centred, rows(u), mean.reshape(-1), scale.reshape(-1))
    return u, mean, scale


@twin(layer_norm, serves=COMPILED.nonempty)
def _(z, gamma, beta, eps):
    return norm(z, gamma, beta, eps, True)


@twin(rms_norm, serves=COMPILED.nonempty)
def _(z, gamma, eps):
    u, _, scale = norm(z, gamma, np.zeros_like(gamma), eps, False)
    return u, scale


@compiled
def _norm_backward(start, stop, z, mean, scale, gamma, v, centred, need_dz, sums, dz):
    n = z.dtype.type(z.shape[1])
    zero = z.dtype.type(0)
    for part in range(start, stop):
        dgamma = sums[0, part]
        dbeta = sums[1, part]
        for i in range(part * z.shape[0] // sums.shape[1], (part + 1) * z.shape[0] // sums.shape[1]):
            row, up, m, s = z[i], v[i], mean[i], scale[i]
            mean_w, mean_wx = zero, zero
            for j in range(row.shape[0]):
                x = (row[j] - m) * s
                w = up[j] * gamma[j]
                dgamma[j] += up[j] * x
                dbeta[j] += up[j]
                mean_w += w
                mean_wx += w * x
            mean_w = mean_w / n if centred else zero
            mean_wx /= n
            if need_dz:
                d = dz[i]
                for j in range(row.shape[0]):
                    d[j] = s * (up[j] * gamma[j] - mean_w - (row[j] - m) * s * mean_wx)


@compiled
def _run_norm_backward(z, mean, scale, gamma, v, centred, need_dz, sums, dz):
    share(_norm_backward, sums.shape[1], team(z, COST * z.size), (z, mean, scale, gamma, v, centred, need_dz, sums, dz))


def norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, centred):
    """Writes dgamma and dbeta. Returns dz, or None unless need_dz."""
    n = z.shape[-1]
    sums = np.zeros((2, min(PARTS, z.size // n), n), z.dtype)
    dz = np.empty_like(z) if need_dz else None
    flat = rows(z), mean.reshape(-1), scale.reshape(-1), gamma, rows(v)
    _run_norm_backward(*flat, centred, need_dz, sums, rows(z if dz is None else dz))
    np.add.reduce(sums[0], axis=0, out=dgamma)
    np.add.reduce(sums[1], axis=0, out=dbeta)
    return dz


@twin(layer_norm_backward, serves=COMPILED.nonempty)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    return norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, True)


@twin(rms_norm_backward, serves=COMPILED.nonempty)
def _(z, scale, gamma, v, dgamma, need_dz):
    return norm_backward(z, np.zeros_like(scale), scale, gamma, v, dgamma, np.empty_like(dgamma), need_dz, False)


@compiled
def _group_norm(start, stop, z, gamma, beta, eps, scratch, u, mean, scale):
    c = z.shape[2] // mean.shape[1]
    one = z.dtype.type(1)
    inverse_n = one / z.dtype.type(z.shape[1] * c)
    for n in range(start, stop):
        means = scratch[n, 0]
        scales = scratch[n, 1]
        add_rows(z[n], means)
        for g in range(mean.shape[1]):
            total = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                total += means[j]
            mean[n, g] = total * inverse_n
            for j in range(g * c, (g + 1) * c):
                means[j] = mean[n, g]
        add_squares(z[n], means, scales)
        for g in range(mean.shape[1]):
            total = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                total += scales[j]
            scale[n, g] = one / np.sqrt(total * inverse_n + eps)
            for j in range(g * c, (g + 1) * c):
                scales[j] = gamma[j] * scale[n, g]
        scaled(0, z.shape[1], z[n], means, scales, beta, u[n])


@compiled
def _run_group_norm(z, gamma, beta, eps, scratch, u, mean, scale):
    share(_group_norm, z.shape[0], team(z, z.size), (z, gamma, beta, eps, scratch, u, mean, scale))


@twin(group_norm, serves=COMPILED.nonempty)
def _(z, gamma, beta, groups, eps):
    u = np.empty(z.shape, z.dtype)
    mean, scale = np.empty((2, len(z), groups), z.dtype)
    images = len(z), -1, z.shape[-1]  # a shape
    scratch = np.empty((len(z), 2, z.shape[-1]), z.dtype)
    _run_group_norm(z.reshape(images), gamma, beta, z.dtype.type(eps), scratch, u.reshape(images), mean, scale)
    return u, mean.reshape(-1, 1, groups, 1), scale.reshape(-1, 1, groups, 1)


@compiled
def _group_gradient(start, stop, z, mean, scale, gamma, v, scratch, sums, products, dz):
    c = z.shape[2] // mean.shape[1]
    inverse_n = z.dtype.type(1) / z.dtype.type(z.shape[1] * c)
    for n in range(start, stop):
        means, factor_v, factor_z, constant = scratch[n, 0], scratch[n, 1], scratch[n, 2], scratch[n, 3]
        for j in range(z.shape[2]):
            means[j] = mean[n, j // c]
            factor_v[j] = gamma[j] * scale[n, j // c]
        add_products(z[n], means, v[n], sums[n], products[n])
        for g in range(mean.shape[1]):
            mean_w = mean_wx = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                products[n, j] *= scale[n, g]
                mean_w += factor_v[j] * sums[n, j] * inverse_n
                mean_wx += factor_v[j] * products[n, j] * inverse_n
            for j in range(g * c, (g + 1) * c):
                constant[j] = -mean_w
                factor_z[j] = -mean_wx * scale[n, g]
        combined(0, dz.shape[1], z[n], means, v[n], factor_v, factor_z, constant, dz[n])


@compiled
def _run_group_gradient(z, mean, scale, gamma, v, scratch, sums, products, dz):
    share(_group_gradient, z.shape[0], team(z, z.size), (z, mean, scale, gamma, v, scratch, sums, products, dz))


def large_groups(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    """Whether the arrays are dense, with 16 numbers or more in a group: dz of fewer is mostly rounding error of its terms."""
    return COMPILED.dense(z, mean, scale, gamma, v, dgamma, dbeta) and z.size >= 16 * mean.size > 0


@twin(group_norm_backward, serves=large_groups)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    dz = np.empty(z.shape if need_dz else (len(z), 0, z.shape[-1]), z.dtype)
    z = z.reshape(len(z), -1, z.shape[-1])
    v = v.reshape(z.shape)
    out = dz.reshape(len(z), z.shape[1] if need_dz else 0, z.shape[2])
    groups = mean.shape[0], mean.shape[2]
    sums, products = np.empty((2, len(z), z.shape[2]), z.dtype)
    scratch = np.empty((len(z), 4, z.shape[2]), z.dtype)  # threads allocate nothing: see `share`
    _run_group_gradient(z, mean.reshape(groups), scale.reshape(groups), gamma, v, scratch, sums, products, out)
    np.add.reduce(sums, axis=0, out=dbeta)
    np.add.reduce(products, axis=0, out=dgamma)
    return dz if need_dz else None
