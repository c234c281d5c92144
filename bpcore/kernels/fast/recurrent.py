"""LSTM and GRU: one product for the inputs of all tokens, then one compiled loop through time.

Threads share the rows, and each goes through all tokens with its own, so they meet only at the end.
"""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.linear import linear, linear_backward
from bpcore.functional.recurrent import gru, gru_backward, lstm, lstm_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import aligned, flush_threshold, flushed, rows, writable
from bpcore.kernels.fast.engine.double import hyperbolic, logistic
from bpcore.kernels.fast.engine.onednn import gemm
from bpcore.kernels.fast.engine.panels import inlined, multiply_panels, panels
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team
from bpcore.kernels.fast.linear import sum_rows
from bpcore.primitive import twin

AT_ONCE = 64  # rows that go through all tokens together: what they carry from token to token stays in the cache


@compiled
def _copy(x, out):
    for j in range(out.shape[0]):
        out[j] = x[j]


@compiled
def _lstm_token(start, stop, t, a, of_h, state, cell, h, c, least):
    inlined()
    k = cell.shape[1]
    for r in range(start, stop):
        row, more, states, cells, hs, cs = a[r, t], of_h[r], state[r], cell[r], h[r, t], c[r, t]
        i, f, g, o = row[:k], row[k : 2 * k], row[2 * k : 3 * k], row[3 * k :]
        hi, hf, hg, ho = more[:k], more[k : 2 * k], more[2 * k : 3 * k], more[3 * k :]
        for j in range(k):
            i_j = flushed(logistic(i[j] + hi[j]), least)
            f_j = flushed(logistic(f[j] + hf[j]), least)
            g_j = flushed(hyperbolic(g[j] + hg[j]), least)
            o_j = flushed(logistic(o[j] + ho[j]), least)
            c_j = f_j * cells[j] + i_j * g_j
            h_j = o_j * hyperbolic(c_j)
            i[j], f[j], g[j], o[j], cells[j], cs[j], states[j], hs[j] = i_j, f_j, g_j, o_j, c_j, c_j, h_j, h_j


@compiled
def _lstm(start, stop, a, U, of_h, state, cell, h, c, least):
    for first in range(start, stop, AT_ONCE):
        last = min(first + AT_ONCE, stop)
        for t in range(a.shape[1]):
            multiply_panels(first, last, state, U, of_h)
            _lstm_token(first, last, t, a, of_h, state, cell, h, c, least)


@compiled
def _run_lstm(a, *arguments):
    share(_lstm, a.shape[0], team(a, COST * a.size), (a, *arguments))


@compiled
def _lstm_backward_token(start, stop, t, gates, h, c, v, dh, dc, da, das, before, zero, least):
    inlined()
    k = dc.shape[1]
    one = dc.dtype.type(1)
    for r in range(start, stop):
        row, rates, cs, vs, dhs, dcs = gates[r, t], da[r], c[r, t], v[r, t], dh[r], dc[r]
        i, f, g, o = row[:k], row[k : 2 * k], row[2 * k : 3 * k], row[3 * k :]
        di, df, dg, do = rates[:k], rates[k : 2 * k], rates[2 * k : 3 * k], rates[3 * k :]
        cell = c[r, t - 1] if t else zero
        for j in range(k):
            squashed = hyperbolic(cs[j])
            dh_j = vs[j] + dhs[j]
            dc_j = dcs[j] + dh_j * o[j] * (one - squashed * squashed)
            di[j] = flushed(dc_j * g[j] * i[j] * (one - i[j]), least)
            df[j] = flushed(dc_j * cell[j] * f[j] * (one - f[j]), least)
            dg[j] = flushed(dc_j * i[j] * (one - g[j] * g[j]), least)
            do[j] = flushed(dh_j * squashed * o[j] * (one - o[j]), least)
            dcs[j] = flushed(dc_j * f[j], least)
        _copy(rates, das[r, t])
        _copy(h[r, t - 1] if t else zero, before[r, t])


@compiled
def _lstm_backward(start, stop, gates, U, dh, h, c, v, dc, da, das, before, zero, least):
    for first in range(start, stop, AT_ONCE):
        last = min(first + AT_ONCE, stop)
        for t in range(gates.shape[1] - 1, -1, -1):
            _lstm_backward_token(first, last, t, gates, h, c, v, dh, dc, da, das, before, zero, least)
            multiply_panels(first, last, da, U, dh)


