"""The module MM, alone and with ReLU after it."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from bpcore.functional.activations import relu_backward
from bpcore.functional.arithmetic import matmul
from bpcore.functional.linear import linear, linear_backward, linear_relu, linear_relu_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.gemm import gemm
from bpcore.kernels.cuda.engine.launch import each, pointer
from bpcore.kernels.cuda.engine.sums import sum_columns
from bpcore.primitive import twin


def add_rows(u: Any, b: Any, relu: bool = False) -> None:
    """Adds b, (n,) or None, to each row of u, in place, and then takes the maximum with 0 where `relu`."""
    if b is not None or relu:
        each("sums", "add_rows", u.dtype.char, u.size, u.shape[-1], pointer(b), int(relu), u)


def matrices(a: Any, b: Any) -> bool:
    """Whether these are matrices of one dtype that there is code for."""
    return min(a.ndim, b.ndim) >= 2 and a.dtype.char == b.dtype.char and a.dtype.char in CUDA.chars


@twin(matmul, serves=matrices)
def _(a, b):
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


@twin(linear, serves=CUDA.linear)
def _(z, W, b):
    u = product(z, W)
    add_rows(u, b)
    return u


@twin(linear_relu, serves=CUDA.linear)
def _(z, W, b):
    u = product(z, W)
    add_rows(u, b, relu=True)
    return u


@twin(linear_backward, serves=CUDA.linear_backward)
def _(z, W, v, dW, db, need_dz):
    v_rows = v.reshape(-1, W.shape[1])
    if db is not None:
        sum_columns(v_rows, db)
    return products_backward(z, W, v_rows, dW, need_dz)


def linear_relu_dense(z: Any, W: Any, u: Any, v: Any, dW: Any, db: Any, need_dz: bool) -> bool:
    """As for `linear_backward`, with u."""
    return CUDA.linear_backward(z, W, v, dW, db, need_dz) and CUDA.dense(u, v)


@twin(linear_relu_backward, serves=linear_relu_dense)
def _(z, W, u, v, dW, db, need_dz):
    v_rows = v.reshape(-1, W.shape[1])
    if db is None:
        dt = relu_backward(u, v).reshape(v_rows.shape)
    else:
        dt = cupy.empty_like(v_rows)
        sum_columns(v_rows, db, u=u, dt=dt)
    return products_backward(z, W, dt, dW, need_dz)
