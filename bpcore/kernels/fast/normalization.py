"""LayerNorm and RMSNorm: one pass over memory forward and one backward. GroupNorm: image by image."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.normalization import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from bpcore.functional.numerics import PART
from bpcore.kernels.conditions import COMPILED, but_last
from bpcore.kernels.fast.batch_normalization import add_moments, add_products, combined, scaled
from bpcore.kernels.fast.engine.arrays import all_finite, exact, flush_threshold, minus, rows
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team
from bpcore.primitive import definition, twin

# Sums over rows are taken over this many parts first, or more if a part would have more than PART rows: they do not depend on the
# number of threads.
PARTS = 16
SAMPLE = 64  # pixels of an image whose mean is taken first


@exact
def inverse_deviation(z, first, mean, eps):
    """1 / √(mean((z - first - mean)²) + ε) of a matrix. Large numbers are scaled down first: their squares overflow."""
    one, n = z.dtype.type(1), z.dtype.type(z.size)
    largest, square = one, z.dtype.type(0)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            largest = max(largest, abs(z[i, j] - first - mean))
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            scaled = (z[i, j] - first - mean) / largest
            square += scaled * scaled
    return one / (largest * np.sqrt(square / n + eps / largest / largest))


@compiled
def _norm(start, stop, z, gamma, beta, eps, centred, u, mean, scale):
    n = z.dtype.type(z.shape[1])
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for i in range(start, stop):
        row, out = z[i], u[i]
        first = row[0] if centred else zero
        m, square = zero, zero
        if centred:
            for j in range(row.shape[0]):
                m += minus(row[j], first, zero)
            m /= n
        for j in range(row.shape[0]):
            d = minus(row[j], first, m)
            square += d * d
        s = one / np.sqrt(square / n + eps) if square < np.inf else inverse_deviation(z[i : i + 1], first, m, eps)
        mean[i] = m
        scale[i] = s
        for j in range(row.shape[0]):
            out[j] = gamma[j] * (minus(row[j], first, m) * s) + beta[j]


@compiled
def _run_norm(z, gamma, beta, eps, centred, u, mean, scale):
    share(_norm, z.shape[0], team(z, COST * z.size), (z, gamma, beta, eps, centred, u, mean, scale))


def norm(z, gamma, beta, eps, centred):
    """As `layer_norm`; unless `centred`, as `rms_norm` with β, and the second result is 0."""
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
def _norm_backward(start, stop, z, mean, scale, gamma, v, centred, sums, dz):
    n = z.dtype.type(z.shape[1])
    zero = z.dtype.type(0)
    for part in range(start, stop):
        dgamma = sums[0, part]
        dbeta = sums[1, part]
        for i in range(part * z.shape[0] // sums.shape[1], (part + 1) * z.shape[0] // sums.shape[1]):
            row, up, d, m, s = z[i], v[i], dz[i], mean[i], scale[i]
            first = row[0] if centred else zero
            mean_w, mean_wx = zero, zero
            for j in range(row.shape[0]):
                x = minus(row[j], first, m) * s
                d[j] = x
                w = up[j] * gamma[j]
                dgamma[j] += up[j] * x
                dbeta[j] += up[j]
                mean_w += w
                mean_wx += w * x
            mean_w = mean_w / n if centred else zero
            mean_wx /= n
            for j in range(row.shape[0]):
                d[j] = s * (up[j] * gamma[j] - mean_w - d[j] * mean_wx)


@compiled
def _run_norm_backward(z, mean, scale, gamma, v, centred, sums, dz):
    share(_norm_backward, sums.shape[1], team(z, COST * z.size), (z, mean, scale, gamma, v, centred, sums, dz))


def norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus, centred):
    """Writes dgamma and dbeta. Returns dz, or plus + dz if `plus` is not None, or None unless need_dz."""
    n = z.shape[-1]
    n_rows = z.size // n
    sums = np.zeros((2, max(min(PARTS, n_rows), n_rows // PART), n), z.dtype)
    dz = np.empty_like(z)
    _run_norm_backward(rows(z), mean.reshape(-1), scale.reshape(-1), gamma, rows(v), centred, sums, rows(dz))
    np.add.reduce(sums[0], axis=0, out=dgamma)
    np.add.reduce(sums[1], axis=0, out=dbeta)
    if not need_dz:
        return None
    return dz if plus is None else np.add(plus, dz, out=dz)


@twin(layer_norm_backward, serves=but_last(COMPILED.nonempty))
def _(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus):
    return norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, plus, True)


@twin(rms_norm_backward, serves=but_last(COMPILED.nonempty))
def _(z, scale, gamma, v, dgamma, need_dz, plus):
    return norm_backward(z, np.zeros_like(scale), scale, gamma, v, dgamma, np.empty_like(dgamma), need_dz, plus, False)


@compiled
def _group_moments(z, c, step, firsts, means, rests, squares, mean):
    """Writes to `mean` and `means` the means of the groups of c columns, less `firsts`, over each step-th row of z, and to rests
    and squares what `add_moments` does. Returns whether the first are near the means over all rows."""
    zero = z.dtype.type(0)
    means[:] = 0
    for i in range(0, z.shape[0], step):
        for j in range(means.shape[0]):
            means[j] += minus(z[i, j], firsts[j], zero)
    inverse_n = z.dtype.type(1) / z.dtype.type(c * ((z.shape[0] - 1) // step + 1))
    for g in range(mean.shape[0]):
        total = zero
        for j in range(g * c, (g + 1) * c):
            total += means[j]
        mean[g] = total * inverse_n
        for j in range(g * c, (g + 1) * c):
            means[j] = mean[g]
    add_moments(z, firsts, means, rests, squares)
    near = True
    for g in range(mean.shape[0]):
        total = rest = zero
        for j in range(g * c, (g + 1) * c):
            total += squares[j]
            rest += rests[j]
        near = near and total < np.inf and rest * rest <= z.dtype.type(0.25 * c * z.shape[0]) * total
    return near


@compiled
def _group_norm(start, stop, z, gamma, beta, eps, scratch, u, mean, scale):
    c = z.shape[2] // mean.shape[1]
    one = z.dtype.type(1)
    inverse_n = one / z.dtype.type(z.shape[1] * c)
    for n in range(start, stop):
        firsts, means, scales = scratch[n, 0], scratch[n, 1], scratch[n, 2]
        for j in range(z.shape[2]):
            firsts[j] = z[n, 0, j // c * c]
        rests = u[n, 0]  # scratch, until u is written
        step = max(1, z.shape[1] // SAMPLE)
        while not _group_moments(z[n], c, step, firsts, means, rests, scales, mean[n]) and step > 1:
            step = 1  # the sample's means are far from the means
        for g in range(mean.shape[1]):
            total = rest = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                total += scales[j]
                rest += rests[j]
            if total < np.inf:
                rest *= inverse_n  # rounding error of a mean far from the first entry
                mean[n, g] += rest
                for j in range(g * c, (g + 1) * c):
                    means[j] = mean[n, g]
                factor = one / np.sqrt(max(total * inverse_n - rest * rest, z.dtype.type(0)) + eps)
            else:
                factor = inverse_deviation(z[n, :, g * c : (g + 1) * c], firsts[g * c], mean[n, g], eps)
            scale[n, g] = factor
            for j in range(g * c, (g + 1) * c):
                scales[j] = gamma[j] * factor
                means[j] = beta[j] - means[j] * scales[j]
        scaled(0, z.shape[1], z[n], firsts, scales, means, u[n])


@compiled
def _run_group_norm(z, gamma, beta, eps, scratch, u, mean, scale):
    share(_group_norm, z.shape[0], team(z, z.size), (z, gamma, beta, eps, scratch, u, mean, scale))
    return all_finite(gamma)


@twin(group_norm, serves=COMPILED.nonempty)
def _(z, gamma, beta, groups, eps):
    u = np.empty(z.shape, z.dtype)
    mean, scale = np.empty((2, len(z), groups), z.dtype)
    images = len(z), -1, z.shape[-1]  # a shape
    scratch = np.empty((len(z), 3, z.shape[-1]), z.dtype)
    # γ multiplies the mean too, and infinities of both signs would be NaN
    if not _run_group_norm(z.reshape(images), gamma, beta, z.dtype.type(eps), scratch, u.reshape(images), mean, scale):
        return definition(group_norm)(z, gamma, beta, groups, eps)
    return u, mean.reshape(-1, 1, groups, 1), scale.reshape(-1, 1, groups, 1)


@compiled
def _group_gradient(start, stop, z, mean, scale, gamma, v, scratch, sums, products, dz):
    c = z.shape[2] // mean.shape[1]
    inverse_n = z.dtype.type(1) / z.dtype.type(z.shape[1] * c)
    for n in range(start, stop):
        firsts, factor_v, factor_z, constant, apart = scratch[n, 0], scratch[n, 1], scratch[n, 2], scratch[n, 3], scratch[n, 4]
        for j in range(z.shape[2]):
            first = z[n, 0, j // c * c]
            firsts[j] = first + mean[n, j // c]  # the mean, rounded by `apart`
            apart[j] = minus(firsts[j], first, mean[n, j // c])
            factor_v[j] = gamma[j] * scale[n, j // c]
        add_products(z[n], firsts, v[n], sums[n], products[n])
        for g in range(mean.shape[1]):
            mean_w = mean_wx = z.dtype.type(0)
            for j in range(g * c, (g + 1) * c):
                products[n, j] = (products[n, j] + apart[j] * sums[n, j]) * scale[n, g]
                mean_w += factor_v[j] * sums[n, j] * inverse_n
                mean_wx += factor_v[j] * products[n, j] * inverse_n
            for j in range(g * c, (g + 1) * c):
                factor_z[j] = -mean_wx * scale[n, g]
                constant[j] = apart[j] * factor_z[j] - mean_w
        combined(0, dz.shape[1], z[n], firsts, v[n], factor_v, factor_z, constant, dz[n])


@compiled
def _run_group_gradient(z, mean, scale, gamma, v, scratch, sums, products, least, dz):
    share(_group_gradient, z.shape[0], team(z, z.size), (z, mean, scale, gamma, v, scratch, sums, products, dz))
    small = False  # whether the square of a scale is too small for its products
    for n in range(scale.shape[0]):
        for g in range(scale.shape[1]):
            small = small or scale[n, g] < least
    return small


def large_groups(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    """Whether the arrays are dense, with 16 numbers or more in a group: dz of fewer is mostly rounding error of its terms."""
    return COMPILED.dense(z, mean, scale, gamma, v, dgamma, dbeta) and z.size >= 16 * mean.size > 0


@twin(group_norm_backward, serves=large_groups)
def _(*args):
    z, mean, scale, gamma, v, dgamma, dbeta, need_dz = args
    dz = np.empty(z.shape if need_dz else (len(z), 0, z.shape[-1]), z.dtype)
    z = z.reshape(len(z), -1, z.shape[-1])
    v = v.reshape(z.shape)
    out = dz.reshape(len(z), z.shape[1] if need_dz else 0, z.shape[2])
    groups = mean.shape[0], mean.shape[2]
    sums, products = np.empty((2, len(z), z.shape[2]), z.dtype)
    scratch = np.empty((len(z), 5, z.shape[2]), z.dtype)  # threads allocate nothing: see `share`
    scales, least = scale.reshape(groups), z.dtype.type(1e4 * flush_threshold(z))
    small = _run_group_gradient(z, mean.reshape(groups), scales, gamma, v, scratch, sums, products, least, out)
    np.add.reduce(sums, axis=0, out=dbeta)
    np.add.reduce(products, axis=0, out=dgamma)
    if small or not math.isfinite(dgamma.dot(gamma)):  # an entry is huge or not finite, or products overflowed
        return definition(group_norm_backward)(*args)
    return dz if need_dz else None
