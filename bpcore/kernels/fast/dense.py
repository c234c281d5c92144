"""The module MM: products by oneDNN, the bias in the same pass."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.arithmetic import smallest_normal
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


def least_of(z):
    """What is flushed below, a number of the dtype of z."""
    return z.dtype.type(math.sqrt(smallest_normal(z)))


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


@compiled
def _bias_relu(start, stop, u, b):
    for i in range(start, stop):
        row = u[i]
        for j in range(row.shape[0]):
            t = row[j] + b[j]
            row[j] = t if not t < 0 else t - t  # a NaN stays one


@compiled
def bias_relu(u, b):
    """u = max(u + b, 0), in place."""
    share(_bias_relu, u.shape[0], team(u, u.size), (u, b))


@compiled
def _relu_backward_sum(start, stop, u, v, dt, db):
    db = db[start:stop]
    db[:] = 0
    for i in range(v.shape[0]):
        up, row, d = u[i, start:stop], v[i, start:stop], dt[i, start:stop]
        for j in range(d.shape[0]):
            d[j] = row[j] if up[j] > 0 else row[j] * 0
            db[j] += d[j]


@compiled
def relu_backward_sum(u, v, dt, db):
    """Writes 1{u > 0} ⊙ v to dt, and the sum of its rows to db: each thread some of the columns."""
    share(_relu_backward_sum, db.shape[0], team(v, v.size), (u, v, dt, db))


def rows(x):
    """(..., m) as (n, m), a view."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _serves_linear(z, W, b):
    fits = dense(z) and matrix(W) and W.dtype.char == z.dtype.char and z.size > 0 and z.shape[-1] == W.shape[0]
    return fits and (b is None or (dense(z, b) and b.shape == W.shape[1:]))


@serves(_serves_linear)
def linear(z, W, b):
    u = np.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    gemm(rows(z), W, rows(u), b)
    return u


@serves(lambda z, W, b: b is not None and _serves_linear(z, W, b))
def linear_relu(z, W, b):
    u = np.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    bias_relu(gemm(rows(z), W, rows(u)), b)
    return u


def products(z, W, v, dW, need_dz):
    """Writes dW = zᵀ v, and returns dz = v Wᵀ, or None unless need_dz."""
    if dW.flags.c_contiguous:
        gemm(rows(z).T, rows(v), dW)
    else:
        gemm(rows(v).T, rows(z), dW.T)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    gemm(rows(v), W.T, rows(dz))
    return dz


def _serves_linear_backward(z, W, v, dW, db, need_dz):
    char, fits = z.dtype.char, z.size > 0 and v.shape == (*z.shape[:-1], W.shape[1]) and dW.shape == W.shape
    fits = fits and W.shape[0] == z.shape[-1] and W.dtype.char == dW.dtype.char == char and matrix(W) and matrix(dW)
    return fits and (dense(z, v) if db is None else dense(z, v, db) and db.shape == W.shape[1:])


@serves(_serves_linear_backward)
def linear_backward(z, W, v, dW, db, need_dz):
    if db is not None:
        sum_rows(rows(v), db)
    return products(z, W, v, dW, need_dz)


@serves(
    lambda z, W, u, v, dW, db, need_dz: (
        db is not None and u.shape == v.shape and dense(u, v) and _serves_linear_backward(z, W, v, dW, db, need_dz)
    )
)
def linear_relu_backward(z, W, u, v, dW, db, need_dz):
    dt = np.empty(v.shape, v.dtype)
    relu_backward_sum(rows(u), rows(v), rows(dt), db)
    return products(z, W, dt, dW, need_dz)
