"""The module MM, alone and with ReLU after it."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.cuda.activations import relu_backward
from bpcore.kernels.cuda.gemm import gemm
from bpcore.kernels.cuda.launch import dense, each, given
from bpcore.kernels.cuda.sums import sum_columns


def matrix(x: Any, char: str) -> bool:
    """Whether x, of two axes, or its transpose, is C-contiguous, and of this dtype."""
    return x.dtype.char == char and (x.flags.c_contiguous or x.flags.f_contiguous)


def add_rows(u: Any, b: Any, relu: bool = False) -> None:
    """Adds b, (n,) or None, to each row of u, in place, and then takes the maximum with 0 where `relu`."""
    if b is not None or relu:
        each("sums", "add_rows", u.dtype.char, u.size, u.shape[-1], given(b), int(relu), u)


@serves(lambda a, b: min(a.ndim, b.ndim) >= 2 and a.dtype.char == b.dtype.char and a.dtype.char in "efd")
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return gemm(a, b, cupy.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype))


def product(z: Any, W: Any) -> Any:
    """z W over the last axis."""
    u = cupy.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    gemm(z.reshape(-1, W.shape[0]), W, u.reshape(-1, W.shape[1]))
    return u


def products_backward(z: Any, W: Any, v_rows: Any, dW: Any, need_dz: bool) -> Any:
    """dz, or None; writes dW."""
    rows = z.reshape(-1, W.shape[0])
    if dW.flags.c_contiguous:
        gemm(rows.T, v_rows, dW)
    else:
        gemm(v_rows.T, rows, dW.T)
    if not need_dz:
        return None
    dz = cupy.empty(z.shape, z.dtype)
    gemm(v_rows, W.T, dz.reshape(rows.shape))
    return dz


def _serves(z: Any, W: Any, b: Any) -> bool:
    return z.size > 0 and dense(z, *(() if b is None else (b,))) and matrix(W, z.dtype.char)


@serves(_serves)
def linear(z, W, b):
    u = product(z, W)
    add_rows(u, b)
    return u


@serves(_serves)
def linear_relu(z, W, b):
    u = product(z, W)
    add_rows(u, b, relu=True)
    return u


def _serves_backward(z: Any, W: Any, v: Any, dW: Any, db: Any, need_dz: bool) -> bool:
    return _serves(z, W, db) and dense(z, v) and matrix(dW, z.dtype.char)


@serves(_serves_backward)
def linear_backward(z, W, v, dW, db, need_dz):
    v_rows = v.reshape(-1, W.shape[1])
    if db is not None:
        sum_columns(v_rows, db)
    return products_backward(z, W, v_rows, dW, need_dz)


@serves(lambda z, W, u, v, dW, db, need_dz: _serves_backward(z, W, v, dW, db, need_dz) and dense(u, v))
def linear_relu_backward(z, W, u, v, dW, db, need_dz):
    v_rows = v.reshape(-1, W.shape[1])
    if db is None:
        dt = relu_backward(u, v).reshape(v_rows.shape)
    else:
        dt = cupy.empty_like(v_rows)
        sum_columns(v_rows, db, u=u, dt=dt)
    return products_backward(z, W, dt, dW, need_dz)
