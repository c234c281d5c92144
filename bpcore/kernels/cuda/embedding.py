"""Embedding: looks up rows of a table, and adds up their gradients."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.embedding import embedding, embedding_backward, scatter_add
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, index_arguments, kernel
from bpcore.primitive import twin

TABLE = 16  # the most rows of a table that a block sums; the same in embedding.cu
BLOCKS = 2048  # with more blocks than this, a block sums more rows, so that fewer blocks read the index


def dense_integers(x: Any) -> bool:
    """Whether x has integers and is contiguous."""
    return x.dtype.kind in "iu" and x.flags.c_contiguous


def ids_and_table(ids: Any, W: Any) -> bool:
    """Whether the ids are `dense_integers`, and the table is dense."""
    return dense_integers(ids) and CUDA.dense(W)


def ids_and_gradients(ids: Any, v: Any, dW: Any) -> bool:
    """Whether the ids are `dense_integers`, and the arrays are dense."""
    return dense_integers(ids) and CUDA.dense(v, dW)


def rows_and_index(v: Any, index: Any, out: Any) -> bool:
    """Whether the index is `dense_integers`, and the arrays are dense."""
    return dense_integers(index) and CUDA.dense(v, out)


@twin(embedding, serves=ids_and_table)
def _(ids, W):
    u = cupy.empty((*ids.shape, W.shape[1]), W.dtype)
    each("embedding", "gather", W.dtype.char, u.size, W.shape[1], W.shape[0], *index_arguments(ids), W, u)
    return u


@twin(embedding_backward, serves=ids_and_gradients)
def _(ids, v, dW):
    scatter_add(v.reshape(-1, dW.shape[1]), ids.reshape(-1), dW)


@twin(scatter_add, serves=rows_and_index)
def _(v, index, out):
    n, d = out.shape
    if not out.size:
        return
    strips = -(-d // 128)
    rows = max(1, min(TABLE, n * strips // BLOCKS))
    arguments = index.size, d, n, rows, v, *index_arguments(index), out
    kernel("embedding", "scatter", v.dtype.char)((-(-n // rows), strips), (128,), arguments)
