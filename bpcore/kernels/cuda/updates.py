"""Updates of optimisers, each one kernel over θ, and the norm of the gradient.

lr and step are Python numbers, or arrays without axes on the device: float64 and int64.
"""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.updates import adagrad, adam, clip_norm, lion, rmsprop, sgd, squared_norm
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, pointer, scalar_arguments
from bpcore.kernels.cuda.engine.sums import sum_of_squares
from bpcore.primitive import twin


def dense_vectors(g: Any, /, *others: Any) -> bool:
    """Whether vectors are dense, float32 or float64, and arrays without axes, lr and step, have a dtype that kernels read."""
    arrays = [x for x in others if isinstance(x, cupy.ndarray)]
    dense = g.dtype.char in "fd" and CUDA.dense(g, *(x for x in arrays if x.ndim))
    return dense and all(x.dtype.char in "dlq" for x in arrays if not x.ndim)


def step_arguments(x: Any) -> tuple[int, Any]:
    """A step as two arguments of a kernel: the value, and the array or 0."""
    return (0, x) if isinstance(x, cupy.ndarray) else (int(x), 0)


@twin(sgd, serves=dense_vectors)
def _(g, lr, momentum, nesterov, decay, theta, m):
    each(
        "updates",
        "sgd",
        g.dtype.char,
        g.size,
        g,
        *scalar_arguments(lr),
        float(momentum),
        int(nesterov),
        float(decay),
        theta,
        pointer(m),
    )


@twin(rmsprop, serves=dense_vectors)
def _(g, lr, rho, eps, decay, theta, v):
    each("updates", "rmsprop", g.dtype.char, g.size, g, *scalar_arguments(lr), float(rho), float(eps), float(decay), theta, v)


@twin(adagrad, serves=dense_vectors)
def _(g, lr, eps, decay, theta, v):
    each("updates", "adagrad", g.dtype.char, g.size, g, *scalar_arguments(lr), float(eps), float(decay), theta, v)


@twin(adam, serves=dense_vectors)
def _(g, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    constants = float(beta1), float(beta2), float(eps), float(decay), int(decoupled)
    each("updates", "adam", g.dtype.char, g.size, g, *step_arguments(step), *scalar_arguments(lr), *constants, theta, m, v)


@twin(lion, serves=dense_vectors)
def _(g, lr, beta1, beta2, decay, theta, m):
    each("updates", "lion", g.dtype.char, g.size, g, *scalar_arguments(lr), float(beta1), float(beta2), float(decay), theta, m)


@twin(squared_norm, serves=CUDA.dense)
def _(g):
    return sum_of_squares(g)


def dense_with_square(g: Any, square: Any, largest: float, clipped: Any) -> bool:
    """Whether the vectors are dense and not float64, whose squares may overflow, and square is a Python number or float64."""
    return g.dtype.char != "d" and CUDA.dense(g, clipped) and getattr(square, "dtype", "float64") == "float64"


@twin(clip_norm, serves=dense_with_square)
def _(g, square, largest, clipped):
    each("updates", "clip_norm", g.dtype.char, g.size, g, *scalar_arguments(square), float(largest), clipped)