@compiled
def _run_lstm_backward(gates, *arguments):
    share(_lstm_backward, gates.shape[0], team(gates, COST * gates.size), (gates, *arguments))


@compiled
def _gru_token(start, stop, t, a, of_h, state, d, h, gates, least):
    inlined()
    k = state.shape[1]
    one = state.dtype.type(1)
    for r in range(start, stop):
        row, more, states, hs, out = a[r, t], of_h[r], state[r], h[r, t], gates[r, t]
        zr, zs, zg = row[:k], row[k : 2 * k], row[2 * k :]
        hr, hu, hg = more[:k], more[k : 2 * k], more[2 * k : 3 * k]
        dr, ds, dg = d[:k], d[k : 2 * k], d[2 * k :]
        r_out, s_out, g_out, hg_out = out[:k], out[k : 2 * k], out[2 * k : 3 * k], out[3 * k :]
        for j in range(k):
            hg_j = hg[j] + dg[j]
            r_j = flushed(logistic(zr[j] + (hr[j] + dr[j])), least)
            s_j = flushed(logistic(zs[j] + (hu[j] + ds[j])), least)
            g_j = flushed(hyperbolic(zg[j] + r_j * hg_j), least)
            h_j = (one - s_j) * g_j + s_j * states[j]
            r_out[j], s_out[j], g_out[j], hg_out[j], states[j], hs[j] = r_j, s_j, g_j, hg_j, h_j, h_j


@compiled
def _gru(start, stop, a, U, of_h, state, d, h, gates, least):
    for first in range(start, stop, AT_ONCE):
        last = min(first + AT_ONCE, stop)
        for t in range(a.shape[1]):
            multiply_panels(first, last, state, U, of_h)
            _gru_token(first, last, t, a, of_h, state, d, h, gates, least)


@compiled
def _run_gru(a, *arguments):
    share(_gru, a.shape[0], team(a, COST * a.size), (a, *arguments))


@compiled
def _gru_backward_token(start, stop, t, gates, h, v, dh, kept, da, das_z, das_h, before, zero, least):
    inlined()
    k = kept.shape[1]
    one = kept.dtype.type(1)
    for r in range(start, stop):
        row, rates, vs, dhs, keeps = gates[r, t], da[r], v[r, t], dh[r], kept[r]
        gr, gs, g, hg = row[:k], row[k : 2 * k], row[2 * k : 3 * k], row[3 * k :]
        dr, ds, dg_h = rates[:k], rates[k : 2 * k], rates[2 * k :]
        dg_z = das_z[r, t, 2 * k :]
        state = h[r, t - 1] if t else zero
        for j in range(k):
            dh_j = vs[j] + (keeps[j] + dhs[j])
            dg = dh_j * (one - gs[j]) * (one - g[j] * g[j])
            dr[j] = flushed(dg * hg[j] * gr[j] * (one - gr[j]), least)
            ds[j] = flushed(dh_j * (state[j] - g[j]) * gs[j] * (one - gs[j]), least)
            dg_h[j] = flushed(dg * gr[j], least)
            dg_z[j] = flushed(dg, least)
            keeps[j] = dh_j * gs[j]
        _copy(rates, das_h[r, t])
        _copy(rates, das_z[r, t, : 2 * k])
        _copy(state, before[r, t])


@compiled
def _gru_backward(start, stop, gates, U, dh, h, v, kept, da, das_z, das_h, before, zero, least):
    for first in range(start, stop, AT_ONCE):
        last = min(first + AT_ONCE, stop)
        for t in range(gates.shape[1] - 1, -1, -1):
            _gru_backward_token(first, last, t, gates, h, v, dh, kept, da, das_z, das_h, before, zero, least)
            multiply_panels(first, last, da, U, dh)


@compiled
def _run_gru_backward(gates, *arguments):
    share(_gru_backward, gates.shape[0], team(gates, COST * gates.size), (gates, *arguments))


def sizes(z, W, U, b, gates):
    """Whether z is (n, tokens, m) and U (k, gates k), k >= 1, W has U's columns, and all are dense."""
    k = len(U)
    fit = z.ndim == 3 and k > 0 and U.shape == (k, gates * k) and W.shape[1:] == U.shape[1:]
    return fit and COMPILED.linear(z, W, b) and COMPILED.dense(z, U)


