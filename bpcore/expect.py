"""Checks of a module: of its inputs, and of what it declares. A failed check raises an error that says the repair.

module: the module that is checked, `self` in its `forward`. theta: the windows that its `forward` got; they know the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from bpcore.arguments import is_number, show
from bpcore.array import Array, is_floating
from bpcore.library import is_array
from bpcore.module import Module, Parameter, Windows
from bpcore.windows import RESERVED, join


def expect_floats(module: Module, theta: Windows, z: Array) -> Array:
    """z, or a TypeError unless it holds real floating-point numbers."""
    if not is_floating(z):
        raise TypeError(f"{module.name(theta)} expected floating-point numbers, got {z.dtype}; convert: X.astype('float32')")
    return z


def expect_axis(module: Module, theta: Windows, z: Array, axis: int) -> None:
    """Raise ValueError unless z has this axis."""
    if not -z.ndim <= axis < z.ndim:
        got = f"z of shape {tuple(z.shape)}"
        raise ValueError(
            f"{module.name(theta)} expected an axis {axis}, got {got}; choose an axis from {-z.ndim} to {z.ndim - 1}"
        )


def expect_operands(module: Module, theta: Windows, a: Array, b: Array, apart: int = 0) -> None:
    """Raise an error unless a and b have one real floating dtype and, except for the last `apart` axes, broadcast together."""
    shape_a = a.shape[: a.ndim - apart]
    shape_b = b.shape[: b.ndim - apart]
    if any(n != m and 1 not in (n, m) for n, m in zip(reversed(shape_a), reversed(shape_b), strict=False)):
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{module.name(theta)} expected shapes that broadcast together, got {got}; reshape one of them")
    if expect_floats(module, theta, a).dtype != expect_floats(module, theta, b).dtype:
        raise TypeError(f"{module.name(theta)} expected one dtype, got {a.dtype} and {b.dtype}; convert one to the other")


def expect_features(module: Module, theta: Windows, z: Array, n: int, window: Array, argument: str) -> Array:
    """z, or an error unless its last axis has n features and its dtype is that of `window`, a parameter.

    argument: the name of n in the module's constructor, for the repair.
    """
    if z.shape[-1:] != (n,):
        got = f"z of shape {tuple(z.shape)}"
        repair = f"pass {argument}={z.shape[-1]} or fix the data" if z.ndim else "give it an axis of features"
        raise ValueError(f"{module.name(theta)} expected features {n} in the last axis, got {got}; {repair}")
    if z.dtype != window.dtype:
        expect_floats(module, theta, z)
        raise TypeError(
            f"{module.name(theta)} has parameters of dtype {window.dtype}, got z of dtype {z.dtype}; convert one to the other"
        )
    return z


def expect_module(module: Any, who: str = "") -> None:
    """Raise a TypeError unless `module` is a module. who: who expects it, for the error."""
    if isinstance(module, Module):
        return
    inner = getattr(module, "module", None)
    repair = "pass its module: net.module" if isinstance(inner, Module) else "e.g. bp.Linear(4, 3), or bp.MLP([64, 128, 10])"
    raise TypeError(f"{who} expected a module, got {show(module)}; {repair}".lstrip())


def expect_shapes(who: str, module: Module, shapes: Sequence[Any]) -> list[Any]:
    """A shape, as a tuple, or an array for each input of `module`, or an error. who: the function that takes them."""
    name = type(module).__name__
    if not all(isinstance(x, (tuple, list)) or is_array(x) for x in shapes):
        if shapes and all(isinstance(n, int) for n in shapes):
            repair = f"write it as one tuple: {who}({name}, {tuple(shapes)})"
            raise TypeError(f"{who} expected a shape for each input, got {tuple(shapes)}; {repair}")
        wrong = next(x for x in shapes if not isinstance(x, (tuple, list)) and not is_array(x))
        raise TypeError(f"{who} expected a shape for each input of {name}, a tuple, or an array; got {show(wrong)}; e.g. (5, 3)")
    for x in shapes:
        if not is_array(x) and not all(is_number(n, Integral) and n >= 0 for n in x):
            raise TypeError(f"{who} expected a shape of whole numbers from 0 up, got {show(x)}; e.g. (5, 3), or pass an array")
    return [x if is_array(x) else tuple(map(int, x)) for x in shapes]


def expect_declarations(module: Module, path: str) -> None:
    """Raise an error unless `parameters` and `children` are mappings of names to Parameters (or None) and to modules."""
    of = f"{path}: {type(module).__name__}" if path else type(module).__name__
    expect_constructed(module, of)
    for what, kind in (("parameters", Parameter), ("children", Module)):
        declared = getattr(module, what)
        example = {"parameters": "{'W': bp.Parameter((4, 3), HeNormal())}", "children": "{'body': body}"}[what]
        if not isinstance(declared, Mapping):
            raise TypeError(f"{of}'s {what} must be a dictionary, got {show(declared)}; e.g. {example}")
        for name, value in declared.items():
            if not isinstance(value, kind) and not (value is None and what == "parameters"):
                raise TypeError(f"{of}'s {what}[{name!r}] must be a {kind.__name__}, got {show(value)}; e.g. {example}")
            if not isinstance(name, str) or (what == "children" and (not name or "." in name)):
                raise ValueError(f"{of}'s {what} need names, strings without a dot, got {name!r}; rename it")
            if what == "parameters" and (not name.isidentifier() or name in RESERVED or name in module.children):
                raise ValueError(f"{join(path, name)}: a parameter cannot be called {name!r}; choose another name")


def expect_constructed(module: Module, of: str) -> None:
    """Raise a TypeError if a user's subclass of one of bpcore's modules did not call the constructor that it inherits."""
    for base in type(module).__mro__:
        if base.__module__.startswith("bpcore."):
            missing = [name for name in inspect.signature(base).parameters if not hasattr(module, name)]
            if missing and base is not type(module):
                call = f"super().__init__({', '.join(inspect.signature(base).parameters)})"
                raise TypeError(f"{of} has no attribute {missing[0]!r} of {base.__name__}; call {call} in its __init__")
            return
