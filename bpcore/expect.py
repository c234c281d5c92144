"""Checks of a module: of its inputs, and of what it declares. A failed check raises an error that says the repair.

module: the module that is checked, `self` in its `forward`. theta: the windows that its `forward` got; they know the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from math import prod
from numbers import Integral
from typing import Any

from bpcore.arguments import is_number, is_ours, show
from bpcore.array import Array, kind, namespace
from bpcore.backend import backend_of
from bpcore.library import host_data, is_array
from bpcore.module import EMPTY, Module, Parameter, Windows
from bpcore.windows import RESERVED, join


def expect_floats(module: Module, theta: Windows, z: Array) -> Array:
    """z; whole numbers and booleans as floats of θ's dtype. A TypeError if it holds other things, or if there is no θ."""
    what = kind(z)
    if what == "real floating":
        return z
    if what == "other" or theta.dtype is None:
        raise TypeError(f"{module.name(theta)} expected floating-point numbers, got {z.dtype}; convert: X.astype('float32')")
    return namespace(z).astype(z, theta.dtype)


def expect_axis(module: Module, theta: Windows, z: Array, axis: int) -> None:
    """Raise ValueError unless z has this axis."""
    if not -z.ndim <= axis < z.ndim:
        got = f"z of shape {tuple(z.shape)}"
        raise ValueError(
            f"{module.name(theta)} expected an axis {axis}, got {got}; choose an axis from {-z.ndim} to {z.ndim - 1}"
        )


def expect_entries(module: Module, theta: Windows, z: Array, axes: Iterable[int]) -> None:
    """Raise ValueError if z has no entry along one of these axes: there is then no maximum and no mean."""
    for axis in axes:
        if z.shape[axis] == 0:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{module.name(theta)} expected at least one entry along axis {axis}, got {got}; check the data")


def expect_operands(module: Module, theta: Windows, a: Array, b: Array, apart: int = 0) -> tuple[Array, Array]:
    """(a, b) as floats, or an error unless they have one dtype and, except for the last `apart` axes, broadcast together."""
    shape_a = a.shape[: a.ndim - apart]
    shape_b = b.shape[: b.ndim - apart]
    if any(n != m and 1 not in (n, m) for n, m in zip(reversed(shape_a), reversed(shape_b), strict=False)):
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{module.name(theta)} expected shapes that broadcast together, got {got}; reshape one of them")
    a, b = expect_floats(module, theta, a), expect_floats(module, theta, b)
    if a.dtype != b.dtype:
        raise TypeError(f"{module.name(theta)} expected one dtype, got {a.dtype} and {b.dtype}; convert one to the other")
    return a, b


def expect_features(module: Module, theta: Windows, z: Array, n: int, window: Array, argument: str) -> Array:
    """z as floats, or an error unless its last axis has n features and its dtype is that of `window`, a parameter.

    argument: the name of n in the module's constructor, for the repair.
    """
    if z.shape[-1:] != (n,):
        raise ValueError(
            f"{module.name(theta)} expected features {n} in the last axis, got z of shape {tuple(z.shape)}; "
            f"{repair_of_features(z.shape, n, argument)}"
        )
    if z.dtype != window.dtype:
        converted = expect_floats(module, theta, z)
        if converted.dtype == window.dtype:
            return converted
        raise TypeError(
            f"{module.name(theta)} has parameters of dtype {window.dtype}, got z of dtype {z.dtype}; convert one to the other"
        )
    return z


def expect_images(module: Module, theta: Windows, z: Array) -> Array:
    """z as floats, or an error unless it has four axes, and height and width are not 0."""
    if z.ndim != 4:
        got = f"z of shape {tuple(z.shape)}"
        repair = "reshape the data"
        if z.ndim == 3:
            repair += ": X[..., None] adds the axis of one channel" + ", X[None] that of one image" * (z.shape[-1] <= 4)
        raise ValueError(f"{module.name(theta)} expected images (n, height, width, channels), got {got}; {repair}")
    expect_entries(module, theta, z, (1, 2))
    return expect_floats(module, theta, z)


def repair_of_features(shape: tuple[int, ...], n: int, argument: str) -> str:
    """What to do about z of this shape, where n features were expected in the last axis."""
    if not shape or 0 in shape[1:] or shape == (0,):
        return "give it an axis of features" if not shape else "fix the data"
    if len(shape) == 4 and shape[1] == n:
        return "images are (n, height, width, channels): X.transpose(0, 2, 3, 1)"
    if len(shape) == 3 and shape[1] == n:
        return "sequences are (n, tokens, features): X.transpose(0, 2, 1)"
    if len(shape) > 2 and prod(shape[1:]) == n:
        return "put bp.Flatten() before it"
    if len(shape) == 1 and n == 1:
        return "one feature is a column: X.reshape(-1, 1)"
    of_mlp = " (in bp.MLP, n_in is one of the sizes)" if argument == "n_in" else ""
    return f"pass {argument}={shape[-1]} or fix the data{of_mlp}"


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
    call = f"{who}(" if who.startswith("net.") else f"{who}({name}, "
    inputs = [p for p in inspect.signature(module.forward).parameters.values() if p.name not in ("theta", "mode")]
    if not shapes and any(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in inputs):
        raise TypeError(f"{who} expected a shape for each input of {name}, got none; e.g. {call}(5, 3))")
    if not all(isinstance(x, (tuple, list)) or is_array(x) for x in shapes):
        if shapes and all(isinstance(n, int) for n in shapes):
            repair = f"write it as one tuple: {call}{tuple(shapes)})"
            raise TypeError(f"{who} expected a shape for each input, got {tuple(shapes)}; {repair}")
        wrong = next(x for x in shapes if not isinstance(x, (tuple, list)) and not is_array(x))
        raise TypeError(f"{who} expected a shape for each input of {name}, a tuple, or an array; got {show(wrong)}; e.g. (5, 3)")
    for x in shapes:
        host_data(x, "an example") if is_array(x) else None  # raises for a masked array
        if not is_array(x) and not all(is_number(n, Integral) and n >= 0 for n in x):
            raise TypeError(f"{who} expected a shape of whole numbers from 0 up, got {show(x)}; e.g. (5, 3), or pass an array")
    return [x if is_array(x) else tuple(map(int, x)) for x in shapes]


