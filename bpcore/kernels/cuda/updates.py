"""Optimisers' updates: one kernel over θ. lr and step are numbers, or arrays of one float64 or int64 on the device."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, given, scalar


def vectors(*args: Any) -> bool:
    """Whether all arrays but rates, which have no axes, are dense, not float16; and rates are of the dtypes that kernels read."""
    arrays = [x for x in args if isinstance(x, cupy.ndarray)]
    wide = dense(*(x for x in arrays if x.ndim)) and args[0].dtype.char != "e"
    return wide and all(x.dtype.char in "dlq" for x in arrays if not x.ndim)


def whole(x: Any) -> tuple[int, Any]:
    """A step as two arguments: by value, and where it lies."""
    return (0, x) if isinstance(x, cupy.ndarray) else (int(x), 0)


@serves(vectors)
def sgd(g, lr, momentum, nesterov, decay, theta, m):
    each("updates", "sgd", g.dtype.char, g.size, g, *scalar(lr), float(momentum), int(nesterov), float(decay), theta, given(m))


@serves(vectors)
def rmsprop(g, lr, rho, eps, decay, theta, v):
    each("updates", "rmsprop", g.dtype.char, g.size, g, *scalar(lr), float(rho), float(eps), float(decay), theta, v)


@serves(vectors)
def adagrad(g, lr, eps, decay, theta, v):
    each("updates", "adagrad", g.dtype.char, g.size, g, *scalar(lr), float(eps), float(decay), theta, v)


@serves(vectors)
def adam(g, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    constants = float(beta1), float(beta2), float(eps), float(decay), int(decoupled)
    each("updates", "adam", g.dtype.char, g.size, g, *whole(step), *scalar(lr), *constants, theta, m, v)


@serves(vectors)
def lion(g, lr, beta1, beta2, decay, theta, m):
    each("updates", "lion", g.dtype.char, g.size, g, *scalar(lr), float(beta1), float(beta2), float(decay), theta, m)
