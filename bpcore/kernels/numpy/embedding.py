"""Adds up the gradients of rows, sorted by their ids: a few for all ids at a time, what is left id by id."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import scatter_add
from bpcore.functional.numerics import sum_over
from bpcore.kernels.conditions import not_half
from bpcore.primitive import twin

LARGE = 1 << 17  # numbers: of fewer, np.add.reduceat, which goes through them column by column, is quicker
FEW = 8  # rows of an id that are added to those of other ids at a time


@twin(scatter_add, serves=not_half)
def _(v, index, out):
    out[...] = 0
    if not index.size:
        return
    order = np.argsort(index.astype(np.uint16) if len(out) <= 1 << 16 else index, kind="stable")  # of 16 bits it is quicker
    index = index[order]
    starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))  # where each id begins
    if v.size < LARGE:
        out[index[starts]] = np.add.reduceat(v[order], starts, axis=0)
        return
    counts, ids = np.diff(starts, append=index.size), index[starts]
    out[ids] = v[order[starts]]
    for k in range(1, FEW):
        more = counts > k
        starts, counts, ids = starts[more], counts[more], ids[more]
        out[ids] += v[order[starts + k]]
    for start, count, i in zip(starts, counts, ids, strict=True):
        if count > FEW:
            out[i] += sum_over(v[order[start + FEW : start + count]], 0)
