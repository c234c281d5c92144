"""Attention: oneDNN's products of all heads on the packed arrays as they lie, and compiled passes over rows of A between them."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.fast import onednn
from bpcore.kernels.fast.dense import dense
from bpcore.kernels.fast.exponential import exp
from bpcore.kernels.fast.onednn import Plan, batched_plan, execute_at
from bpcore.kernels.fast.rows import COST, least_of, maximum
from bpcore.kernels.fast.threads import compiled, flushed, share, team

AT_ONCE = 1 << 19  # numbers of A that are computed at a time: they and their gradient stay in cache
WIDTH = 64  # keys after a causal query are computed up to a multiple of this: whole vectors are quicker than a part of one


class Plans(NamedTuple):
    """The products of all heads, and the arrays of addresses that make them."""

    plans: tuple[Plan, ...]
    forward: np.ndarray
    backward: np.ndarray


@functools.lru_cache(maxsize=256)
def plans(n: int, heads: int, tokens: int, d: int) -> Plans:
    """q kᵀ and A v; v valuesᵀ, Aᵀ v, dS k and dSᵀ q."""
    features, square = (n, heads, tokens, d), ((n, heads, tokens, tokens), (heads * tokens**2, tokens**2, tokens, 1))
    packed, joined = ((features, (tokens * parts * heads * d, d, parts * heads * d, 1)) for parts in (3, 1))

    def turned(layout):
        return tuple((*one[:2], one[3], one[2]) for one in layout)

    forward = batched_plan(packed, turned(packed), square), batched_plan(square, packed, joined)
    backward = (
        forward[0],
        batched_plan(joined, turned(packed), square),
        batched_plan(turned(square), joined, packed),
        batched_plan(square, packed, packed),
        batched_plan(turned(square), packed, packed),
    )
    return Plans(forward + backward, *(np.stack([plan.numbers for plan in some]) for some in (forward, backward)))


@compiled
def _hide(row, i, causal, padding, n):
    """Writes -∞ to the scores of query i at keys that it does not see. Returns how many numbers of the row are to be computed."""
    width = row.shape[0]
    if causal:
        start = i // WIDTH * WIDTH
        width = min(width, start + WIDTH)
        last, own = row[start:width], i - start
        for j in range(last.shape[0]):
            last[j] = last[j] if j <= own else row.dtype.type(-np.inf)
    if padding.shape[0]:
        seen = padding[n, :width]
        for j in range(seen.shape[0]):
            row[j] = row[j] if seen[j] else row.dtype.type(-np.inf)
    return width


@compiled
def _rows_of_A(start, stop, A, L, heads, causal, padding, keep, scale, kept, least):
    tokens = A.shape[1]
    for r in range(start, stop):
        width = _hide(A[r], r % tokens, causal, padding, r // (heads * tokens))
        A[r, width:] = 0
        row = A[r, :width]
        largest, total = maximum(row), A.dtype.type(0)
        if largest == -np.inf:
            row[:] = 0
            L[r] = 0
            continue
        for j in range(width):
            e = exp((row[j] - largest) * scale)
            row[j] = e
            total += e
        L[r] = largest * scale + math.log(total)
        for j in range(width):
            row[j] = flushed(row[j] / total, least)
        if keep.shape[0]:
            mask = keep[r, :width]
            for j in range(width):
                row[j] = row[j] * (kept if mask[j] else A.dtype.type(0))


@compiled
def _run_attention(plans, qkv, heads, causal, padding, keep, scale, kept, least, A, L, u):
    d, rows = u.shape[2] * u.itemsize, A.size // A.shape[3]
    packed = qkv.ctypes.data
    status = execute_at(plans[0], packed, packed + d, A.ctypes.data)
    A_rows = A.reshape(rows, A.shape[3])
    share(_rows_of_A, rows, team(A, COST * A.size), (A_rows, L.reshape(rows), heads, causal, padding, keep, scale, kept, least))
    return status | execute_at(plans[1], A.ctypes.data, packed + 2 * d, u.ctypes.data)


@compiled
def _rows_of_dS(start, stop, A, d, L, u, v, heads, causal, padding, keep, scale, kept, least):
    tokens, features = A.shape[1], u.shape[2] // heads
    for r in range(start, stop):
        n, head, i = r // (heads * tokens), r // tokens % heads, r % tokens
        width = _hide(A[r], i, causal, padding, n)
        A[r, width:] = 0
        d[r, width:] = 0
        a, row, mean, log = A[r, :width], d[r, :width], A.dtype.type(0), L[r]
        mixed, up = u[n, i, head * features : (head + 1) * features], v[n, i, head * features : (head + 1) * features]
        for j in range(features):
            mean += mixed[j] * up[j]
        if keep.shape[0]:
            mask = keep[r, :width]
            for j in range(width):
                one = flushed(exp(a[j] * scale - log), least)
                factor = kept if mask[j] else A.dtype.type(0)
                row[j] = flushed(one * (row[j] * factor - mean) * scale, least)
                a[j] = one * factor
        else:
            for j in range(width):
                one = flushed(exp(a[j] * scale - log), least)
                row[j] = flushed(one * (row[j] - mean) * scale, least)
                a[j] = one


@compiled
def _run_attention_backward(plans, qkv, heads, causal, padding, keep, scale, kept, least, A, dS, L, u, v, dqkv):
    d, rows = u.shape[2] * u.itemsize, A.size // A.shape[3]
    packed, written, of_A, of_dS, up = qkv.ctypes.data, dqkv.ctypes.data, A.ctypes.data, dS.ctypes.data, v.ctypes.data
    status = execute_at(plans[0], packed, packed + d, of_A)
    status |= execute_at(plans[1], up, packed + 2 * d, of_dS)
    A_rows, dS_rows = A.reshape(rows, A.shape[3]), dS.reshape(rows, A.shape[3])
    arguments = (A_rows, dS_rows, L.reshape(rows), u, v, heads, causal, padding, keep, scale, kept, least)
    share(_rows_of_dS, rows, team(A, COST * A.size), arguments)
    status |= execute_at(plans[2], of_A, up, written + 2 * d)
    status |= execute_at(plans[3], of_dS, packed + d, written)
    return status | execute_at(plans[4], of_dS, packed, written + d)


def _served(qkv, heads, causal, padding, keep, p, *more):
    return onednn.LIBRARY is not None and qkv.size > 0 and qkv.dtype.char == "f" and dense(qkv, *more)


def booleans(x, shape):
    """A mask as one contiguous, writable array: compiled code has no other name for what is read-only; none, where it is None."""
    if x is None:
        return np.empty((0,) * len(shape), np.bool_)
    return (x if x.flags.carray else x.copy()).reshape(shape)


def pieces(qkv, heads, causal, padding, keep, p):
    """The first arguments of the compiled functions, for some sequences at a time; and which these are."""
    n, tokens, features = qkv.shape
    number, d = qkv.dtype.type, features // 3 // heads
    constants = number(1 / math.sqrt(d)), number(1 / (1 - p)), least_of(qkv)
    step = max(1, AT_ONCE // (heads * tokens * tokens))
    for i in range(0, n, step):
        some = slice(i, min(i + step, n))
        m = some.stop - i
        masks = (
            booleans(None if padding is None else padding[some], (m, tokens)),
            booleans(None if keep is None else keep[some], (m * heads * tokens, tokens)),
        )
        yield some, plans(m, heads, tokens, d), (qkv[some], heads, causal, *masks, *constants)


def succeed(status):
    """An OSError where a product was not computed."""
    if status:
        raise OSError(f"oneDNN's products of attention returned status {status}")


@serves(_served)
def attention(qkv, heads, causal, padding, keep, p):
    n, tokens, features = qkv.shape
    u, L = np.empty((n, tokens, features // 3), qkv.dtype), np.empty((n, heads, tokens), qkv.dtype)
    A = None
    for some, products, arguments in pieces(qkv, heads, causal, padding, keep, p):
        m = len(arguments[0])
        A = np.empty((m, heads, tokens, tokens), qkv.dtype) if A is None else A[:m]
        succeed(_run_attention(products.forward, *arguments, A, L[some], u[some]))
    return u, L


@serves(_served)
def attention_backward(qkv, heads, causal, padding, keep, p, u, L, v):
    tokens, dqkv = qkv.shape[1], np.empty_like(qkv)
    A = None
    for some, products, arguments in pieces(qkv, heads, causal, padding, keep, p):
        m = len(arguments[0])
        A = np.empty((2, m, heads, tokens, tokens), qkv.dtype) if A is None else A[:, :m]
        succeed(_run_attention_backward(products.backward, *arguments, *A, L[some], u[some], v[some], dqkv[some]))
    return dqkv
