"""Softmax and its logarithm along the last axis."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import kernel, teams
from bpcore.primitive import twin


def by_rows(name: str, *arrays: Any) -> Any:
    """Launch a kernel of softmax.cu on the rows of the arrays."""
    u = cupy.empty_like(arrays[0])
    n = u.shape[-1]
    if u.size:
        grid, block = teams(u.size // n, n, u.dtype.char)
        kernel("softmax", name, u.dtype.char)(grid, block, (u.size // n, n, *arrays, u))
    return u


@twin(softmax, serves=CUDA.last_axis)
def _(z, axis):
    return by_rows("softmax", z)


@twin(softmax_backward, serves=CUDA.last_axis)
def _(u, v, axis):
    return by_rows("softmax_backward", u, v)


@twin(log_softmax, serves=CUDA.last_axis)
def _(z, axis):
    return by_rows("log_softmax", z)


@twin(log_softmax_backward, serves=CUDA.last_axis)
def _(u, v, axis):
    return by_rows("log_softmax_backward", u, v)
