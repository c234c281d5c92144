"""The module MM, alone and with ReLU or GELU, and products of matrices."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from bpcore.functional.activations import gelu_backward, relu_backward
from bpcore.functional.arithmetic import matmul
from bpcore.functional.linear import (
    linear,
    linear_add,
    linear_backward,
    linear_gelu_backward,
    linear_relu,
    linear_relu_backward,
)
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine import cublaslt
from bpcore.kernels.cuda.engine.gemm import gemm
from bpcore.kernels.cuda.engine.launch import each_row, each_wide, pointer
from bpcore.kernels.cuda.engine.sums import sum_columns
from bpcore.primitive import twin


def add_rows(u: Any, b: Any, relu: bool = False) -> None:
    """u = u + b in place, b (n,) or None; then max(u, 0) if `relu`."""
    if (b is not None or relu) and u.size:
        n = u.shape[-1]
        each_row("sums", "add_rows", u.dtype.char, u.size // n, n, u, pointer(b), int(relu), u)


def matrices(a: Any, b: Any) -> bool:
    """Whether a and b are matrices of one dtype, for which there is code."""
    return min(a.ndim, b.ndim) >= 2 and a.dtype.char == b.dtype.char and a.dtype.char in CUDA.chars


@twin(matmul, serves=matrices)
def _(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return gemm(a, b, cupy.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype))


def affine(a: Any, b: Any, out: Any, bias: Any, plus: Any = None) -> None:
    """Write a @ b + bias + plus to out: matrices, bias a row or None, plus an array like out or None."""
    if bias is None or not cublaslt.affine(a, b, out, bias, plus):
        gemm(a, b, out)
        add_rows(out, bias)
        if plus is not None:
            each_wide("sums", "add", out.dtype.char, out.size, out, plus, out)


def product(z: Any, W: Any, b: Any = None, plus: Any = None) -> Any:
    """z W + b over the last axis, and `plus` added to it."""
    u = cupy.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    rows = u.reshape(-1, W.shape[1])
    affine(z.reshape(-1, W.shape[0]), W, rows, b, plus if plus is None else plus.reshape(rows.shape))
    return u


def products_backward(z: Any, W: Any, v_rows: Any, dW: Any, need_dz: bool) -> Any:
    """Writes dW = zᵀ v. Returns dz = v Wᵀ, or None unless need_dz."""
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
    return product(z, W, b)


def like_u(z: Any, W: Any, b: Any, x: Any) -> bool:
    """As `CUDA.linear`, for x too, which has the shape of z W."""
    return CUDA.linear(z, W, b) and CUDA.dense(z, x) and x.shape == (*z.shape[:-1], W.shape[1])


@twin(linear_add, serves=like_u)
def _(z, W, b, x):
    return product(z, W, b, x)


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


def backward_through(name: str, backward: Any, z: Any, W: Any, u: Any, v: Any, dW: Any, db: Any, need_dz: bool) -> Any:
    """`linear_backward` for dt = backward(u, v), which is computed with the sum for db; name: of the activation."""
    v_rows = v.reshape(-1, W.shape[1])
    if db is None:
        dt = backward(u, v).reshape(v_rows.shape)
    else:
        dt = cupy.empty_like(v_rows)
        sum_columns(v_rows, db, u=u, dt=dt, through=name)
    return products_backward(z, W, dt, dW, need_dz)


def dense_u(z: Any, W: Any, u: Any, /, v: Any, dW: Any, db: Any, need_dz: bool) -> bool:
    """As `CUDA.linear_backward`, for the third array too: what ReLU returned, or what GELU was given."""
    return CUDA.linear_backward(z, W, v, dW, db, need_dz) and CUDA.dense(u, v)


@twin(linear_relu_backward, serves=dense_u)
def _(z, W, u, v, dW, db, need_dz):
    return backward_through("relu", relu_backward, z, W, u, v, dW, db, need_dz)


@twin(linear_gelu_backward, serves=dense_u)
def _(z, W, t, v, dW, db, need_dz):
    return backward_through("gelu", gelu_backward, z, W, t, v, dW, db, need_dz)
