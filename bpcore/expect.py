"""Checks of a module's inputs. A failed check raises an error that names the module by its path and says the repair.

module: the module whose input is checked, `self` in its `forward`. theta: the windows that its `forward` got; they know the path.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpcore.array import Array, is_floating
from bpcore.module import Module, Windows


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


def expect_entries(module: Module, theta: Windows, z: Array, axes: Iterable[int]) -> None:
    """Raise ValueError if z has no entry along one of these axes: there is then no maximum and no mean."""
    for axis in axes:
        if z.shape[axis] == 0:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{module.name(theta)} expected at least one entry along axis {axis}, got {got}; check the data")


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
