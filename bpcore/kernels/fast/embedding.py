"""Copies rows, and adds up their gradients in one pass: the first of a sum is written, and only rows without any are set to 0."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import embedding, indices, scatter_add
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine import elementwise
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import definition, twin

ROWS = 1 << 14  # of a longer sum, row by row, float32 would lose too much


@compiled
def _take(start, stop, index, W, u):
    for k in range(start, stop):
        row, out = W[index[k]], u[k]
        for j in range(out.shape[0]):
            out[j] = row[j]


@compiled
def take(index, W, u):
    """Writes the rows of W to u, and returns True; False unless W has all of them."""
    for k in range(len(index)):
        if not 0 <= index[k] < len(W):
            return False
    share(_take, len(index), team(u, u.size), (index, W, u))
    return True


def many_rows(ids, W) -> bool:
    """Whether ids are many integers, and W is dense, in float32: NumPy copies rows in one thread."""
    return W.dtype.char == "f" and ids.dtype.kind in "iu" and ids.size * W.shape[1] > elementwise.MANY and COMPILED.dense(W)


@twin(embedding, serves=many_rows)
def _(ids, W):
    u = np.empty((*ids.shape, W.shape[1]), W.dtype)
    found = take(np.ascontiguousarray(indices(ids)), W, u.reshape(ids.size, -1))
    return u if found else definition(embedding)(ids, W)  # negative indices, and the error of others


@compiled
def _scatter_add(start, stop, v, index, first, found, out):
    n, d = out.shape
    for i in range(start * n // d, stop * n // d):  # whole rows: parts of many rows take longer
        if not found[i]:
            out[i] = 0
    for k in range(v.shape[0]):
        if 0 <= index[k] < out.shape[0]:
            row, total = v[k, start:stop], out[index[k], start:stop]
            if first[k]:
                for j in range(total.shape[0]):
                    total[j] = row[j]
            else:
                for j in range(total.shape[0]):
                    total[j] += row[j]


@compiled
def _run_scatter_add(v, index, first, found, out):
    """Writes the sums to out. first, found: False for each row of v and of out; scratch."""
    for k in range(len(index)):
        i = index[k]
        if 0 <= i < len(out):
            first[k], found[i] = not found[i], True
    # each thread takes some of the columns: the order of each sum does not depend on the number of threads
    share(_scatter_add, out.shape[1], team(v, max(v.size, out.size)), (v, index, first, found, out))


def int64_index(v, index, out):
    """Whether index has an int64 for each row of v, the rows are not too many to add one by one, and the arrays are dense."""
    return len(v) == len(index) <= ROWS and COMPILED.dense(v, out) and index.flags.carray and index.dtype == np.int64


@twin(scatter_add, serves=int64_index)
def _(v, index, out):
    _run_scatter_add(v, index, np.zeros(len(index), np.bool_), np.zeros(len(out), np.bool_), out)
