"""The module MM: products by oneDNN, the bias in the same pass."""

from __future__ import annotations

import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.fast.onednn import gemm
from bpcore.kernels.fast.threads import compiled, share, team


def dense(first, *others):
    """Whether these are C-contiguous, writable arrays of one dtype, float32 or float64."""
    char = first.dtype.char
    if char not in "fd" or not first.flags.carray:
        return False
    for x in others:  # noqa: SIM110  a generator takes twice as long, and this is asked at every call
        if x.dtype.char != char or not x.flags.carray:
            return False
    return True


def matrix(x):
    """Whether x, of two axes, or its transpose, is C-contiguous."""
    return x.flags.carray or x.T.flags.carray


@compiled
def _sum_rows(start, stop, v, db):
    db = db[start:stop]
    db[:] = 0
    for i in range(v.shape[0]):
        row = v[i, start:stop]
        for j in range(db.shape[0]):
            db[j] += row[j]


@compiled
def sum_rows(v, db):
    """Writes the sum of the rows of v, each thread some of the columns."""
    share(_sum_rows, db.shape[0], team(v, v.size), (v, db))


def _serves_linear(z, W, b):
    return dense(z) and matrix(W) and W.dtype.char == z.dtype.char and z.size > 0


@serves(_serves_linear)
def linear(z, W, b):
    u = np.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    n = W.shape[1]
    gemm(z if z.ndim == 2 else z.reshape(-1, W.shape[0]), W, u if u.ndim == 2 else u.reshape(-1, n), b)
    return u


def _serves_linear_backward(z, W, v, dW, db, need_dz):
    return dense(z, v) and matrix(W) and matrix(dW) and z.size > 0


@serves(_serves_linear_backward)
def linear_backward(z, W, v, dW, db, need_dz):
    shape = z.shape
    if z.ndim != 2:
        z, v = z.reshape(-1, shape[-1]), v.reshape(-1, v.shape[-1])
    if dW.flags.c_contiguous:
        gemm(z.T, v, dW)
    else:
        gemm(v.T, z, dW.T)
    if db is not None:
        sum_rows(v, db)
    if not need_dz:
        return None
    dz = np.empty(shape, z.dtype)
    gemm(v, W.T, dz if dz.ndim == 2 else dz.reshape(-1, shape[-1]))
    return dz
