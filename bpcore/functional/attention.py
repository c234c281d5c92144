"""Multi-head attention over sequences (n, tokens, features)."""

from __future__ import annotations

import math

from bpcore.array import Array, device, namespace
from bpcore.functional.arithmetic import sparse_product
from bpcore.functional.dropout import dropout
from bpcore.functional.numerics import flush, masked
from bpcore.primitive import primitive

__all__ = ["attention", "attention_backward"]


def split_heads(z: Array, heads: int) -> Array:
    """Reorders (n, tokens, heads · d) to (n, heads, tokens, d)."""
    xp = namespace(z)
    n, tokens, d = z.shape
    return xp.permute_dims(xp.reshape(z, (n, tokens, heads, d // heads)), (0, 2, 1, 3))


def join_heads(z: Array) -> Array:
    """Reorders (n, heads, tokens, d) to (n, tokens, heads · d)."""
    xp = namespace(z)
    n, heads, tokens, d = z.shape
    return xp.reshape(xp.permute_dims(z, (0, 2, 1, 3)), (n, tokens, heads * d))


def unpack(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each (n, heads, tokens, d), from qkv (n, tokens, 3 · heads · d)."""
    d = qkv.shape[-1] // 3
    q, k, values = qkv[..., :d], qkv[..., d : 2 * d], qkv[..., 2 * d :]
    return split_heads(q, heads), split_heads(k, heads), split_heads(values, heads)


def pack(*parts: Array) -> Array:
    """The inverse of `unpack`, which is also its adjoint."""
    return namespace(parts[0]).concat([join_heads(part) for part in parts], axis=-1)


def visible(tokens: int, causal: bool, padding: Array | None, like: Array) -> Array | None:
    """Whether a query sees a key: booleans (n or 1, 1, queries or 1, keys). None if all see all."""
    xp = namespace(like)
    seen = None
    if causal:
        token = xp.arange(tokens, device=device(like))
        seen = xp.reshape(xp.expand_dims(token, axis=0) <= xp.expand_dims(token, axis=1), (1, 1, tokens, tokens))
    if padding is not None:
        keys = xp.reshape(padding, (padding.shape[0], 1, 1, tokens))
        seen = keys if seen is None else xp.logical_and(seen, keys)
    return seen


def attention_scores(q: Array, k: Array, seen: Array | None) -> Array:
    """S = q kᵀ / √d, (n, heads, queries, keys), -∞ where the query does not see the key. seen: see `visible`."""
    xp = namespace(q)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ xp.matrix_transpose(k)
    return scores if seen is None else xp.where(seen, scores, xp.full((), -math.inf, dtype=q.dtype, device=device(q)))


@primitive(float32=True)
def attention(qkv: Array, heads: int, causal: bool, padding: Array | None, keep: Array | None, p: float) -> tuple[Array, Array]:
    """u = A v with A = softmax(q kᵀ / √d) over the keys that the query sees, in each head.

    qkv (n, tokens, 3 · heads · d): queries, then keys, then values, each one head after the other. causal: no query sees later
    keys. padding: None or booleans (n, tokens); no query sees a key where it is False, and a query that sees no key has A = 0.
    A key with A = 0 and a query have no influence on each other, here and in the gradients, whatever they hold, also NaN.
    (cuDNN's twin needs finite numbers in later tokens.)
    keep: None or booleans (n, heads, tokens, tokens), the mask of dropout on A with probability p.
    Returns u (n, tokens, heads · d) and L (n, heads, tokens) = log Σ exp(q kᵀ / √d) over the keys that the query sees, 0 if it
    sees none. The backward function computes A = exp(q kᵀ / √d - L) again.

    Vaswani et al., 2017
    Dao et al., 2022
    """
    xp = namespace(qkv)
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    scores = attention_scores(q, k, seen)
    largest = xp.max(scores, axis=-1, keepdims=True)  # exp would overflow
    sees_any = None if padding is None else xp.any(seen, axis=-1, keepdims=True)
    largest = largest if sees_any is None else masked(largest, sees_any)
    A = xp.exp(scores - largest)
    total = xp.sum(A, axis=-1, keepdims=True)
    total = total if sees_any is None else xp.where(sees_any, total, xp.ones_like(total))
    A = flush(A / total)
    A = A if seen is None else masked(A, seen)  # also where the total is NaN
    A = A if keep is None else dropout(A, keep, p)
    L = largest + xp.log(total)
    u = sparse_product(A, values)
    u = u if keep is None else xp.where(xp.isnan(L), L, u)  # dropout does not hide that A is NaN
    return join_heads(u), L[..., 0]


@primitive(float32=True)
def attention_backward(
    qkv: Array, padding: Array | None, keep: Array | None, u: Array, L: Array, v: Array, heads: int, causal: bool, p: float
) -> Array:
    """B[attention, qkv](v) for v (n, tokens, heads · d), u and L as `attention` returned them. Returns dqkv, like qkv.

    Softmax's Jacobian gives A ⊙ (dA - Σ A dA). Σ A dA over the keys equals Σ u v over the features of a head, also with dropout.
    """
    xp = namespace(qkv)
    q, k, values = unpack(qkv, heads)
    seen = visible(qkv.shape[1], causal, padding, qkv)
    log_A = attention_scores(q, k, seen) - xp.expand_dims(L, axis=-1)
    A = flush(xp.exp(xp.minimum(log_A, xp.zeros_like(log_A))))  # of huge scores L is rounded by more than 1
    A = A if seen is None else masked(A, seen)  # also where L is NaN
    mean = xp.sum(split_heads(u * v, heads), axis=-1, keepdims=True)
    v = split_heads(v, heads)
    dA = v @ xp.matrix_transpose(values)
    dvalues = sparse_product(xp.matrix_transpose(A if keep is None else dropout(A, keep, p)), v)
    dS = flush(A * ((dA if keep is None else dropout(dA, keep, p)) - mean) * (1 / math.sqrt(q.shape[-1])))
    dS = masked(dS, A != 0)
    # where q or k is not finite and seen, dS is NaN already, or 0 because the score is -∞
    q, k = masked(q, xp.isfinite(q)), masked(k, xp.isfinite(k))
    return pack(dS @ k, xp.matrix_transpose(dS) @ q, dvalues)
