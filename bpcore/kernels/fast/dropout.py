"""Dropout's arithmetic in one pass."""

from __future__ import annotations

import numpy as np

from bpcore.kernels import serves
from bpcore.kernels.fast.dense import dense
from bpcore.kernels.fast.threads import compiled, share, team


@compiled
def _masked(start, stop, z, keep, scale, u):
    z, keep, u = z[start:stop], keep[start:stop], u[start:stop]
    zero = scale - scale
    for i in range(z.shape[0]):
        u[i] = z[i] * (scale if keep[i] else zero)


@compiled
def _dropout(z, keep, scale, u):
    share(_masked, z.shape[0], team(z, z.size), (z, keep, scale, u))


@serves(lambda z, keep, p: dense(z) and keep.shape == z.shape and keep.flags.carray)
def dropout(z, keep, p):
    u = np.empty(z.shape, z.dtype)
    _dropout(z.reshape(-1), keep.reshape(-1), z.dtype.type(1 / (1 - p)), u.reshape(-1))
    return u
