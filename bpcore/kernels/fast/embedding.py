"""Adds up the gradients of rows in one pass."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import scatter_add
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

ROWS = 1 << 14  # of a longer sum, row by row, float32 would lose too much


@compiled
def _scatter_add(start, stop, v, index, out):
    for k in range(v.shape[0]):
        i = index[k]
        if 0 <= i < out.shape[0]:
            row, total = v[k], out[i]
            for j in range(start, stop):
                total[j] += row[j]


@compiled
def _run_scatter_add(v, index, out):
    # each thread takes some of the columns: the order of each sum does not depend on the number of threads
    share(_scatter_add, out.shape[1], team(v, v.size), (v, index, out))


def int64_index(v, index, out):
    """Whether index has an int64 for each row of v, the rows are not too many to add one by one, and the arrays are dense."""
    return len(v) == len(index) <= ROWS and COMPILED.dense(v, out) and index.flags.carray and index.dtype == np.int64


@twin(scatter_add, serves=int64_index)
def _(v, index, out):
    out[...] = 0
    _run_scatter_add(v, index, out)
