"""Losses: one kernel forward and one backward. Cross-entropy for class indices only."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.losses import (
    cross_entropy,
    cross_entropy_backward,
    examples,
    huber,
    huber_backward,
    logistic,
    logistic_backward,
    relative,
    squared_error,
    squared_error_backward,
)
from bpcore.functional.numerics import smallest_normal
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import THREADS, each_wide, index_arguments, kernel, pointer, scalar_arguments, teams, wide
from bpcore.kernels.cuda.engine.sums import scratch, total
from bpcore.primitive import twin

BLOCKS = 1024  # that share the rows or the entries; the last one to finish adds up their sums


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


def weights_and_sum(weights: Any) -> tuple[Any, Any]:
    """The relative weights and their sum as two arguments of a kernel."""
    if weights is None:
        return 0, 0
    weights = relative(weights)
    return weights, total(weights, smallest_normal(weights))


def class_indices_backward(phi: Any, y: Any, weights: Any, v: Any, smoothing: float) -> bool:
    """As `class_indices`, where v is a Python number, or one number on the device in the dtype of phi."""
    number = not isinstance(v, cupy.ndarray) or (v.size == 1 and v.dtype == phi.dtype)
    return number and class_indices(phi, y, weights, smoothing)


@twin(cross_entropy_backward, serves=class_indices_backward)
def _(phi, y, weights, v, smoothing):
    k = phi.shape[-1]
    dt = cupy.empty_like(phi)
    rows = phi.size // k
    targets = rows, k, phi, *index_arguments(y), *weights_and_sum(weights), float(1 - smoothing), smoothing / k
    grid, block = teams(rows, k, phi.dtype.char)
    kernel("losses", "cross_entropy_backward", phi.dtype.char)(grid, block, (*targets, *scalar_arguments(v), dt))
    return dt


def outputs_and_labels(z: Any, y: Any, weights: Any, /, *others: Any) -> bool:
    """Whether z, y of its shape, weights, one for each example, and v, if an array of one number, are dense."""
    fit = y.shape == z.shape and CUDA.nonempty(z, y, weights, *others) and (weights is None or weights.shape == examples(z))
    return fit and all(x.size == 1 for x in others if isinstance(x, cupy.ndarray))


def width(z: Any) -> int:
    """The number of outputs of an example."""
    return z.shape[-1] if z.ndim > 1 else 1


def mean_loss(name: str, z: Any, y: Any, weights: Any, constant: float) -> Any:
    """J of the loss `name` of losses.cu."""
    char, J = z.dtype.char, cupy.empty((), z.dtype)
    weights = None if weights is None else relative(weights)
    blocks = min(BLOCKS, -(-z.size // (THREADS * wide(char))))
    arguments = z.size, width(z), z, y, pointer(weights), float(constant), scratch(2 * blocks, char), J
    kernel("losses", name, char)((blocks,), (THREADS,), arguments)
    return J


def mean_loss_backward(name: str, z: Any, y: Any, weights: Any, v: Any, constant: float) -> Any:
    """B[J, z](v) of the loss `name` of losses.cu."""
    dz = cupy.empty_like(z)
    arguments = z, y, *weights_and_sum(weights), *scalar_arguments(v), float(constant), dz
    each_wide("losses", f"{name}_backward", z.dtype.char, z.size, width(z), *arguments)
    return dz


@twin(squared_error, serves=outputs_and_labels)
def _(z, y, weights):
    return mean_loss("squared_error", z, y, weights, 0)


@twin(squared_error_backward, serves=outputs_and_labels)
def _(z, y, weights, v):
    return mean_loss_backward("squared_error", z, y, weights, v, 0)


@twin(huber, serves=outputs_and_labels)
def _(z, y, weights, delta):
    return mean_loss("huber", z, y, weights, delta)


@twin(huber_backward, serves=outputs_and_labels)
def _(z, y, weights, v, delta):
    return mean_loss_backward("huber", z, y, weights, v, delta)


@twin(logistic, serves=outputs_and_labels)
def _(t, y, weights):
    return mean_loss("logistic", t, y, weights, 0)


@twin(logistic_backward, serves=outputs_and_labels)
def _(t, y, weights, v):
    return mean_loss_backward("logistic", t, y, weights, v, 0)
