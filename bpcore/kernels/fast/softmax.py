"""Softmax and its logarithm along the last axis."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.extending import overload, register_jitable

from bpcore.functional.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed, minus, rows
from bpcore.kernels.fast.engine.exponential import bits, exp, number
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team
from bpcore.primitive import twin


def maximum(row):
    """The largest number of a row, NaN if the row has a NaN; for compiled code."""
    return max(row)


@overload(maximum)
def _maximum(row):
    def maximum32(row):  # of whole numbers in the same order, because LLVM does not vectorise a maximum of floats
        largest = np.int32(-(2**31))
        for j in range(row.shape[0]):
            rank = ordered(bits(row[j]))
            largest = rank if rank > largest else largest
        return number(ordered(largest))

    def maximum64(row):
        largest = row[0]
        for j in range(row.shape[0]):
            largest = largest if row[j] <= largest else row[j]
        return largest

    return maximum32 if row.dtype == numba.float32 else maximum64


@register_jitable
def ordered(x):
    """The bits of a float as a whole number in the order of floats. The function is its own inverse."""
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
                out[j] = minus(row[j], largest, log)
        else:
            for j in range(row.shape[0]):
                out[j] = flushed(out[j] / total, least)


@compiled
def _run_softmax(z, least, logarithm, u):
    share(_softmax, z.shape[0], team(z, COST * z.size), (z, least, logarithm, u))


@twin(softmax, serves=COMPILED.last_axis)
def _(z, axis):
    u = np.empty_like(z)
    _run_softmax(rows(z), flush_threshold(z), False, rows(u))
    return u


@twin(log_softmax, serves=COMPILED.last_axis)
def _(z, axis):
    u = np.empty_like(z)
    _run_softmax(rows(z), flush_threshold(z), True, rows(u))
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
    _run_softmax_backward(rows(u), rows(v), flush_threshold(u), False, rows(dz))
    return dz


@twin(log_softmax_backward, serves=COMPILED.last_axis)
def _(u, v, axis):
    dz = np.empty_like(u)
    _run_softmax_backward(rows(u), rows(v), flush_threshold(u), True, rows(dz))
    return dz
