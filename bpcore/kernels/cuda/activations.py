"""Activations, with a kernel for each formula in activations.cu, and softmax along the last axis."""

from __future__ import annotations

import re
from typing import Any

import cupy

from bpcore.functional.activations import log_softmax, log_softmax_backward, softmax, softmax_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, kernel, path, teams
from bpcore.primitive import PRIMITIVES, twin

FORMULA = re.compile(r"^(?:UNARY|BINARY)(?:_WITH)?\((\w+),", re.MULTILINE)


def elementwise(name: str) -> Any:
    """A twin that launches the formula `name` of activations.cu on its arrays and constants."""

    def activation(first: Any, /, *others: Any) -> Any:
        u = cupy.empty_like(first)
        arguments = (x if isinstance(x, cupy.ndarray) else float(x) for x in others)
        each("activations", name, u.dtype.char, u.size, first, *arguments, u)
        return u

    return activation


for _name in FORMULA.findall(path("activations").read_text(encoding="utf-8")):
    _primitive = PRIMITIVES[_name.rstrip("_")]  # tanh_ and erf_, because CUDA itself has tanh and erf
    twin(_primitive.call, serves=CUDA.dense)(elementwise(_name))


def by_rows(name: str, *arrays: Any) -> Any:
    """Launch a kernel of activations.cu on the rows of the arrays."""
    u = cupy.empty_like(arrays[0])
    n = u.shape[-1]
    if u.size:
        grid, block = teams(u.size // n, n)
        kernel("activations", name, u.dtype.char)(grid, block, (u.size // n, n, *arrays, u))
    return u


@twin(softmax, serves=CUDA.last_axis)
def _(z, axis):
    return by_rows("softmax", z)


@twin(softmax_backward, serves=CUDA.last_axis)
def _(u, v, axis):
    return by_rows("softmax_backward", u, v)


@twin(log_softmax, serves=CUDA.last_axis)
def _(z, axis):
    return by_rows("log_softmax", z)


@twin(log_softmax_backward, serves=CUDA.last_axis)
def _(u, v, axis):
    return by_rows("log_softmax_backward", u, v)
