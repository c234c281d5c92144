"""Embedding: rows of a table looked up by ids, and their gradients added up."""

from __future__ import annotations

from bpcore.array import Array, device, namespace
from bpcore.functional.linear import rows
from bpcore.primitive import primitive

__all__ = ["embedding", "embedding_backward", "scatter_add"]


@primitive()
def embedding(ids: Array, W: Array) -> Array:
    """u = the rows of W (n, d) that ids (...), integers, name. Returns u (..., d)."""
    xp = namespace(W)
    return xp.reshape(xp.take(W, indices(ids), axis=0), (*ids.shape, W.shape[1]))


@primitive(writes=("dW",))
def embedding_backward(ids: Array, v: Array, dW: Array) -> None:
    """B[embedding, W](v): row i of dW (n, d) is the sum of v (..., d) where ids is i. Writes dW."""
    scatter_add(rows(v), indices(ids), dW)


def indices(ids: Array) -> Array:
    """ids (...), of any integer dtype, as one axis of int64: uint8 has no names for a thousand rows."""
    xp = namespace(ids)
    return xp.astype(xp.reshape(ids, (-1,)), xp.int64)


@primitive(float32=True, writes=("out",))
def scatter_add(v: Array, index: Array, out: Array) -> None:
    """Writes to out (n, d) zeros plus, for each k, v[k] added to row index[k]; right where an index comes twice.

    A product with a one-hot matrix.
    """
    xp = namespace(v)
    names = xp.arange(out.shape[0], dtype=index.dtype, device=device(v))
    one_hot = xp.astype(xp.expand_dims(names, axis=1) == xp.expand_dims(index, axis=0), v.dtype)  # (n, rows)
    out[...] = one_hot @ v