def sequences(z, W, U, h, gates, v, dW, dU, db, width, *dense):
    """As `sizes`, for what the forward function returned, v of any strides, the windows to write and more dense arrays."""
    (n, tokens, _), k, char = z.shape, len(U), z.dtype.char
    if not (sizes(z, W, U, db, width) and h.shape == v.shape == (n, tokens, k) and gates.shape == (n, tokens, 4 * k)):
        return False
    fit = dW.shape == W.shape and dU.shape == U.shape and v.dtype.char == char and COMPILED.matrix(dW, char)
    return fit and COMPILED.dense(z, h, gates, dU, *dense)


def lstm_serves(z, W, U, b):
    """Whether the shapes fit, and the arrays are dense."""
    return sizes(z, W, U, b, 4)


def lstm_backward_serves(z, W, U, h, gates, c, v, dW, dU, db, need_dz):
    """Whether the shapes fit, and all arrays but v are dense."""
    return c.shape == h.shape and sequences(z, W, U, h, gates, v, dW, dU, db, 4, c)


def gru_serves(z, W, U, b, d):
    """Whether the shapes fit, and the arrays are dense."""
    return sizes(z, W, U, b, 3) and d.shape == b.shape and COMPILED.dense(z, d)


def gru_backward_serves(z, W, U, h, gates, v, dW, dU, db, dd, need_dz):
    """Whether the shapes fit, and all arrays but v are dense."""
    return dd.shape == db.shape and sequences(z, W, U, h, gates, v, dW, dU, db, 3, dd)


def packed(U, n, transposed=False):
    """U or its transpose in panels, and zeros for the product with it of n rows."""
    parts = panels(U, transposed)
    return parts, zeros(U, n, parts.shape[0] * parts.shape[2])


def zeros(like, *shape):
    """An array of zeros in the dtype of `like`."""
    out = aligned(math.prod(shape), like.dtype)
    out[:] = 0
    return out.reshape(shape)


@twin(lstm, serves=lstm_serves)
def _(z, W, U, b):
    (n, tokens, _), k = z.shape, U.shape[0]
    gates = linear(z, W, b)
    h, c = (np.empty((n, tokens, k), z.dtype) for _ in range(2))
    _run_lstm(gates, *packed(U, n), zeros(z, n, k), zeros(z, n, k), h, c, flush_threshold(z))
    return h, gates, c


@twin(lstm_backward, serves=lstm_backward_serves)
def _(z, W, U, h, gates, c, v, dW, dU, db, need_dz):
    n, k = len(z), len(U)
    da, before = np.empty_like(gates), np.empty_like(h)
    scratch = zeros(z, n, k), zeros(z, n, 4 * k)
    _run_lstm_backward(gates, *packed(U, n, True), h, c, writable(v), *scratch, da, before, zeros(z, k), flush_threshold(z))
    gemm(rows(before).T, rows(da), dU)
    return linear_backward(z, W, da, dW, db, need_dz)


@twin(gru, serves=gru_serves)
def _(z, W, U, b, d):
    (n, tokens, _), k = z.shape, U.shape[0]
    h, gates = np.empty((n, tokens, k), z.dtype), np.empty((n, tokens, 4 * k), z.dtype)
    _run_gru(linear(z, W, b), *packed(U, n), zeros(z, n, k), d, h, gates, flush_threshold(z))
    return h, gates


@twin(gru_backward, serves=gru_backward_serves)
def _(z, W, U, h, gates, v, dW, dU, db, dd, need_dz):
    (n, tokens, _), k = z.shape, U.shape[0]
    of_z, of_h = (np.empty((n, tokens, 3 * k), z.dtype) for _ in range(2))
    before = np.empty_like(h)
    scratch = zeros(z, n, k), zeros(z, n, 3 * k)
    _run_gru_backward(gates, *packed(U, n, True), h, writable(v), *scratch, of_z, of_h, before, zeros(z, k), flush_threshold(z))
    gemm(rows(before).T, rows(of_h), dU)
    sum_rows(rows(of_h), dd)
    return linear_backward(z, W, of_z, dW, db, need_dz)
