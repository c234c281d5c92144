"""Gradients of rows that were looked up, added up in one pass."""

from __future__ import annotations

import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.fast.dense import dense
from bpcore.kernels.fast.threads import compiled, share, team


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


@serves(lambda v, index, out: len(v) == len(index) and dense(v, out) and index.flags.carray and index.dtype == np.int64)
def scatter_add(v, index, out):
    out[...] = 0
    _run_scatter_add(v, index, out)
