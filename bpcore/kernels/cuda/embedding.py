"""Embedding: rows of a table, and sums back to them."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.embedding import embedding, embedding_backward, scatter_add
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, integers, kernel
from bpcore.primitive import twin

TABLE = 16  # rows of a table that a block may have, as in embedding.cu
BLOCKS = 2048  # from that many blocks on, each has more rows, and the index is gone through less often


def whole(x: Any) -> bool:
    """Whether x holds integers in one piece."""
    return x.dtype.kind in "iu" and x.flags.c_contiguous


def ids_and_table(ids: Any, W: Any) -> bool:
    """Whether the ids are `whole`, and the table is dense."""
    return whole(ids) and CUDA.dense(W)


def ids_and_gradients(ids: Any, v: Any, dW: Any) -> bool:
    """Whether the ids are `whole`, and the arrays are dense."""
    return whole(ids) and CUDA.dense(v, dW)


def rows_and_index(v: Any, index: Any, out: Any) -> bool:
    """Whether the index is `whole`, and the arrays are dense."""
    return whole(index) and CUDA.dense(v, out)


@twin(embedding, serves=ids_and_table)
def _(ids, W):
    u = cupy.empty((*ids.shape, W.shape[1]), W.dtype)
    each("embedding", "gather", W.dtype.char, u.size, W.shape[1], W.shape[0], *integers(ids), W, u)
    return u


@twin(embedding_backward, serves=ids_and_gradients)
def _(ids, v, dW):
    scatter_add(v, ids, dW)


@twin(scatter_add, serves=rows_and_index)
def _(v, index, out):
    n, d = out.shape
    if not out.size:
        return
    strips = -(-d // 128)
    share = max(1, min(TABLE, n * strips // BLOCKS))
    arguments = index.size, d, n, share, v, *integers(index), out
    kernel("embedding", "scatter", v.dtype.char)((-(-n // share), strips), (128,), arguments)
