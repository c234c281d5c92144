"""Embedding: looks up rows of a table by ids, and adds up their gradients."""

from __future__ import annotations

from bpcore.array import Array, device, namespace
from bpcore.functional.arithmetic import sparse_product
from bpcore.functional.linear import rows
from bpcore.primitive import primitive

__all__ = ["embedding", "embedding_backward", "scatter_add"]


@primitive()
def embedding(ids: Array, W: Array) -> Array:
    """u (..., d): for each of ids (...), integers, that row of W (n, d)."""
    xp = namespace(W)
    return xp.reshape(xp.take(W, indices(ids), axis=0), (*ids.shape, W.shape[1]))


@primitive(writes=("dW",))
def embedding_backward(ids: Array, v: Array, dW: Array) -> None:
    """B[embedding, W](v). Writes dW (n, d): row i is the sum of v (..., d) over the places where ids is i."""
    scatter_add(rows(v), indices(ids), dW)


def indices(ids: Array) -> Array:
    """ids (...), of any integer dtype, as int64 with one axis: uint8 cannot count a thousand rows."""
    xp = namespace(ids)
    return xp.astype(xp.reshape(ids, (-1,)), xp.int64)


@primitive(float32=True, writes=("out",))
def scatter_add(v: Array, index: Array, out: Array) -> None:
    """Writes out (n, d): row i is the sum of v[k] over all k with index[k] = i, 0 if there is none.

    Computed as the product of a one-hot matrix and v.
    """
    xp = namespace(v)
    row = xp.arange(out.shape[0], dtype=index.dtype, device=device(v))
    one_hot = xp.astype(xp.expand_dims(row, axis=1) == xp.expand_dims(index, axis=0), v.dtype)  # (n, rows)
    out[...] = sparse_product(one_hot, v)
