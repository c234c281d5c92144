"""Attention: oneDNN's products of all heads on the packed arrays as they lie, and compiled passes over rows of A between them."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from bpcore.functional.attention import attention, attention_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine import onednn
from bpcore.kernels.fast.engine.exponential import exp
from bpcore.kernels.fast.engine.onednn import Plan, batched_plan, execute
from bpcore.kernels.fast.engine.threads import compiled, flushed, least_of, share, team
from bpcore.kernels.fast.softmax import COST, maximum
from bpcore.primitive import twin

AT_ONCE = 1 << 19  # numbers of A that are computed at a time: they and their gradient stay in cache
WIDTH = 64  # keys after a causal query are computed up to a multiple of this: whole vectors are quicker than a part of one


class Plans(NamedTuple):
    """The products of all heads: q kᵀ and A v; v valuesᵀ, Aᵀ v, dS k and dSᵀ q."""

    scores: Plan
    mixed: Plan
    dA: Plan
    dvalues: Plan
    dq: Plan
    dk: Plan


@functools.lru_cache(maxsize=256)
def plans(n: int, heads: int, tokens: int, d: int) -> Plans:
    """For queries, keys and values packed as they come, one for each shape."""
    features, square = (n, heads, tokens, d), ((n, heads, tokens, tokens), (heads * tokens**2, tokens**2, tokens, 1))
    packed, joined = ((features, (tokens * parts * heads * d, d, parts * heads * d, 1)) for parts in (3, 1))

    def turned(layout):
        return tuple((*one[:2], one[3], one[2]) for one in layout)

    return Plans(
        batched_plan(packed, turned(packed), square),
        batched_plan(square, packed, joined),
        batched_plan(joined, turned(packed), square),
        batched_plan(turned(square), joined, packed),
        batched_plan(square, packed, packed),
        batched_plan(turned(square), packed, packed),
    )


@compiled
def _hide(row, i, causal, padding, n):
    """Writes -∞ to the scores of query i at keys that it does not see. Returns how many of them are to be looked at."""
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
def _drop(row, keep, r, kept):
    if keep.shape[0]:
        mask = keep[r, : row.shape[0]]
        for j in range(row.shape[0]):
            row[j] = row[j] * (kept if mask[j] else row.dtype.type(0))


@compiled
def _rows_of_A(start, stop, A, L, heads, causal, padding, keep, scale, kept, least):
    tokens = A.shape[1]
    for r in range(start, stop):
        width = _hide(A[r], r % tokens, causal, padding, r // (heads * tokens))
        row, rest, total = A[r, :width], A[r, width:], A.dtype.type(0)
        largest = maximum(row)
        some = largest > -np.inf
        largest = largest if some else total
        for j in range(width):
            e = exp((row[j] - largest) * scale)
            row[j] = e
            total += e
        L[r] = largest * scale + math.log(total) if some else A.dtype.type(0)
        total = total if some else A.dtype.type(1)
        for j in range(width):
            row[j] = flushed(row[j] / total, least)
        for j in range(rest.shape[0]):
            rest[j] = 0
        _drop(row, keep, r, kept)


@compiled
def _run_rows_of_A(A, *arguments):
    share(_rows_of_A, A.shape[0], team(A, COST * A.size), (A, *arguments))


@compiled
def _rows_of_dS(start, stop, A, d, L, u, v, heads, causal, padding, keep, scale, kept, least):
    tokens = A.shape[1]
    for r in range(start, stop):
        n, head, i = r // (heads * tokens), r // tokens % heads, r % tokens
        width = _hide(A[r], i, causal, padding, n)
        for rest in (A[r, width:], d[r, width:]):
            for j in range(rest.shape[0]):
                rest[j] = 0
        a, row, mean, log, of_head = A[r, :width], d[r, :width], A.dtype.type(0), L[r], (n * tokens + i) * heads + head
        mixed, up = u[of_head], v[of_head]
        for j in range(mixed.shape[0]):
            mean += mixed[j] * up[j]
        _drop(row, keep, r, kept)
        for j in range(width):
            one = flushed(exp(a[j] * scale - log), least)
            row[j] = flushed(one * (row[j] - mean) * scale, least)
            a[j] = one
        _drop(a, keep, r, kept)


@compiled
def _run_rows_of_dS(A, *arguments):
    share(_rows_of_dS, A.shape[0], team(A, COST * A.size), (A, *arguments))


def float32(qkv, heads, causal, padding, keep, p):
    """Whether oneDNN is there, and qkv is dense float32."""
    return onednn.LIBRARY is not None and qkv.dtype.char == "f" and COMPILED.nonempty(qkv)


def float32_backward(qkv, padding, keep, u, L, v, heads, causal, p):
    """As `float32`, with what the forward pass saved, and v."""
    return float32(qkv, heads, causal, padding, keep, p) and COMPILED.dense(qkv, u, L, v)


def booleans(x, shape):
    """A mask as one contiguous, writable array: compiled code has no other name for what is read-only; none, where it is None."""
    if x is None:
        return np.empty((0, 0), np.bool_)
    return (x if x.flags.carray else x.copy()).reshape(shape)


def pieces(qkv, heads, causal, padding, keep, p):
    """Some sequences at a time: which they are, their products, A to be written, and the last arguments of the passes over it."""
    n, tokens, features = qkv.shape
    number, d = qkv.dtype.type, features // 3 // heads
    constants = number(1 / math.sqrt(d)), number(1 / (1 - p)), least_of(qkv)
    step = min(n, max(1, AT_ONCE // (heads * tokens * tokens)))
    A = np.empty((2, step * heads * tokens, tokens), qkv.dtype)
    for i in range(0, n, step):
        some = slice(i, min(i + step, n))
        m = some.stop - i
        masks = (
            booleans(None if padding is None else padding[some], (m, tokens)),
            booleans(None if keep is None else keep[some], (m * heads * tokens, tokens)),
        )
        yield some, plans(m, heads, tokens, d), A[:, : m * heads * tokens], (heads, causal, *masks, *constants)


def run(plan, a, b, out):
    """A product of arrays of two axes, its operands as the plan has them."""
    status = execute(plan.numbers, a, b, out, out[0])
    if status:
        raise OSError(f"a product of oneDNN's for attention returned status {status}")


def line(x):
    """x as one row, of two axes."""
    return x.reshape(1, -1)


def thirds(qkv):
    """Queries, keys and values, from the first number of each to the end of qkv: plans know the strides."""
    row, d = line(qkv), qkv.shape[2] // 3
    return row, row[:, d:], row[:, 2 * d :]


@twin(attention, serves=float32)
def _(qkv, heads, causal, padding, keep, p):
    n, tokens, features = qkv.shape
    u, L = np.empty((n, tokens, features // 3), qkv.dtype), np.empty((n, heads, tokens), qkv.dtype)
    for some, products, (A, _), arguments in pieces(qkv, heads, causal, padding, keep, p):
        q, k, values = thirds(qkv[some])
        run(products.scores, q, k, A)
        _run_rows_of_A(A, L[some].reshape(-1), *arguments)
        run(products.mixed, A, values, line(u[some]))
    return u, L


@twin(attention_backward, serves=float32_backward)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    dqkv = np.empty_like(qkv)
    of_heads = -1, u.shape[2] // heads
    for some, products, (A, dS), arguments in pieces(qkv, heads, causal, padding, keep, p):
        q, k, values = thirds(qkv[some])
        dq, dk, dvalues = thirds(dqkv[some])
        run(products.scores, q, k, A)
        run(products.dA, line(v[some]), values, dS)
        _run_rows_of_dS(A, dS, L[some].reshape(-1), u[some].reshape(of_heads), v[some].reshape(of_heads), *arguments)
        run(products.dvalues, A, line(v[some]), dvalues)
        run(products.dq, dS, k, dq)
        run(products.dk, dS, q, dk)
    return dqkv
