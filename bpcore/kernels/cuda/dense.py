"""The module MM."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.cuda.gemm import gemm
from bpcore.kernels.cuda.launch import dense, each
from bpcore.kernels.cuda.sums import sum_columns


def matrix(x: Any, char: str) -> bool:
    """Whether x, of two axes, or its transpose, is C-contiguous, and of this dtype."""
    return x.dtype.char == char and (x.flags.c_contiguous or x.flags.f_contiguous)


def add_rows(u: Any, b: Any) -> None:
    """Adds b (n,) to each row of u, in place."""
    each("sums", "add_rows", u.dtype.char, u.size, b.shape[0], b, u)


@serves(lambda a, b: min(a.ndim, b.ndim) >= 2 and a.dtype.char == b.dtype.char and a.dtype.char in "efd")
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return gemm(a, b, cupy.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype))


@serves(lambda z, W, b: z.size > 0 and dense(z, *(() if b is None else (b,))) and matrix(W, z.dtype.char))
def linear(z, W, b):
    u = cupy.empty((*z.shape[:-1], W.shape[1]), z.dtype)
    gemm(z.reshape(-1, W.shape[0]), W, u.reshape(-1, W.shape[1]))
    if b is not None:
        add_rows(u, b)
    return u


def _serves_linear_backward(z, W, v, dW, db, need_dz):
    char = z.dtype.char
    return z.size > 0 and dense(z, v, *(() if db is None else (db,))) and matrix(W, char) and matrix(dW, char)


@serves(_serves_linear_backward)
def linear_backward(z, W, v, dW, db, need_dz):
    rows, v_rows = z.reshape(-1, W.shape[0]), v.reshape(-1, W.shape[1])
    if dW.flags.c_contiguous:
        gemm(rows.T, v_rows, dW)
    else:
        gemm(v_rows.T, rows, dW.T)
    if db is not None:
        sum_columns(v_rows, db)
    if not need_dz:
        return None
    dz = cupy.empty(z.shape, z.dtype)
    gemm(v_rows, W.T, dz.reshape(rows.shape))
    return dz
