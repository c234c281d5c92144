"""Attention: scores and their softmax are computed in place."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.attention import attention, attention_backward, join_heads, pack, split_heads, unpack, visible
from bpcore.kernels.conditions import not_half
from bpcore.kernels.numpy.engine.blocks import flush_in_place
from bpcore.primitive import twin


def attention_scores(q, k, seen):
    """As in functional/attention.py."""
    scores = np.matmul(q * (1 / math.sqrt(q.shape[-1])), k.swapaxes(-1, -2))
    return scores if seen is None else np.add(scores, (seen - 1) * 1e9, out=scores)


@twin(attention, serves=not_half)
def _(qkv, heads, causal, padding, keep, p):
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    A = attention_scores(q, k, seen)
    largest = np.maximum.reduce(A, axis=-1, keepdims=True)
    np.exp(np.subtract(A, largest, out=A), out=A)
    total = np.add.reduce(A, axis=-1, keepdims=True)
    np.divide(A, total, out=A)
    L = largest + np.log(total)
    if padding is not None:
        sees_any = np.maximum.reduce(seen, axis=-1, keepdims=True)
        np.multiply(L, sees_any, out=L)
        if not sees_any.all():
            np.multiply(A, sees_any, out=A)
    flush_in_place(A)
    if keep is not None:
        drop_in_place(A, keep, p)
    return join_heads(np.matmul(A, values)), L[..., 0]


@twin(attention_backward, serves=not_half)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    q, k, values = unpack(qkv, heads)
    A = attention_scores(q, k, visible(qkv.shape[1], causal, padding, qkv))
    flush_in_place(np.exp(np.subtract(A, L[..., None], out=A), out=A))
    mean = np.add.reduce(split_heads(u * v, heads), axis=-1, keepdims=True)
    v = split_heads(v, heads)
    d = np.matmul(v, values.swapaxes(-1, -2))
    if keep is not None:
        drop_in_place(d, keep, p)
    np.multiply(np.subtract(d, mean, out=d), A, out=d)
    flush_in_place(np.multiply(d, 1 / math.sqrt(q.shape[-1]), out=d))
    if keep is not None:
        drop_in_place(A, keep, p)
    return pack(np.matmul(d, k), np.matmul(d.swapaxes(-1, -2), q), np.matmul(A.swapaxes(-1, -2), v))


def drop_in_place(A, keep, p):
    """Dropout of A, which the caller must own."""
    np.multiply(A, keep, out=A)
    np.multiply(A, 1 / (1 - p), out=A)
