"""Sequences (n, tokens, features): embedding, positions, attention."""

from __future__ import annotations

import math

from bpcore.backend import device, is_half, namespace
from bpcore.functional.arithmetic import flush
from bpcore.functional.dropout import dropout
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


def unpack(qkv, heads):
    """Queries, keys and values, each (n, heads, tokens, d), from qkv (n, tokens, 3 · heads · d)."""
    d = qkv.shape[-1] // 3
    return tuple(split_heads(qkv[..., i * d : (i + 1) * d], heads) for i in range(3))


def pack(*parts):
    """The adjoint of `unpack`, and its inverse."""
    return namespace(parts[0]).concat([join_heads(one) for one in parts], axis=-1)


def rotate_heads(qkv, heads, sign):
    """qkv with queries and keys turned by their positions, in each head; sign as in `rotate`."""
    q, k, values = unpack(qkv, heads)
    return pack(rotate(q, sign), rotate(k, sign), values)


def visible(tokens, causal, padding, like):
    """Where a query may look, 1 or 0 in the dtype of `like`, or None for everywhere: (n or 1, 1, queries, keys)."""
    xp = namespace(like)
    seen = None
    if causal:
        token = xp.arange(tokens, device=device(like))
        seen = xp.astype(xp.expand_dims(token, axis=0) <= xp.expand_dims(token, axis=1), like.dtype)
        seen = xp.reshape(seen, (1, 1, tokens, tokens))
    if padding is not None:
        kept = xp.reshape(xp.astype(padding, like.dtype), (padding.shape[0], 1, 1, tokens))
        seen = kept if seen is None else seen * kept
    return seen


def attention_scores(q, k, seen):
    """S = q kᵀ / √d (n, heads, queries, keys), far below all others where a key is not seen."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ namespace(q).matrix_transpose(k)
    return scores if seen is None else scores - (1 - seen) * 1e9


@primitive
@in_float32
def attention(qkv, heads, causal, padding, keep, p):
    """u = A v with A = softmax(q kᵀ / √d) over the keys that are seen, in each head.        Vaswani et al., 2017

    qkv (n, tokens, 3 · heads · d): queries, keys and values side by side, each head after head. causal: no query sees later
    keys. padding None or (n, tokens), booleans: no query sees keys where it is False; one that sees none has A = 0.
    keep None or (n, heads, tokens, tokens), booleans: dropout of A with probability p.
    Returns u (n, tokens, heads · d) and L = log Σ exp(q kᵀ / √d) over the keys that a query sees, 0 where it sees none,
    (n, heads, tokens): what the backward pass needs to compute A = exp(q kᵀ / √d - L) again.        Dao et al., 2022
    """
    xp = namespace(qkv)
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    scores = attention_scores(q, k, seen)
    largest = xp.max(scores, axis=-1, keepdims=True)  # exp would overflow
    L = largest + xp.log(xp.sum(xp.exp(scores - largest), axis=-1, keepdims=True))
    if padding is not None:
        L = L * xp.max(seen, axis=-1, keepdims=True)
    A = flush(xp.exp(scores - L))
    A = A if keep is None else dropout(A, keep, p)
    return join_heads(A @ values), L[..., 0]


@primitive
@in_float32
def attention_backward(qkv, heads, causal, padding, keep, p, u, L, v):
    """B[attention, qkv](v) for v (n, tokens, heads · d), u and L as `attention` returned them. Returns dqkv, like qkv.

    Softmax's Jacobian is A ⊙ (dA - Σ A dA), where Σ A dA over the keys is Σ u v over a head's features, with dropout too.
    """
    xp = namespace(qkv)
    q, k, values = unpack(qkv, heads)
    scores = attention_scores(q, k, visible(qkv.shape[1], causal, padding, qkv))
    A = flush(xp.exp(scores - xp.expand_dims(L, axis=-1)))
    mean = xp.sum(split_heads(u * v, heads), axis=-1, keepdims=True)
    v = split_heads(v, heads)
    dA = v @ xp.matrix_transpose(values)
    dvalues = xp.matrix_transpose(A if keep is None else dropout(A, keep, p)) @ v
    d = flush(A * ((dA if keep is None else dropout(dA, keep, p)) - mean) * (1 / math.sqrt(q.shape[-1])))
    return pack(d @ k, xp.matrix_transpose(d) @ q, dvalues)
