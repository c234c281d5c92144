"""Optimisers' updates, one kernel over θ, and the norm of the gradient.

lr and step are numbers, or arrays of one float64 or int64 on the device.
"""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.updates import adagrad, adam, clip_norm, lion, rmsprop, sgd, squared_norm
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, pointer, scalar
from bpcore.kernels.cuda.engine.sums import total
from bpcore.primitive import twin


def vectors(g: Any, /, *others: Any) -> bool:
    """Whether all arrays but rates, which have no axes, are dense, not float16; and rates are of the dtypes that kernels read."""
    arrays = [x for x in others if isinstance(x, cupy.ndarray)]
    wide = g.dtype.char != "e" and CUDA.dense(g, *(x for x in arrays if x.ndim))
    return wide and all(x.dtype.char in "dlq" for x in arrays if not x.ndim)


def whole(x: Any) -> tuple[int, Any]:
    """A step as two arguments: by value, and where it lies."""
    return (0, x) if isinstance(x, cupy.ndarray) else (int(x), 0)


@twin(sgd, serves=vectors)
def _(g, lr, momentum, nesterov, decay, theta, m):
    each("updates", "sgd", g.dtype.char, g.size, g, *scalar(lr), float(momentum), int(nesterov), float(decay), theta, pointer(m))


@twin(rmsprop, serves=vectors)
def _(g, lr, rho, eps, decay, theta, v):
    each("updates", "rmsprop", g.dtype.char, g.size, g, *scalar(lr), float(rho), float(eps), float(decay), theta, v)


@twin(adagrad, serves=vectors)
def _(g, lr, eps, decay, theta, v):
    each("updates", "adagrad", g.dtype.char, g.size, g, *scalar(lr), float(eps), float(decay), theta, v)


@twin(adam, serves=vectors)
def _(g, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    constants = float(beta1), float(beta2), float(eps), float(decay), int(decoupled)
    each("updates", "adam", g.dtype.char, g.size, g, *whole(step), *scalar(lr), *constants, theta, m, v)


@twin(lion, serves=vectors)
def _(g, lr, beta1, beta2, decay, theta, m):
    each("updates", "lion", g.dtype.char, g.size, g, *scalar(lr), float(beta1), float(beta2), float(decay), theta, m)


@twin(squared_norm, serves=CUDA.dense)
def _(g):
    return total(g, True)


def scalable(g: Any, square: Any, largest: float, clipped: Any) -> bool:
    """Whether the vectors are dense, and square is a number, or one of g's dtype."""
    return CUDA.dense(g, clipped) and getattr(square, "dtype", g.dtype) == g.dtype


@twin(clip_norm, serves=scalable)
def _(g, square, largest, clipped):
    each("updates", "clip_norm", g.dtype.char, g.size, g, *scalar(square), float(largest), clipped)
