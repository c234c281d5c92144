"""A twin run beside its definition, for BPCORE_KERNELS=verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpcore.array import is_floating
from bpcore.backend import backend_of
from bpcore.library import is_array

TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-10}  # of the largest entry: between a twin and its definition


def verified(twin: Callable[..., Any], of: str, definition: Callable[..., Any]) -> Callable[..., Any]:
    """The twin of the set `of`, run beside its definition.

    An ArithmeticError where what they return, or leave in their arguments, differs by more than rounding.
    """

    def call(*args: Any) -> Any:
        copies = {id(x): copy(x) for x in args}
        expected = definition(*(copies[id(x)] for x in args))
        got = twin(*args)
        pairs = [*zip(listed(got), listed(expected), strict=True), *((x, copies[id(x)]) for x in args)]
        for i, (x, y) in enumerate(pairs):
            if is_array(y) and is_floating(y):
                apart = difference(x, y)
                if not apart <= max(TOLERANCE[str(array.dtype).rpartition(".")[2]] for array in (x, y)):
                    what = f"result {i}" if i < len(listed(got)) else f"argument {i - len(listed(got))}"
                    raise ArithmeticError(
                        f"the twin of {definition.__name__} in {of.replace('.', '/')} differs from its definition in {what} by "
                        f"{apart:.1e} of the largest entry; run with BPCORE_KERNELS=off, and report it"
                    )
        return got

    return call


def copy(x: Any) -> Any:
    """A copy of an array; what is no array, as it is."""
    return backend_of(x).xp.asarray(x, copy=True) if is_array(x) and x.ndim else x


def listed(result: Any) -> list[Any]:
    """What a primitive returned, as a list."""
    return list(result) if isinstance(result, tuple) else [result]


def difference(x: Any, y: Any) -> float:
    """The largest difference of two arrays over the largest finite entry of y; 0 where equal, NaN and infinities included."""
    backend = backend_of(y)
    xp, y = backend.xp, backend.xp.asarray(y)
    if 0 in y.shape:
        return 0.0
    x = xp.asarray(x, dtype=y.dtype)
    same = (x == y) | (xp.isnan(x) & xp.isnan(y))
    scale = xp.max(xp.abs(xp.where(xp.isfinite(y), y, xp.zeros_like(y))))
    apart = xp.max(xp.where(same, xp.zeros_like(y), xp.abs(x - y)))
    apart, scale = float(backend.to_host(apart)), float(backend.to_host(scale))
    return apart / scale if scale and apart else apart
