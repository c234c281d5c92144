"""Softmax and its logarithm along rows, the last axis."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.extending import overload, register_jitable

from bpcore.functional.activations import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.exponential import bits, exp, number
from bpcore.kernels.fast.engine.threads import compiled, flushed, least_of, rows, share, team
from bpcore.primitive import twin

COST = 4  # a number of these passes is worth that many of a plain one: the second thread pays sooner


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


@twin(softmax, serves=COMPILED.last_axis)
def _(z, axis):
    u = np.empty_like(z)
    _run_softmax(rows(z), least_of(z), False, rows(u))
    return u


@twin(log_softmax, serves=COMPILED.last_axis)
def _(z, axis):
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


@twin(softmax_backward, serves=COMPILED.last_axis)
def _(u, v, axis):
    dz = np.empty_like(u)
    _run_softmax_backward(rows(u), rows(v), least_of(u), False, rows(dz))
    return dz


@twin(log_softmax_backward, serves=COMPILED.last_axis)
def _(u, v, axis):
    dz = np.empty_like(u)
    _run_softmax_backward(rows(u), rows(v), least_of(u), True, rows(dz))
    return dz
