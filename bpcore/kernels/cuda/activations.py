"""Activations, and softmax over the last axis."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, kernel, teams


def elementwise(name: str) -> Any:
    """The twin that launches the formula `name` of activations.cu on its arrays; numbers are constants."""

    @serves(lambda *args: dense(*(x for x in args if isinstance(x, cupy.ndarray))))
    def twin(*args):
        u = cupy.empty_like(args[0])
        each("activations", name, u.dtype.char, u.size, *(x if isinstance(x, cupy.ndarray) else float(x) for x in args), u)
        return u

    return twin


relu, relu_backward = elementwise("relu"), elementwise("relu_backward")
leaky_relu, leaky_relu_backward = elementwise("leaky_relu"), elementwise("leaky_relu_backward")
elu, elu_backward = elementwise("elu"), elementwise("elu_backward")
sigmoid, sigmoid_backward = elementwise("sigmoid"), elementwise("sigmoid_backward")
tanh, tanh_backward = elementwise("tanh_"), elementwise("tanh_backward")
softplus, softplus_backward = elementwise("softplus"), elementwise("softplus_backward")
silu, silu_backward = elementwise("silu"), elementwise("silu_backward")
gelu, gelu_backward = elementwise("gelu"), elementwise("gelu_backward")
gelu_tanh, gelu_tanh_backward = elementwise("gelu_tanh"), elementwise("gelu_tanh_backward")
erf = elementwise("erf_")


def by_rows(name: str, *arrays: Any) -> Any:
    """Launch a kernel of rows.cu on the rows of the arrays."""
    u = cupy.empty_like(arrays[0])
    n = u.shape[-1]
    if u.size:
        grid, block = teams(u.size // n, n)
        kernel("rows", name, u.dtype.char)(grid, block, (u.size // n, n, *arrays, u))
    return u


def last_axis(x: Any, axis: int, *more: Any) -> bool:
    """Whether these are rows along the last axis."""
    return x.ndim > 0 and axis in (-1, x.ndim - 1) and x.shape[-1] > 0 and dense(x, *more)


@serves(last_axis)
def softmax(z, axis):
    return by_rows("softmax", z)


@serves(last_axis)
def softmax_backward(u, axis, v):
    return by_rows("softmax_backward", u, v)


@serves(last_axis)
def log_softmax(z, axis):
    return by_rows("log_softmax", z)


@serves(last_axis)
def log_softmax_backward(u, axis, v):
    return by_rows("log_softmax_backward", u, v)
