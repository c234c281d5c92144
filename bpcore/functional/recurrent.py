"""Recurrent maps over sequences (n, tokens, features), and backpropagation through time.

The state before the first token is zero. The products with z are one GEMM for all tokens, forward and backward; only the
products with the state are computed token by token.
"""

from __future__ import annotations

from bpcore.array import Array, device, namespace
from bpcore.functional.activations import sigmoid, tanh
from bpcore.functional.arithmetic import matmul
from bpcore.functional.linear import linear, linear_backward, rows
from bpcore.functional.numerics import flush, sum_over
from bpcore.primitive import primitive

__all__ = ["gru", "gru_backward", "lstm", "lstm_backward"]


def parts(a: Array, n: int) -> list[Array]:
    """a cut along its last axis into parts of length n."""
    return [a[..., i : i + n] for i in range(0, a.shape[-1], n)]


def shifted(h: Array) -> Array:
    """h (n, tokens, m) shifted by one token: the state before each token, zero before the first."""
    xp = namespace(h)
    first = xp.zeros((h.shape[0], 1, h.shape[2]), dtype=h.dtype, device=device(h))
    return xp.concat((first, h[:, : h.shape[1] - 1, :]), axis=1)


@primitive()
def lstm(z: Array, W: Array, U: Array, b: Array) -> tuple[Array, Array, Array]:
    """Gates i, f, o = σ(·), g = tanh(·) of z W + h U + b; c = f c + i g; h = o tanh(c).

    z (n, tokens, m), W (m, 4 k), U (k, 4 k), b (4 k,), in the order i, f, g, o. Returns h (n, tokens, k) and, for the
    backward function, the gates (n, tokens, 4 k) and c (n, tokens, k).

    Hochreiter and Schmidhuber, 1997
    """
    xp = namespace(z)
    k = U.shape[0]
    of_z = linear(z, W, b)
    h = c = xp.zeros((z.shape[0], k), dtype=z.dtype, device=device(z))
    states, gates, cells = [], [], []
    for t in range(z.shape[1]):
        i, f, g, o = parts(of_z[:, t, :] + matmul(h, U), k)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * xp.tanh(c)
        states.append(h)
        gates.append(xp.concat((i, f, g, o), axis=-1))
        cells.append(c)
    return xp.stack(states, axis=1), xp.stack(gates, axis=1), xp.stack(cells, axis=1)


@primitive(writes=("dW", "dU", "db"))
def lstm_backward(
    z: Array, W: Array, U: Array, h: Array, gates: Array, c: Array, v: Array, dW: Array, dU: Array, db: Array, need_dz: bool
) -> Array | None:
    """B[LSTM, ·](v), from the last token to the first. Writes dW, dU, db. Returns dz, or None unless need_dz."""
    xp = namespace(z)
    k = U.shape[0]
    dh = dc = xp.zeros((z.shape[0], k), dtype=z.dtype, device=device(z))
    before = shifted(c)
    das = []
    for t in range(z.shape[1] - 1, -1, -1):
        i, f, g, o = parts(gates[:, t, :], k)
        squashed = xp.tanh(c[:, t, :])
        dh = v[:, t, :] + dh
        dc = dc + dh * o * (1 - squashed * squashed)
        di, df, dg, do = dc * g, dc * before[:, t, :], dc * i, dh * squashed
        da = flush(xp.concat((di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)), axis=-1))
        das.append(da)
        dc = flush(dc * f)
        dh = matmul(da, xp.matrix_transpose(U))
    da = xp.stack(das[::-1], axis=1)  # (n, tokens, 4 k)
    dU[...] = matmul(rows(shifted(h)).T, rows(da))
    return linear_backward(z, W, da, dW, db, need_dz)


@primitive()
def gru(z: Array, W: Array, U: Array, b: Array, d: Array) -> tuple[Array, Array]:
    """r, s = σ(·) of z W + b + h U + d; g = tanh(z W + b + r (h U + d)); h = (1 - s) g + s h.

    z (n, tokens, m), W (m, 3 k), U (k, 3 k), b and d (3 k,), in the order r, s, g. r multiplies after the product, as
    in cuDNN. Returns h (n, tokens, k) and, for the backward function, (n, tokens, 4 k): the gates, then h U + d of g.

    Cho et al., 2014
    """
    xp = namespace(z)
    k = U.shape[0]
    of_z = linear(z, W, b)
    h = xp.zeros((z.shape[0], k), dtype=z.dtype, device=device(z))
    states, gates = [], []
    for t in range(z.shape[1]):
        zr, zs, zg = parts(of_z[:, t, :], k)
        hr, hs, hg = parts(matmul(h, U) + d, k)
        r = sigmoid(zr + hr)
        s = sigmoid(zs + hs)
        g = tanh(zg + r * hg)
        h = (1 - s) * g + s * h
        states.append(h)
        gates.append(xp.concat((r, s, g, hg), axis=-1))
    return xp.stack(states, axis=1), xp.stack(gates, axis=1)


@primitive(writes=("dW", "dU", "db", "dd"))
def gru_backward(
    z: Array, W: Array, U: Array, h: Array, gates: Array, v: Array, dW: Array, dU: Array, db: Array, dd: Array, need_dz: bool
) -> Array | None:
    """B[GRU, ·](v), from the last token to the first. Writes dW, dU, db, dd. Returns dz, or None unless need_dz."""
    xp = namespace(z)
    k = U.shape[0]
    dh = xp.zeros((z.shape[0], k), dtype=z.dtype, device=device(z))
    before = shifted(h)
    of_z, of_h = [], []
    for t in range(z.shape[1] - 1, -1, -1):
        r, s, g, hg = parts(gates[:, t, :], k)
        dh = v[:, t, :] + dh
        dg = dh * (1 - s) * (1 - g * g)
        ds = dh * (before[:, t, :] - g) * s * (1 - s)
        dr = dg * hg * r * (1 - r)
        of_z.append(flush(xp.concat((dr, ds, dg), axis=-1)))
        of_h.append(flush(xp.concat((dr, ds, dg * r), axis=-1)))
        dh = dh * s + matmul(of_h[-1], xp.matrix_transpose(U))
    da_z = xp.stack(of_z[::-1], axis=1)  # of z W + b, (n, tokens, 3 k)
    da_h = rows(xp.stack(of_h[::-1], axis=1))  # of h U + d, (n · tokens, 3 k)
    dU[...] = matmul(rows(before).T, da_h)
    dd[...] = sum_over(da_h, 0)
    return linear_backward(z, W, da_z, dW, db, need_dz)
