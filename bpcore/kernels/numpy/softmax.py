"""Softmax and its logarithm over the last axis: in place, in blocks of rows."""

from __future__ import annotations

import numpy as np

from bpcore.functional.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.kernels.numpy.engine.blocks import BLOCK, aligned, flush_in_place, flush_positive, row_blocks, row_sums
from bpcore.primitive import twin


def last_axis(first, /, *others):
    """Whether the axis, the last argument, is the last one; the arrays, in one shape, are float32 or float64."""
    dtype, shape = first.dtype, first.shape
    for x in others[:-1]:
        if x.dtype != dtype or x.shape != shape:
            return False
    return dtype.char in "fd" and first.size > 0 and others[-1] in (-1, len(shape) - 1)


def by_rows(run, *arrays):
    """What `run(*rows of the arrays, rows of the result)` writes, in their shape."""
    if arrays[0].size <= BLOCK:
        result = np.empty(arrays[0].shape, arrays[0].dtype)
        run(*arrays, result)
        return result
    width = arrays[0].shape[-1]
    flat = [x.reshape(-1, width) for x in arrays]
    result = aligned(flat[0].shape, flat[0].dtype)
    for part in row_blocks(*result.shape):
        run(*(x[part] for x in flat), result[part])
    return result.reshape(arrays[0].shape)


def softmax_rows(z, u):
    """eᶻ / Σ eᶻ."""
    np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=u)
    np.exp(u, out=u)
    np.multiply(u, np.reciprocal(row_sums(u)), out=u)
    flush_positive(u)


def softmax_backward_rows(u, v, dz):
    """u ⊙ (v - Σ u v)."""
    np.subtract(v, np.vecdot(u, v)[..., None], out=dz)
    flush_in_place(np.multiply(dz, u, out=dz))


def log_softmax_rows(z, u):
    """z - log Σ eᶻ."""
    np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=u)
    np.subtract(u, np.log(row_sums(np.exp(u))), out=u)


def log_softmax_backward_rows(u, v, dz):
    """v - eᵘ Σ v."""
    np.exp(u, out=dz)
    np.multiply(dz, row_sums(v), out=dz)
    flush_in_place(np.subtract(v, dz, out=dz))


@twin(softmax, serves=last_axis)
def _(z, axis):
    return by_rows(softmax_rows, z)


@twin(softmax_backward, serves=last_axis)
def _(u, v, axis):
    return by_rows(softmax_backward_rows, u, v)


@twin(log_softmax, serves=last_axis)
def _(z, axis):
    return by_rows(log_softmax_rows, z)


@twin(log_softmax_backward, serves=last_axis)
def _(u, v, axis):
    return by_rows(log_softmax_backward_rows, u, v)