def expect_saved(module: Module, theta: Windows, saved: Any) -> None:
    """Raise a TypeError if `saved` hides arrays where `cost` and containers do not find them: in a dictionary or an object."""
    if isinstance(saved, (tuple, list)):
        for part in saved:
            expect_saved(module, theta, part)
    elif isinstance(saved, (Mapping, Set)) or (
        not is_array(saved) and not isinstance(saved, Windows) and any(map(is_array, getattr(saved, "__dict__", {}).values()))
    ):
        repair = "return an array, or tuples and lists of arrays"
        raise TypeError(f"{module.name(theta)}'s forward saved {show(saved)}, in which arrays are not found; {repair}")


def expect_labels(module: Module, z: Sequence[Any]) -> None:
    """Raise a ValueError if `module` is a loss, and z[1] are class indices that it does not take; or an error of their shape."""
    if hasattr(module, "check_labels") and len(z) > 1 and kind(z[1]) == "integral":
        try:
            module.check_labels(backend_of(z[1]).to_host(z[1]), z[0].shape[-1] if z[0].ndim else 1)
        except Exception:
            module.expect(EMPTY, z[0], z[1], z[2] if len(z) > 2 else None)  # type: ignore[attr-defined]
            raise


def expect_declarations(module: Module, path: str) -> None:
    """Raise an error unless `parameters` and `children` are mappings of names to Parameters (or None) and to modules."""
    of = f"{path}: {type(module).__name__}" if path else type(module).__name__
    expect_constructed(module, of)
    for what, of_class in (("parameters", Parameter), ("children", Module)):
        declared = getattr(module, what)
        example = {"parameters": "{'W': bp.Parameter((4, 3), HeNormal())}", "children": "{'body': body}"}[what]
        if declared and declared is getattr(type(module), what, None):
            repair = f"set them in its __init__: self.{what} = {example}"
            raise TypeError(f"{of}'s {what} belong to the class, so that all its modules would share one value; {repair}")
        if not isinstance(declared, Mapping):
            raise TypeError(f"{of}'s {what} must be a dictionary, got {show(declared)}; e.g. {example}")
        for name, value in declared.items():
            if not isinstance(value, of_class) and not (value is None and what == "parameters"):
                raise TypeError(f"{of}'s {what}[{name!r}] must be a {of_class.__name__}, got {show(value)}; e.g. {example}")
            if not isinstance(name, str) or (what == "children" and (not name or "." in name)):
                raise ValueError(f"{of}'s {what} need names, strings without a dot, got {name!r}; rename it")
            if what == "parameters" and (not name.isidentifier() or name in RESERVED or name in module.children):
                raise ValueError(f"{join(path, name)}: a parameter cannot be called {name!r}; choose another name")


def expect_all_declared(module: Module, path: str, known: Set[int]) -> None:
    """Raise a TypeError if a user's module keeps a parameter as an attribute, itself or in a module, that no module declares.

    known: the identities of the network's parameters.
    """
    if is_ours(type(module)):
        return
    of = f"{path}: {type(module).__name__}" if path else type(module).__name__
    for name, value in vars(module).items():
        for x in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (value,):
            if any(id(parameter) not in known for parameter in trained_in(x)):
                what = "parameters" if isinstance(x, Parameter) else "children"
                repair = f"declare it: self.{what} = {{{name!r}: ...}}, and in forward take theta"
                repair += f".{name}" if what == "parameters" else f"[{name!r}]"
                raise TypeError(f"{of}.{name} is a {type(x).__name__} outside of {what}, so it would not be trained; {repair}")


def trained_in(x: Any) -> Iterable[Parameter]:
    """The trained parameters that x is or declares, if it is a Parameter or a module."""
    if isinstance(x, Parameter):
        yield from (x,) if x.trained else ()
    elif isinstance(x, Module):
        for declared in (x.parameters, x.children):
            for part in declared.values() if isinstance(declared, Mapping) else ():
                yield from trained_in(part)


def expect_constructed(module: Module, of: str) -> None:
    """Raise a TypeError if a user's subclass of one of bpcore's modules did not call the constructor that it inherits."""
    for base in type(module).__mro__:
        if is_ours(base):
            missing = [name for name in inspect.signature(base).parameters if not hasattr(module, name)]
            if missing and base is not type(module):
                call = f"super().__init__({', '.join(inspect.signature(base).parameters)})"
                raise TypeError(f"{of} has no attribute {missing[0]!r} of {base.__name__}; call {call} in its __init__")
            return


def expect_scalar(loss: Any, J: Any) -> None:
    """Raise a ValueError unless J, what the forward function of a user's loss returned, is a scalar."""
    if getattr(J, "shape", None) != ():
        got = f"an array of shape {tuple(J.shape)}" if hasattr(J, "shape") else show(J)
        raise ValueError(f"{type(loss).__name__}'s forward must return a scalar J, got {got}; take the mean over examples")
