"""Activations: a kernel for each formula in activations.cu."""

from __future__ import annotations

import re
from typing import Any

import cupy

from bpcore.functional.activations import gelu_again
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each_wide, path
from bpcore.primitive import PRIMITIVES, twin

FORMULA = re.compile(r"^(UNARY|BINARY)(_WITH)?\((\w+),", re.MULTILINE)  # its arrays, whether there is a constant, its name


def elementwise(name: str, n_arguments: int) -> Any:
    """A twin that launches the formula `name` of activations.cu on its arrays and constants."""

    def activation(first: Any, /, *others: Any) -> Any:
        if 1 + len(others) != n_arguments:
            raise TypeError(f"the formula {name} takes {n_arguments} arguments, got {1 + len(others)}")
        u = cupy.empty_like(first)
        arguments = (x if isinstance(x, cupy.ndarray) else float(x) for x in others)
        each_wide("activations", name, u.dtype.char, u.size, first, *arguments, u)
        return u

    return activation


for _arrays, _constant, _name in FORMULA.findall(path("activations").read_text(encoding="utf-8")):
    _primitive = PRIMITIVES[_name.rstrip("_")]  # tanh_ and erf_, because CUDA itself has tanh and erf
    _n = (1 if _arrays == "UNARY" else 2) + bool(_constant)
    if _n != len(_primitive.signature.parameters):
        raise TypeError(f"{_name} in activations.cu takes {_n} arguments, and {_primitive.name}{_primitive.signature} others")
    twin(_primitive.call, serves=CUDA.dense)(elementwise(_name, _n))


def alike(z: Any, v: Any) -> bool:
    """Whether z and v are `CUDA.dense`, and have one shape."""
    return z.shape == v.shape and CUDA.dense(z, v)


@twin(gelu_again, serves=alike)
def _(z, v):
    u = cupy.empty_like(z)
    each_wide("activations", "gelu_again", u.dtype.char, u.size, z, v, u)
    return u
