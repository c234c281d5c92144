"""The module MM, alone and with ReLU: products by oneDNN, which adds the bias in the same pass."""

from __future__ import annotations

import numpy as np

from bpcore.functional.linear import linear, linear_backward, linear_relu, linear_relu_backward
from bpcore.functional.numerics import PART
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import rows
from bpcore.kernels.fast.engine.onednn import gemm
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin


@compiled
def add_part(part, db):
    """db += part; part = 0. A sum over many rows is taken in parts, see `sum_over`."""
    for j in range(db.shape[0]):
        db[j] += part[j]
        part[j] = 0


@compiled
def _sum_rows(start, stop, v, part, db):
    part, db = part[start:stop], db[start:stop]
    part[:] = 0
    db[:] = 0
    for first in range(0, v.shape[0], PART):
        for i in range(first, min(first + PART, v.shape[0])):
            row = v[i, start:stop]
            for j in range(part.shape[0]):
                part[j] += row[j]
        add_part(part, db)


@compiled
def sum_rows(v, db):
    """Writes the sum of the rows of v to db. Each thread sums some of the columns."""
    share(_sum_rows, db.shape[0], team(v, v.size), (v, np.empty_like(db), db))


@compiled
def _bias_relu(start, stop, u, b):
    for i in range(start, stop):
        row = u[i]
        for j in range(row.shape[0]):
            t = row[j] + b[j]
            row[j] = t if not t < 0 else u.dtype.type(0)  # NaN stays NaN


@compiled
def bias_relu(u, b):
    """u = max(u + b, 0), in place."""
    share(_bias_relu, u.shape[0], team(u, u.size), (u, b))


@compiled
def _relu_backward_sum(start, stop, u, v, dt, part, db):
    part, db = part[start:stop], db[start:stop]
    part[:] = 0
    db[:] = 0
    for first in range(0, v.shape[0], PART):
        for i in range(first, min(first + PART, v.shape[0])):
            up, row, d = u[i, start:stop], v[i, start:stop], dt[i, start:stop]
            for j in range(d.shape[0]):
                d[j] = v.dtype.type(0) if up[j] <= 0 else row[j]
                part[j] += d[j]
        add_part(part, db)


@compiled
def relu_backward_sum(u, v, dt, db):
    """Writes 1{u > 0} ⊙ v to dt, and the sum of its rows to db. Each thread takes some of the columns."""
    share(_relu_backward_sum, db.shape[0], team(v, v.size), (u, v, dt, np.empty_like(db), db))


@twin(linear, serves=COMPILED.linear)
def product(z, W, b=None):
    """u = z W + b in a fresh array."""
    if z.ndim == 2:
        return gemm(z, W, np.empty((z.shape[0], W.shape[1]), z.dtype), b)
    u = np.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    gemm(rows(z), W, rows(u), b)
    return u


def with_bias(z, W, b):
    """As `COMPILED.linear`, with a bias."""
    return b is not None and COMPILED.linear(z, W, b)


@twin(linear_relu, serves=with_bias)
def _(z, W, b):
    u = product(z, W)
    bias_relu(rows(u), b)
    return u


def products(z, W, v, dW, need_dz):
    """Writes dW = zᵀ v. Returns dz = v Wᵀ, or None unless need_dz."""
    if dW.flags.c_contiguous:
        gemm(rows(z).T, rows(v), dW)
    else:
        gemm(rows(v).T, rows(z), dW.T)
    if not need_dz:
        return None
    dz = np.empty(z.shape, z.dtype)
    gemm(rows(v), W.T, rows(dz))
    return dz


@twin(linear_backward, serves=COMPILED.linear_backward)
def _(z, W, v, dW, db, need_dz):
    if db is not None:
        sum_rows(rows(v), db)
    return products(z, W, v, dW, need_dz)


def with_bias_backward(z, W, u, v, dW, db, need_dz):
    """As `COMPILED.linear_backward`, with a bias, and for u too."""
    return db is not None and u.shape == v.shape and COMPILED.dense(u, v) and COMPILED.linear_backward(z, W, v, dW, db, need_dz)


@twin(linear_relu_backward, serves=with_bias_backward)
def _(z, W, u, v, dW, db, need_dz):
    dt = np.empty(v.shape, v.dtype)
    relu_backward_sum(rows(u), rows(v), rows(dt), db)
    return products(z, W, dt, dW, need_dz)
