"""LSTM and GRU: for each token one product with the state, and one kernel for the rest."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.linear import linear_backward
from bpcore.functional.recurrent import gru, gru_backward, lstm, lstm_backward, shifted
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.gemm import gemm
from bpcore.kernels.cuda.engine.launch import each
from bpcore.kernels.cuda.engine.sums import scratch, sum_columns
from bpcore.kernels.cuda.linear import products_backward
from bpcore.primitive import twin


def sizes(z: Any, W: Any, U: Any, gates: int) -> bool:
    """Whether z is (n, tokens, m), U is a `matrix` (k, gates k), k >= 1, and W has its columns."""
    shape = U.shape[0], gates * U.shape[0]
    return z.ndim == 3 and U.size > 0 and U.shape == shape and W.shape[1] == shape[1] and CUDA.matrix(U, z.dtype.char)


def sequences(z: Any, U: Any, dU: Any, h: Any, gates: Any, v: Any, *dense: Any) -> bool:
    """Whether the arrays of a backward function have the shapes and dtypes that its forward function gives, and are dense.

    v may have any strides. dense: more arrays that must be.
    """
    n, tokens, _ = z.shape
    k, char = U.shape[0], z.dtype.char
    fit = h.shape == v.shape == (n, tokens, k) and gates.shape == (n, tokens, 4 * k) and dU.shape == U.shape
    return fit and v.dtype.char == char and CUDA.matrix(dU, char) and CUDA.dense(z, h, gates, *dense)


def lstm_serves(z: Any, W: Any, U: Any, b: Any) -> bool:
    """Whether the shapes fit, and the arrays are dense."""
    return sizes(z, W, U, 4) and CUDA.linear(z, W, b)


def gru_serves(z: Any, W: Any, U: Any, b: Any, d: Any) -> bool:
    """Whether the shapes fit, and the arrays are dense."""
    return sizes(z, W, U, 3) and CUDA.linear(z, W, b) and d.shape == b.shape and CUDA.dense(z, d)


def lstm_backward_serves(
    z: Any, W: Any, U: Any, h: Any, gates: Any, c: Any, v: Any, dW: Any, dU: Any, db: Any, need_dz: bool
) -> bool:
    """Whether the shapes fit, and the arrays are dense; v may have any strides."""
    if not (sizes(z, W, U, 4) and CUDA.linear(z, W, db) and dW.shape == W.shape and CUDA.matrix(dW, z.dtype.char)):
        return False
    return c.shape == h.shape and sequences(z, U, dU, h, gates, v, c)


def gru_backward_serves(
    z: Any, W: Any, U: Any, h: Any, gates: Any, v: Any, dW: Any, dU: Any, db: Any, dd: Any, need_dz: bool
) -> bool:
    """Whether the shapes fit, and the arrays are dense; v may have any strides."""
    if not (sizes(z, W, U, 3) and CUDA.linear(z, W, db) and dW.shape == W.shape and CUDA.matrix(dW, z.dtype.char)):
        return False
    return dd.shape == db.shape and sequences(z, U, dU, h, gates, v, dd)


def forward(name: str, z: Any, W: Any, U: Any, biases: Any, *others: Any) -> tuple[Any, Any]:
    """h and the gates, by the kernel `name` for each token. others: further sequences that it writes, before h."""
    (n, tokens, m), (k, width), char = z.shape, U.shape, z.dtype.char
    h, gates = cupy.empty((n, tokens, k), z.dtype), cupy.empty((n, tokens, 4 * k), z.dtype)
    gemm(z.reshape(-1, m), W, gates.reshape(-1, 4 * k)[:, :width])
    of_h = scratch((n, width), char)
    state, carried = cupy.zeros((n, k), z.dtype), cupy.zeros((n, k), of_h.dtype)
    for t in range(tokens):
        gemm(state, U, of_h)
        each("recurrent", name, char, n * k, k, tokens, t, of_h, *biases, gates, carried, *others, h)
        state = h[:, t]
    return h, gates


def backward(name: str, U: Any, before: Any, v: Any, das: Any) -> None:
    """Write das, sequences, by the kernel `name` for each token; the last of them goes through U to the token before.

    before: the sequences that the forward function returned and the kernel reads.
    """
    (n, tokens, k), char = v.shape, v.dtype.char
    v = cupy.ascontiguousarray(v)
    of_h = scratch((n, k), char)
    of_h[...] = 0
    carried = cupy.zeros_like(of_h)
    for t in range(tokens - 1, -1, -1):
        each("recurrent", name, char, n * k, k, tokens, t, of_h, *before, v, carried, *das)
        if t:
            gemm(das[-1][:, t], U.T, of_h)


@twin(lstm, serves=lstm_serves)
def _(z, W, U, b):
    c = cupy.empty((*z.shape[:2], U.shape[0]), z.dtype)
    return *forward("lstm", z, W, U, (b,), c), c


@twin(lstm_backward, serves=lstm_backward_serves)
def _(z, W, U, h, gates, c, v, dW, dU, db, need_dz):
    da = cupy.empty_like(gates)
    backward("lstm_backward", U, (gates, c), v, (da,))
    products_backward(shifted(h), U, da.reshape(-1, U.shape[1]), dU, need_dz=False)
    return linear_backward(z, W, da, dW, db, need_dz)


@twin(gru, serves=gru_serves)
def _(z, W, U, b, d):
    return forward("gru", z, W, U, (b, d))


@twin(gru_backward, serves=gru_backward_serves)
def _(z, W, U, h, gates, v, dW, dU, db, dd, need_dz):
    da_z, da_h = (cupy.empty((*z.shape[:2], U.shape[1]), z.dtype) for _ in range(2))
    backward("gru_backward", U, (gates, h), v, (da_z, da_h))
    rows = da_h.reshape(-1, U.shape[1])
    sum_columns(rows, dd)
    products_backward(shifted(h), U, rows, dU, need_dz=False)
    return linear_backward(z, W, da_z, dW, db, need_dz)
