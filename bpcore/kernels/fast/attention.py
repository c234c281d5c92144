"""Attention: oneDNN computes products of all heads on the packed arrays; compiled passes over rows of A run in between.

A product multiplies what has weight 0 too. What is not finite then reaches every token, so the first one tells whether to compute
again by the definition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bpcore.functional.attention import attention, attention_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed, writable
from bpcore.kernels.fast.engine.exponential import exp
from bpcore.kernels.fast.engine.onednn import Plan, batched_plan, execute
from bpcore.kernels.fast.engine.threads import COST, compiled, remembered, share, team
from bpcore.kernels.fast.softmax import maximum
from bpcore.primitive import definition, twin

AT_ONCE = 1 << 19  # numbers of A to compute at a time: they and their gradient fit in the cache
WIDTH = 64  # causal: passes read keys up to the next multiple of this, since whole vectors are faster than parts


class Plans(NamedTuple):
    """The products of all heads: q kᵀ and A values forward; v valuesᵀ, Aᵀ v, dS k and dSᵀ q backward."""

    scores: Plan
    mixed: Plan
    dA: Plan
    dvalues: Plan
    dq: Plan
    dk: Plan


@remembered(256)
def plans(n: int, heads: int, tokens: int, d: int) -> Plans:
    """The plans for one shape of attention."""
    features = (n, heads, tokens, d)
    packed = features, (tokens * 3 * heads * d, d, 3 * heads * d, 1)  # q, k or values within qkv
    joined = features, (tokens * heads * d, d, heads * d, 1)  # u or v
    square = (n, heads, tokens, tokens), (heads * tokens**2, tokens**2, tokens, 1)  # A or dS

    def transposed(layout):
        (*batch, rows, columns), (*strides, down, right) = layout
        return (*batch, columns, rows), (*strides, right, down)

    return Plans(
        batched_plan(packed, transposed(packed), square),
        batched_plan(square, packed, joined),
        batched_plan(joined, transposed(packed), square),
        batched_plan(transposed(square), joined, packed),
        batched_plan(square, packed, packed),
        batched_plan(transposed(square), packed, packed),
    )


@compiled
def _hide(row, i, causal, padding, n):
    """Writes -∞ to the scores of query i at keys that it does not see. Returns the number of scores that passes should read."""
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
def _hidden(row, i, causal, padding, n):
    """Whether query i sees no key."""
    seen = padding[n, : i + 1 if causal else row.shape[0]] if padding.shape[0] else padding[:0, 0]
    return padding.shape[0] > 0 and not seen.any()


@compiled
def _drop(row, keep, r, factor):
    if keep.shape[0]:
        mask = keep[r, : row.shape[0]]
        for j in range(row.shape[0]):
            row[j] = row[j] * factor if mask[j] else row.dtype.type(0)


@compiled
def _rows_of_A(start, stop, A, L, heads, causal, padding, keep, scale, factor, least):
    tokens = A.shape[1]
    for r in range(start, stop):
        width = _hide(A[r], r % tokens, causal, padding, r // (heads * tokens))
        row = A[r, :width]
        rest = A[r, width:]
        total = A.dtype.type(0)
        largest = maximum(row)
        sees_any = largest > -np.inf or not _hidden(row, r % tokens, causal, padding, r // (heads * tokens))
        largest = largest if sees_any else total
        for j in range(width):
            e = exp((row[j] - largest) * scale)
            row[j] = e
            total += e
        L[r] = largest * scale + math.log(total) if sees_any else A.dtype.type(0)
        total = total if sees_any else A.dtype.type(1)
        for j in range(width):
            row[j] = flushed(row[j] / total, least)
        for j in range(rest.shape[0]):
            rest[j] = 0
        _drop(row, keep, r, factor)


@compiled
def _run_rows_of_A(A, *arguments):
    share(_rows_of_A, A.shape[0], team(A, COST * A.size), (A, *arguments))


@compiled
def _rows_of_dS(start, stop, A, d, L, u, v, heads, causal, padding, keep, scale, factor, least):
    tokens = A.shape[1]
    for r in range(start, stop):
        n = r // (heads * tokens)
        head = r // tokens % heads
        i = r % tokens
        width = _hide(A[r], i, causal, padding, n)
        for rest in (A[r, width:], d[r, width:]):
            for j in range(rest.shape[0]):
                rest[j] = 0
        a = A[r, :width]
        row = d[r, :width]
        log = L[r]
        mean = A.dtype.type(0)
        mixed = u[(n * tokens + i) * heads + head]
        up = v[(n * tokens + i) * heads + head]
        for j in range(mixed.shape[0]):
            mean += mixed[j] * up[j]
        _drop(row, keep, r, factor)
        for j in range(width):
            a_j = a[j] * scale - log
            weight = flushed(exp(a_j if not a_j > 0 else a.dtype.type(0)), least)  # of huge scores L is rounded by more than 1
            row[j] = flushed(weight * (row[j] - mean) * scale, least) if weight != 0 else weight
            a[j] = weight
        _drop(a, keep, r, factor)


@compiled
def _run_rows_of_dS(A, *arguments):
    share(_rows_of_dS, A.shape[0], team(A, COST * A.size), (A, *arguments))


def float32(qkv, heads, causal, padding, keep, p):
    """Whether qkv is dense float32."""
    return qkv.dtype.char == "f" and COMPILED.nonempty(qkv)


def float32_backward(qkv, padding, keep, u, L, v, heads, causal, p):
    """As `float32`, for u, L and v too."""
    return float32(qkv, heads, causal, padding, keep, p) and COMPILED.dense(qkv, u, L, v)


def booleans(x, shape):
    """A mask as a writable array of this shape; without entries if it is None."""
    return np.empty((0, 0), np.bool_) if x is None else writable(x).reshape(shape)


def chunks(qkv, heads, causal, padding, keep, p):
    """For each chunk of the batch: its slice, its plans, scratch for A and for dS, and the last arguments of the passes."""
    n, tokens, features = qkv.shape
    number = qkv.dtype.type
    d = features // 3 // heads
    constants = number(1 / math.sqrt(d)), number(1 / (1 - p)), flush_threshold(qkv)
    sequences = min(n, max(1, AT_ONCE // (heads * tokens * tokens)))
    scratch = np.empty((2, sequences * heads * tokens, tokens), qkv.dtype)
    for start in range(0, n, sequences):
        part = slice(start, min(start + sequences, n))
        m = part.stop - start
        masks = (
            booleans(None if padding is None else padding[part], (m, tokens)),
            booleans(None if keep is None else keep[part], (m * heads * tokens, tokens)),
        )
        yield part, plans(m, heads, tokens, d), scratch[:, : m * heads * tokens], (heads, causal, *masks, *constants)


def run(plan, a, b, out):
    """Writes a @ b to out, as the plan says. The arrays have two axes."""
    status = execute(plan.numbers, a, b, out, out[0])
    if status:
        raise OSError(f"oneDNN's matmul for attention returned status {status}")


def as_row(x):
    """x as a single row, with two axes."""
    return x.reshape(1, -1)


def thirds(qkv):
    """Queries, keys and values, each from its first number to the end of qkv. The plans know the strides."""
    row = as_row(qkv)
    d = qkv.shape[2] // 3
    return row, row[:, d:], row[:, 2 * d :]


@twin(attention, serves=float32)
def _(qkv, heads, causal, padding, keep, p):
    n, tokens, features = qkv.shape
    u = np.empty((n, tokens, features // 3), qkv.dtype)
    L = np.empty((n, heads, tokens), qkv.dtype)
    for part, products, (A, _), arguments in chunks(qkv, heads, causal, padding, keep, p):
        q, k, values = thirds(qkv[part])
        run(products.scores, q, k, A)
        _run_rows_of_A(A, L[part].reshape(-1), *arguments)
        run(products.mixed, A, values, as_row(u[part]))
        if not (np.isfinite(u[part, 0]).all() and np.isfinite(L[part]).all()):
            return definition(attention)(qkv, heads, causal, padding, keep, p)
    return u, L


@twin(attention_backward, serves=float32_backward)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    dqkv = np.empty_like(qkv)
    by_head = -1, u.shape[2] // heads
    for part, products, (A, dS), arguments in chunks(qkv, heads, causal, padding, keep, p):
        q, k, values = thirds(qkv[part])
        dq, dk, dvalues = thirds(dqkv[part])
        run(products.scores, q, k, A)
        run(products.dA, as_row(v[part]), values, dS)
        _run_rows_of_dS(A, dS, L[part].reshape(-1), u[part].reshape(by_head), v[part].reshape(by_head), *arguments)
        run(products.dvalues, A, as_row(v[part]), dvalues)
        run(products.dq, dS, k, dq)
        run(products.dk, dS, q, dk)
        if not np.isfinite(dqkv[part, 0]).all():
            return definition(attention_backward)(qkv, padding, keep, u, L, v, heads, causal, p)
    return dqkv
