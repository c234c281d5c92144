"""Attention: scores and their softmax are computed in place.

A product multiplies what has weight 0 too, so a result that is not finite is computed again by the definition.
"""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.attention import attention, attention_backward, join_heads, pack, split_heads, unpack, visible
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.engine.blocks import flush_in_place
from bpcore.primitive import definition, twin


def attention_scores(q, k, seen):
    """As in functional/attention.py."""
    scores = np.matmul(q * (1 / math.sqrt(q.shape[-1])), k.swapaxes(-1, -2))
    if seen is not None:
        np.copyto(scores, -np.inf, where=~seen)
    return scores


@twin(attention, serves=not_half)
def _(qkv, heads, causal, padding, keep, p):
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    A = attention_scores(q, k, seen)
    largest = np.maximum.reduce(A, axis=-1, keepdims=True)
    sees_any = None if padding is None else np.logical_or.reduce(seen, axis=-1, keepdims=True)
    if sees_any is not None:
        np.copyto(largest, 0, where=~sees_any)
    np.exp(np.subtract(A, largest, out=A), out=A)
    total = np.add.reduce(A, axis=-1, keepdims=True)
    if sees_any is not None:
        np.copyto(total, 1, where=~sees_any)
    np.divide(A, total, out=A)
    L = largest + np.log(total)
    flush_in_place(A)
    if keep is not None:
        drop_in_place(A, keep, p)
    u = join_heads(np.matmul(A, values))
    if not (np.isfinite(u).all() and np.isfinite(L).all()):
        return definition(attention)(qkv, heads, causal, padding, keep, p)
    return u, L[..., 0]


@twin(attention_backward, serves=not_half)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    A = attention_scores(q, k, seen)
    np.subtract(A, L[..., None], out=A)
    flush_in_place(np.exp(np.minimum(A, 0, out=A), out=A))  # of huge scores L is rounded by more than 1
    mean = np.add.reduce(split_heads(u * v, heads), axis=-1, keepdims=True)
    joined, v = v, split_heads(v, heads)
    d = np.matmul(v, values.swapaxes(-1, -2))
    if keep is not None:
        drop_in_place(d, keep, p)
    np.multiply(np.subtract(d, mean, out=d), A, out=d)
    flush_in_place(np.multiply(d, 1 / math.sqrt(q.shape[-1]), out=d))
    if keep is not None:
        drop_in_place(A, keep, p)
    dqkv = pack(np.matmul(d, k), np.matmul(d.swapaxes(-1, -2), q), np.matmul(A.swapaxes(-1, -2), v))
    if not np.isfinite(dqkv).all():
        return definition(attention_backward)(qkv, padding, keep, u, L, joined, heads, causal, p)
    return dqkv


def drop_in_place(A, keep, p):
    """Dropout of A, which the caller must own."""
    np.copyto(A, 0, where=~keep)
    np.multiply(A, 1 / (1 - p), out=A)
