"""Sequences (n, tokens, features): embedding, positions, attention."""

from __future__ import annotations

import math

from bpcore.backend import device, is_half, namespace
from bpcore.functional.arithmetic import flush, smallest_normal
from bpcore.functional.linear import rows
from bpcore.functional.primitive import in_float32, primitive


@primitive
def embedding(ids, W):
    """u = the rows of W (n, d) that ids (...), integers, name. Returns u (..., d)."""
    xp = namespace(W)
    return xp.reshape(xp.take(W, indices(ids), axis=0), (*ids.shape, W.shape[1]))


@primitive
def embedding_backward(ids, v, dW):
    """B[embedding, W](v): row i of dW (n, d) is the sum of v (..., d) where ids is i. Writes dW."""
    scatter_add(rows(v), indices(ids), dW)


def indices(ids):
    """ids (...), of any integer dtype, as one axis of int64: uint8 has no names for a thousand rows."""
    xp = namespace(ids)
    return xp.astype(xp.reshape(ids, (-1,)), xp.int64)


@primitive
@in_float32
def scatter_add(v, index, out):
    """Writes to out (n, d) zeros plus, for each k, v[k] added to row index[k]; right where an index comes twice.

    A product with a one-hot matrix; a namespace that counts is told what it means.
    """
    xp = namespace(v)
    if hasattr(xp, "count_scatter_add"):
        xp.count_scatter_add(v, index, out)
        return
    names = xp.arange(out.shape[0], dtype=index.dtype, device=device(v))
    one_hot = xp.astype(xp.expand_dims(names, axis=1) == xp.expand_dims(index, axis=0), v.dtype)  # (n, rows)
    out[...] = one_hot @ v


def sinusoids(tokens, d, like):
    """Positions as sines and cosines of d / 2 wavelengths from 2π to 10000 · 2π: (tokens, d).        Vaswani et al., 2017"""
    xp = namespace(like)
    angle = angles(tokens, d, like)
    pair = xp.stack((xp.sin(angle), xp.cos(angle)), axis=-1)  # (tokens, d / 2, 2)
    return xp.astype(xp.reshape(pair, (tokens, d)), like.dtype, copy=False)


def angles(tokens, d, like):
    """t · 10000^(-2 i / d): (tokens, d / 2), in the dtype of `like`; for float16 in float32."""
    xp = namespace(like)
    dtype = xp.float32 if is_half(like) else like.dtype
    rate = xp.exp(xp.arange(d // 2, dtype=dtype, device=device(like)) * (-2 * math.log(10000.0) / d))
    token = xp.arange(tokens, dtype=dtype, device=device(like))
    return xp.expand_dims(token, axis=1) * xp.expand_dims(rate, axis=0)


@in_float32
def rotate(z, sign):
    """Each pair (z_2i, z_2i+1) of z (..., tokens, d) turned by its token's angle.        Su et al., 2021

    A rotation's adjoint is the rotation back: B[rotate(·, 1), z](v) = rotate(v, -1).
    """
    xp = namespace(z)
    angle = angles(z.shape[-2], z.shape[-1], z)
    cos, sin = xp.cos(angle), sign * xp.sin(angle)
    pairs = xp.reshape(z, (*z.shape[:-1], z.shape[-1] // 2, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    return xp.reshape(xp.stack((a * cos - b * sin, a * sin + b * cos), axis=-1), z.shape)


def visible(queries, keys, causal, padding, like):
    """Where a query may look, 1 or 0 in the dtype of `like`, or None for everywhere: (n or 1, 1, queries, keys).

    causal: not at later tokens. padding (n, keys), booleans: not at keys where it is False.
    """
    xp = namespace(like)
    seen = None
    if causal:
        query, key = (xp.arange(m, device=device(like)) for m in (queries, keys))
        seen = xp.astype(xp.expand_dims(key, axis=0) <= xp.expand_dims(query, axis=1), like.dtype)
        seen = xp.reshape(seen, (1, 1, queries, keys))
    if padding is not None:
        kept = xp.reshape(xp.astype(padding, like.dtype), (padding.shape[0], 1, 1, keys))
        seen = kept if seen is None else seen * kept
    return seen


@primitive
@in_float32
def attention_weights(q, k, seen):
    """A = softmax(q kᵀ / √d) over the keys that are seen; a query that sees none has zeros.        Vaswani et al., 2017

    q (n, heads, queries, d), k (n, heads, keys, d), seen as `visible` makes it. Returns A (n, heads, queries, keys).
    """
    xp = namespace(q)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ xp.matrix_transpose(k)
    if seen is not None:
        scores = scores - (1 - seen) * 1e9  # far below every score, so that the maximum is one that is seen
    e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    if seen is not None:
        e = e * seen
    total = xp.sum(e, axis=-1, keepdims=True)
    return flush(e / xp.maximum(total, xp.full_like(total, smallest_normal(q))))


@primitive
@in_float32
def attention_weights_backward(A, q, k, v):
    """B[A, (q, k)](v): softmax's Jacobian, then those of q kᵀ / √d. Returns dq and dk."""
    xp = namespace(A)
    d = A * (v - xp.sum(A * v, axis=-1, keepdims=True)) * (1 / math.sqrt(q.shape[-1]))
    d = flush(d)
    return d @ k, xp.matrix_transpose(d) @ q


def split_heads(z, heads):
    """(n, tokens, heads · d) as (n, heads, tokens, d)."""
    xp = namespace(z)
    n, tokens, d = z.shape
    return xp.permute_dims(xp.reshape(z, (n, tokens, heads, d // heads)), (0, 2, 1, 3))


def join_heads(z):
    """(n, heads, tokens, d) as (n, tokens, heads · d)."""
    xp = namespace(z)
    n, heads, tokens, d = z.shape
    return xp.reshape(xp.permute_dims(z, (0, 2, 1, 3)), (n, tokens, heads * d))
