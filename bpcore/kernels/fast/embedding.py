"""Adds up the gradients of rows in one pass: the first of a sum is written, so that only rows without any are set to 0."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import scatter_add
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

ROWS = 1 << 14  # of a longer sum, row by row, float32 would lose too much


@compiled
def _scatter_add(start, stop, v, index, first, found, out):
    for i in range(out.shape[0]):
        if not found[i]:
            out[i, start:stop] = 0
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
def _run_scatter_add(v, index, out):
    first, found = np.zeros(len(index), np.bool_), np.zeros(len(out), np.bool_)
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
    _run_scatter_add(v, index, out)
