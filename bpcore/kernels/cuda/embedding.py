"""Embedding: rows of a table, and sums back to them."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, integers, kernel

TABLE = 16  # rows of a table that a block may have, as in embedding.cu
BLOCKS = 2048  # from that many blocks on, each has more rows, and the index is gone through less often


def ids_and(ids: Any, *arrays: Any) -> bool:
    """Whether ids are integers in a row, and the arrays dense."""
    return ids.dtype.kind in "iu" and ids.flags.c_contiguous and dense(*arrays)


@serves(ids_and)
def embedding(ids, W):
    u = cupy.empty((*ids.shape, W.shape[1]), W.dtype)
    each("embedding", "gather", W.dtype.char, u.size, W.shape[1], W.shape[0], *integers(ids), W, u)
    return u


@serves(ids_and)
def embedding_backward(ids, v, dW):
    scatter_add(v, ids, dW)


@serves(lambda v, index, out: ids_and(index, v, out))
def scatter_add(v, index, out):
    n, d = out.shape
    if not out.size:
        return
    strips = -(-d // 128)
    share = max(1, min(TABLE, n * strips // BLOCKS))
    arguments = index.size, d, n, share, v, *integers(index), out
    kernel("embedding", "scatter", v.dtype.char)((-(-n // share), strips), (128,), arguments)
