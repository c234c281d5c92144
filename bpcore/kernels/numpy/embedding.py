"""Adds up the gradients of rows, sorted by their ids."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import scatter_add
from bpcore.kernels.conditions import not_half
from bpcore.primitive import twin


@twin(scatter_add, serves=not_half)
def _(v, index, out):
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))[: index.size]  # where each id begins
    out[...] = 0
    out[index[starts]] = np.add.reduceat(v[order], starts, axis=0)
