"""Cross-entropy of class indices: a kernel each way."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.losses import cross_entropy, cross_entropy_backward
from bpcore.functional.numerics import smallest_normal
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, integers, kernel, pointer, scalar, teams
from bpcore.kernels.cuda.engine.sums import scratch, total
from bpcore.primitive import twin

BLOCKS = 1024  # that the rows are shared among: the last to finish adds up what each has


def classes(t: Any, y: Any, weights: Any, smoothing: float) -> bool:
    """Whether y holds class indices of rows t, and all lies in one piece."""
    return CUDA.class_indices(t, y, weights) and y.flags.c_contiguous and (weights is None or weights.flags.c_contiguous)


@twin(cross_entropy, serves=classes)
def _(t, y, weights, smoothing):
    k, char, phi, J = t.shape[-1], t.dtype.char, cupy.empty_like(t), cupy.empty((), t.dtype)
    rows = t.size // k
    grid, block = teams(rows, k)
    blocks = min(BLOCKS, grid[0])
    arguments = rows, k, t, *integers(y), pointer(weights), float(smoothing), scratch(2 * blocks, char), phi, J
    kernel("losses", "cross_entropy", char)((blocks,), block, arguments)
    return J, phi


def classes_backward(phi: Any, y: Any, weights: Any, v: Any, smoothing: float) -> bool:
    """As `classes`, and v is a number, or one of phi's dtype on the device."""
    return classes(phi, y, weights, smoothing) and (not isinstance(v, cupy.ndarray) or (v.size == 1 and v.dtype == phi.dtype))


@twin(cross_entropy_backward, serves=classes_backward)
def _(phi, y, weights, v, smoothing):
    k, dt = phi.shape[-1], cupy.empty_like(phi)
    of_weights = (0, 0) if weights is None else (weights, total(weights, False, least=smallest_normal(weights)))
    targets = phi.size // k, k, phi, *integers(y), *of_weights, float(1 - smoothing), smoothing / k
    each("losses", "cross_entropy_backward", phi.dtype.char, phi.size, *targets, *scalar(v), dt)
    return dt
