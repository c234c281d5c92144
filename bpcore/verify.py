"""Runs a twin beside its definition and compares them, for BPCORE_KERNELS=verify."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bpcore.array import is_floating
from bpcore.backend import backend_of
from bpcore.library import is_array

# The largest difference, as a part of the largest entry.
TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2, "float32": 1e-4, "float64": 1e-10}
CHANGES = 8  # changes of the arguments to try where a difference is larger


def verified(twin: Callable[..., Any], set_name: str, definition: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs a twin and its definition, and returns the twin's results.

    It raises ArithmeticError where their results, or what they leave in their arguments, differ by more than rounding. Integers,
    booleans, infinities and NaNs must be equal; 0 equals -0, because the order of a sum decides the sign of its zero.

    Rounding: a difference up to TOLERANCE of the largest entry; or up to what changing each number of the arguments by that part
    of it does to the definition, since terms may cancel: the sum of a gradient that sums to 0 is nothing but rounding errors.
    Where the definition makes infinities or NaN of finite arguments, it overflows, and the twin may give any number.
    """

    def call(*args: Any) -> Any:
        originals = copies(args, copy)
        expected = run(definition, originals, copy)
        returned = twin(*args)
        got = [*as_list(returned), *args]
        for i, (x, y) in enumerate(zip(got, expected, strict=True)):
            if is_array(y) and not agree(x, y, i, definition, originals):
                what = f"result {i}" if i < len(got) - len(args) else f"argument {i - len(got) + len(args)}"
                raise ArithmeticError(
                    f"the twin of {definition.__name__} in {set_name.replace('.', '/')} differs from its definition in "
                    f"{what} by {difference(x, y):.1e} of the largest entry; run with BPCORE_KERNELS=off, and report it"
                )
        return returned

    return call


def agree(x: Any, y: Any, i: int, definition: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether x, of the twin, and y, number i of what `run(definition, args, copy)` returns, differ by no more than rounding."""
    error = difference(x, y)
    if error == 0 or not is_floating(y):
        return error == 0
    floats = (array for array in (x, y, *args) if is_array(array) and is_floating(array))
    tolerance = max(TOLERANCE[dtype_name(array)] for array in floats)
    if error <= tolerance:
        return True
    if math.isinf(error) and all(finite(z).all() for z in args if is_array(z) and is_floating(z)):
        error = difference(x, y, finite(y))
    changes = (run(definition, args, functools.partial(changed, seed)) for seed in range(CHANGES))
    return error <= max(tolerance, *(difference(results[i], y) for results in changes))


def run(definition: Callable[..., Any], args: Sequence[Any], change: Callable[[Any], Any]) -> list[Any]:
    """What the definition returns for changed copies of the arguments, and then what it leaves in these."""
    given = copies(args, change)
    return [*as_list(definition(*given)), *given]


def copies(args: Sequence[Any], change: Callable[[Any], Any]) -> list[Any]:
    """The arguments, each changed; an array that is passed twice stays one array."""
    by_identity = {id(x): change(x) for x in args}
    return [by_identity[id(x)] for x in args]


def copy(x: Any) -> Any:
    """A copy of an array; a scalar, or what is no array, unchanged."""
    return backend_of(x).xp.asarray(x, copy=True) if is_array(x) and x.ndim else x


def changed(seed: int, x: Any) -> Any:
    """A copy of x, its floating numbers changed by their TOLERANCE, up or down."""
    if not (is_array(x) and x.ndim and is_floating(x)):
        return copy(x)
    signs = 2.0 * np.random.default_rng(seed).integers(0, 2, x.shape) - 1
    return x * backend_of(x).asarray(1 + TOLERANCE[dtype_name(x)] * signs, dtype_name(x))


def dtype_name(x: Any) -> str:
    """The dtype of x, "float32" on every library."""
    return str(x.dtype).rpartition(".")[2]


def as_list(result: Any) -> list[Any]:
    """The results of a primitive, a tuple or a single one, as a list."""
    return list(result) if isinstance(result, tuple) else [result]


def on_host(x: Any) -> np.ndarray:
    """The values of an array, or of a number, on the host."""
    return np.asarray(backend_of(x).to_host(x) if is_array(x) else x)


def finite(x: Any) -> Any:
    """Where x is finite, on the host."""
    return np.isfinite(on_host(x))


def difference(x: Any, y: Any, where: Any = True) -> float:
    """The largest difference between x and y over the largest finite entry of y; infinity if they differ in shape or kind.

    Kind: infinite or NaN or neither, and all of an integer or a boolean. where: a mask of the entries to compare.
    """
    x, y = on_host(x), on_host(y)
    if x.shape != y.shape or x.dtype.kind != y.dtype.kind:
        return math.inf
    if y.dtype.kind != "f":
        return 0.0 if np.array_equal(x, y) else math.inf
    equal = (x == y) | (np.isnan(x) & np.isnan(y)) | ~np.broadcast_to(where, y.shape)
    if np.any(~equal & ~(np.isfinite(x) & np.isfinite(y))):
        return math.inf
    with np.errstate(all="ignore"):
        error = float(np.max(np.where(equal, 0, np.abs(x.astype("float64") - y)), initial=0))
    largest = float(np.max(np.abs(y), initial=0, where=np.isfinite(y)))
    return error / largest if largest and error else error
