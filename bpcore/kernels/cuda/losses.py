"""Cross-entropy for class indices: one kernel forward and one backward."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.losses import cross_entropy, cross_entropy_backward, relative
from bpcore.functional.numerics import smallest_normal
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import index_arguments, kernel, pointer, scalar_arguments, teams
from bpcore.kernels.cuda.engine.sums import scratch, total
from bpcore.primitive import twin

BLOCKS = 1024  # that share the rows; the last one to finish adds up their sums


def class_indices(t: Any, y: Any, weights: Any, smoothing: float) -> bool:
    """As `CUDA.class_indices`, with contiguous y and weights."""
    return CUDA.class_indices(t, y, weights) and y.flags.c_contiguous and (weights is None or weights.flags.c_contiguous)


@twin(cross_entropy, serves=class_indices)
def _(t, y, weights, smoothing):
    k = t.shape[-1]
    rows = t.size // k
    char = t.dtype.char
    phi = cupy.empty_like(t)
    J = cupy.empty((), t.dtype)
    weights = None if weights is None else relative(weights)
    grid, block = teams(rows, k, char)
    blocks = min(BLOCKS, grid[0])
    arguments = rows, k, t, *index_arguments(y), pointer(weights), float(smoothing), scratch(2 * blocks, char), phi, J
    kernel("losses", "cross_entropy", char)((blocks,), block, arguments)
    return J, phi


def class_indices_backward(phi: Any, y: Any, weights: Any, v: Any, smoothing: float) -> bool:
    """As `class_indices`, where v is a Python number, or one number on the device in the dtype of phi."""
    number = not isinstance(v, cupy.ndarray) or (v.size == 1 and v.dtype == phi.dtype)
    return number and class_indices(phi, y, weights, smoothing)


@twin(cross_entropy_backward, serves=class_indices_backward)
def _(phi, y, weights, v, smoothing):
    k = phi.shape[-1]
    dt = cupy.empty_like(phi)
    weights = None if weights is None else relative(weights)
    weights_and_sum = (0, 0) if weights is None else (weights, total(weights, smallest_normal(weights)))
    rows = phi.size // k
    targets = rows, k, phi, *index_arguments(y), *weights_and_sum, float(1 - smoothing), smoothing / k
    grid, block = teams(rows, k, phi.dtype.char)
    kernel("losses", "cross_entropy_backward", phi.dtype.char)(grid, block, (*targets, *scalar_arguments(v), dt))
    return dt
