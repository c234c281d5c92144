"""Runs a twin beside its definition and compares them, for BPCORE_KERNELS=verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpcore.array import is_floating
from bpcore.backend import backend_of
from bpcore.library import is_array

TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-10}  # largest difference, as a part of the largest entry


def verified(twin: Callable[..., Any], set_name: str, definition: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs a twin and its definition, and returns the twin's results.

    It raises ArithmeticError where their results, or what they leave in their arguments, differ by more than rounding.
    """

    def call(*args: Any) -> Any:
        copies = {id(x): copy(x) for x in args}  # by identity: an array that is passed twice is copied once
        expected = as_list(definition(*(copies[id(x)] for x in args)))
        returned = twin(*args)
        got = as_list(returned)
        pairs = [*zip(got, expected, strict=True), *((x, copies[id(x)]) for x in args)]
        for i, (x, y) in enumerate(pairs):
            if is_array(y) and is_floating(y):
                error = difference(x, y)
                if not error <= max(TOLERANCE[str(array.dtype).rpartition(".")[2]] for array in (x, y)):
                    what = f"result {i}" if i < len(got) else f"argument {i - len(got)}"
                    raise ArithmeticError(
                        f"the twin of {definition.__name__} in {set_name.replace('.', '/')} differs from its definition in "
                        f"{what} by {error:.1e} of the largest entry; run with BPCORE_KERNELS=off, and report it"
                    )
        return returned

    return call


def copy(x: Any) -> Any:
    """A copy of an array; a scalar, or what is no array, unchanged."""
    return backend_of(x).xp.asarray(x, copy=True) if is_array(x) and x.ndim else x


def as_list(result: Any) -> list[Any]:
    """The results of a primitive, a tuple or a single one, as a list."""
    return list(result) if isinstance(result, tuple) else [result]


def difference(x: Any, y: Any) -> float:
    """The largest difference between x and y over the largest finite entry of y. Equal NaNs and equal infinities count as 0."""
    backend = backend_of(y)
    xp, y = backend.xp, backend.xp.asarray(y)
    if 0 in y.shape:
        return 0.0
    x = xp.asarray(x, dtype=y.dtype)
    equal = (x == y) | (xp.isnan(x) & xp.isnan(y))
    largest = xp.max(xp.abs(xp.where(xp.isfinite(y), y, xp.zeros_like(y))))
    error = xp.max(xp.where(equal, xp.zeros_like(y), xp.abs(x - y)))
    error, largest = float(backend.to_host(error)), float(backend.to_host(largest))
    return error / largest if largest and error else error
