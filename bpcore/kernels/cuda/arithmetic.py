"""Sums of arrays."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.arithmetic import add
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each_wide
from bpcore.primitive import twin


def equal_shapes(a: Any, b: Any) -> bool:
    """Whether a and b are `dense` arrays of one shape."""
    return isinstance(b, cupy.ndarray) and a.shape == b.shape and CUDA.dense(a, b)


@twin(add, serves=equal_shapes)
def _(a, b):
    u = cupy.empty_like(a)
    each_wide("arithmetic", "add", a.dtype.char, a.size, a, b, u)
    return u
