"""LayerNorm and RMSNorm in one pass over memory each way, and GroupNorm image by image."""

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
from bpcore.kernels.fast.engine.threads import compiled, rows, share, team
from bpcore.primitive import twin

COST = 4  # a number of these passes is worth that many of a plain one: the second thread pays sooner
PARTS = 16  # a sum over all rows is one over parts of them first: the same for any number of threads


@compiled
def _norm(start, stop, z, gamma, beta, eps, centred, u, mean, scale):
    n, one, m = z.dtype.type(z.shape[1]), z.dtype.type(1), z.dtype.type(0)
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
        mean[i], scale[i] = m, s
        for j in range(row.shape[0]):
            out[j] = gamma[j] * ((row[j] - m) * s) + beta[j]


@compiled
def _run_norm(z, gamma, beta, eps, centred, u, mean, scale):
    share(_norm, z.shape[0], team(z, COST * z.size), (z, gamma, beta, eps, centred, u, mean, scale))


def norm(z, gamma, beta, eps, centred):
    """u = γ (z - μ) / √(s² + ε) + β, μ and the scale (..., 1), μ being 0 unless `centred`."""
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
    n, zero = z.dtype.type(z.shape[1]), z.dtype.type(0)
    for part in range(start, stop):
        dgamma, dbeta = sums[0, part], sums[1, part]
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
    """Writes dγ and dβ; returns dz, or None unless need_dz."""
    n = z.shape[-1]
    sums = np.zeros((2, min(PARTS, z.size // n), n), z.dtype)
    dz = np.empty_like(z) if need_dz else None
    flat = rows(z), mean.reshape(-1), scale.reshape(-1), gamma, rows(v)
    _run_norm_backward(*flat, centred, need_dz, sums, rows(z if dz is None else dz))
    for d, parts in ((dgamma, sums[0]), (dbeta, sums[1])):
        np.add.reduce(parts, axis=0, out=d)
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
        scaled(0, z.shape[1], z[n], means, scales, beta, u[n])


@compiled
def _run_group_norm(z, gamma, beta, eps, scratch, u, mean, scale):
    share(_group_norm, z.shape[0], team(z, z.size), (z, gamma, beta, eps, scratch, u, mean, scale))


@twin(group_norm, serves=COMPILED.nonempty)
def _(z, gamma, beta, groups, eps):
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
        combined(0, dz.shape[1], z[n], means, v[n], of_v, of_z, constant, dz[n])


@compiled
def _run_group_gradient(z, mean, scale, gamma, v, scratch, sums, products, dz):
    share(_group_gradient, z.shape[0], team(z, z.size), (z, mean, scale, gamma, v, scratch, sums, products, dz))


def of_many(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    """Whether a group has 16 numbers or more: dz of fewer is what rounding leaves of its three terms."""
    return COMPILED.dense(z, mean, scale, gamma, v, dgamma, dbeta) and z.size >= 16 * mean.size > 0


@twin(group_norm_backward, serves=of_many)
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    dz = np.empty(z.shape if need_dz else (len(z), 0, z.shape[-1]), z.dtype)
    z, v = (x.reshape(len(x), -1, x.shape[-1]) for x in (z, v))
    groups, out = (mean.shape[0], mean.shape[2]), dz.reshape(len(z), z.shape[1] if need_dz else 0, z.shape[2])
    sums, products = np.empty((2, len(z), z.shape[2]), z.dtype)
    scratch = np.empty((len(z), 4, z.shape[2]), z.dtype)  # threads allocate nothing: see `share`
    _run_group_gradient(z, mean.reshape(groups), scale.reshape(groups), gamma, v, scratch, sums, products, out)
    np.add.reduce(sums, axis=0, out=dbeta)
    np.add.reduce(products, axis=0, out=dgamma)
    return dz if need_dz else None
