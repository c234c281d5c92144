"""Gradients of rows that were looked up, added up in one pass."""

from __future__ import annotations

import numpy as np

from bpcore.functional.embedding import scatter_add
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin


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
    share(_scatter_add, out.shape[1], team(v, v.size), (v, index, out))  # each thread some of the columns: in one order


def int64(v, index, out):
    """Whether index holds an int64 for each row of v."""
    return len(v) == len(index) and COMPILED.dense(v, out) and index.flags.carray and index.dtype == np.int64


@twin(scatter_add, serves=int64)
def _(v, index, out):
    out[...] = 0
    _run_scatter_add(v, index, out)
