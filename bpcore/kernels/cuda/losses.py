"""Cross-entropy of class indices: a kernel each way."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.arithmetic import smallest_normal
from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, given, integers, kernel, scalar, teams
from bpcore.kernels.cuda.sums import scratch, total

BLOCKS = 1024  # that the rows are shared among: the last to finish adds up what each has


def classes(t: Any, y: Any, weights: Any) -> bool:
    """Whether t (..., k) is dense, y (...) holds class indices, and weights are None or like y in shape and t in dtype."""
    indices = y.dtype.kind in "iu" and y.ndim == t.ndim - 1 and y.flags.c_contiguous
    return indices and t.size > 0 and dense(t) and (weights is None or (weights.shape == y.shape and dense(t, weights)))


@serves(lambda t, y, weights, smoothing: classes(t, y, weights))
def cross_entropy(t, y, weights, smoothing):
    k, char, phi, J = t.shape[-1], t.dtype.char, cupy.empty_like(t), cupy.empty((), t.dtype)
    rows = t.size // k
    grid, block = teams(rows, k)
    blocks = min(BLOCKS, grid[0])
    arguments = rows, k, t, *integers(y), given(weights), float(smoothing), scratch(2 * blocks, char), phi, J
    kernel("losses", "cross_entropy", char)((blocks,), block, arguments)
    return J, phi


def _serves_backward(phi, y, weights, smoothing, v):
    return classes(phi, y, weights) and (not isinstance(v, cupy.ndarray) or (v.size == 1 and v.dtype == phi.dtype))


@serves(_serves_backward)
def cross_entropy_backward(phi, y, weights, smoothing, v):
    k, dt = phi.shape[-1], cupy.empty_like(phi)
    of_weights = (0, 0) if weights is None else (weights, total(weights, False, least=smallest_normal(weights)))
    targets = phi.size // k, k, phi, *integers(y), *of_weights, float(1 - smoothing), smoothing / k
    each("losses", "cross_entropy_backward", phi.dtype.char, phi.size, *targets, *scalar(v), dt)
    return dt
