"""Sums of arrays, and of their entries."""

from __future__ import annotations

import math
from typing import Any

import cupy

from bpcore.functional.arithmetic import add, axes_of, kept, summation
from bpcore.functional.numerics import Axes
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import SUMMING, each_row, each_wide
from bpcore.kernels.cuda.engine.sums import row_sums, sum_columns, total
from bpcore.primitive import twin


def equal_ends(a: Any, b: Any) -> bool:
    """Whether a and b are `dense` arrays, and the shape of a ends in that of b, which has an axis."""
    return isinstance(b, cupy.ndarray) and b.ndim > 0 and a.shape[-b.ndim :] == b.shape and CUDA.dense(a, b)


@twin(add, serves=equal_ends)
def _(a, b):
    u, char = cupy.empty_like(a), a.dtype.char
    if a.shape == b.shape:
        each_wide("sums", "add", char, a.size, a, b, u)
    elif a.size:
        each_row("sums", "add_rows", char, a.size // b.size, b.size, a, b, 0, u)
    return u


def outer_axes(z: Any, axis: Axes, keepdims: bool) -> bool:
    """Whether z is dense and not empty, and the axes are all, its first ones, or its last ones, with enough rows for the GPU."""
    axes = axes_of(z, axis)
    if len(axes) < z.ndim and axes[-1:] == [z.ndim - 1] and math.prod(z.shape[: z.ndim - len(axes)]) < SUMMING:
        return False
    return axes in ([*range(len(axes))], [*range(z.ndim - len(axes), z.ndim)]) and CUDA.nonempty(z)


@twin(summation, serves=outer_axes)
def _(z, axis, keepdims):
    axes = axes_of(z, axis)
    rest = tuple(n for i, n in enumerate(z.shape) if i not in axes)
    shape = kept(z.shape, axis) if keepdims else rest
    if len(axes) == z.ndim:
        return total(z, -math.inf).reshape(shape)
    u = cupy.empty(shape, z.dtype)
    if not axes:
        u[...] = z
    elif axes[0] == 0:
        sum_columns(z.reshape(-1, math.prod(rest)), u)
    else:
        row_sums(z.reshape(math.prod(rest), -1), u)
    return u
