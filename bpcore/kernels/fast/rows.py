"""Passes along rows, the last axis: softmax, and LayerNorm and RMSNorm in one pass over memory each way."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.extending import overload, register_jitable

from bpcore.kernels import serves
from bpcore.kernels.fast.dense import dense, least_of, rows
from bpcore.kernels.fast.exponential import bits, exp, number
from bpcore.kernels.fast.threads import compiled, flushed, share, team

COST = 4  # a number of these passes is worth that many of a plain one: the second thread pays sooner
PARTS = 16  # a sum over all rows is one over parts of them first: the same for any number of threads


def maximum(row):
    """The largest number of a row in compiled code; a NaN where there is one."""
    return max(row)


@overload(maximum)
def _maximum(row):
    def by_bits(row):  # as whole numbers in the same order, since a maximum of floats is not vectorised
        largest = np.int32(-(2**31))
        for j in range(row.shape[0]):
            one = ordered(bits(row[j]))
            largest = one if one > largest else largest
        return number(ordered(largest))

    def plainly(row):
        largest = row[0]
        for j in range(row.shape[0]):
            largest = largest if row[j] <= largest else row[j]
        return largest

    return by_bits if row.dtype == numba.float32 else plainly


@register_jitable
def ordered(x):
    """A float's bits as a whole number, in the order of floats; its own inverse."""
    return x ^ ((x >> np.int32(31)) & np.int32(0x7FFFFFFF))


def _along_rows(z, axis, *v):
    return axis in (-1, z.ndim - 1) and z.size > 0 and dense(z, *v)


@compiled
def _softmax(start, stop, z, least, logarithm, u):
    for i in range(start, stop):
        row, out = z[i], u[i]
        largest, total = maximum(row), z.dtype.type(0)
        for j in range(row.shape[0]):
            e = exp(row[j] - largest)
            out[j] = e
            total += e
        if logarithm:
            log = math.log(total)
            for j in range(row.shape[0]):
                out[j] = (row[j] - largest) - log
        else:
            for j in range(row.shape[0]):
                out[j] = flushed(out[j] / total, least)


@compiled
def _run_softmax(z, least, logarithm, u):
    share(_softmax, z.shape[0], team(z, COST * z.size), (z, least, logarithm, u))


@serves(_along_rows)
def softmax(z, axis):
    u = np.empty_like(z)
    _run_softmax(rows(z), least_of(z), False, rows(u))
    return u


@serves(_along_rows)
def log_softmax(z, axis):
    u = np.empty_like(z)
    _run_softmax(rows(z), least_of(z), True, rows(u))
    return u


@compiled
def _softmax_backward(start, stop, u, v, least, logarithm, dz):
    for i in range(start, stop):
        row, up, d = u[i], v[i], dz[i]
        total = u.dtype.type(0)
        if logarithm:
            for j in range(row.shape[0]):
                total += up[j]
            for j in range(row.shape[0]):
                d[j] = flushed(up[j] - exp(row[j]) * total, least)
        else:
            for j in range(row.shape[0]):
                total += row[j] * up[j]
            for j in range(row.shape[0]):
                d[j] = flushed(row[j] * (up[j] - total), least)


@compiled
def _run_softmax_backward(u, v, least, logarithm, dz):
    share(_softmax_backward, u.shape[0], team(u, COST * u.size), (u, v, least, logarithm, dz))


@serves(_along_rows)
def softmax_backward(u, axis, v):
    dz = np.empty_like(u)
    _run_softmax_backward(rows(u), rows(v), least_of(u), False, rows(dz))
    return dz


@serves(_along_rows)
def log_softmax_backward(u, axis, v):
    dz = np.empty_like(u)
    _run_softmax_backward(rows(u), rows(v), least_of(u), True, rows(dz))
    return dz


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


@serves(lambda z, gamma, beta, eps: z.size > 0 and dense(z, gamma, beta))
def layer_norm(z, gamma, beta, eps):
    return norm(z, gamma, beta, eps, True)


@serves(lambda z, gamma, eps: z.size > 0 and dense(z, gamma))
def rms_norm(z, gamma, eps):
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


@serves(lambda z, mean, scale, gamma, v, *more: z.size > 0 and dense(z, mean, scale, gamma, v, *more[:-1]))
def layer_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    return norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz, True)


@serves(lambda z, scale, gamma, v, dgamma, need_dz: z.size > 0 and dense(z, scale, gamma, v, dgamma))
def rms_norm_backward(z, scale, gamma, v, dgamma, need_dz):
    return norm_backward(z, np.zeros_like(scale), scale, gamma, v, dgamma, np.empty_like(dgamma), need_dz, False)
