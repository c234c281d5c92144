"""Twins: faster versions of primitives for one library's arrays, under the primitives' names.

A twin takes what the definition takes and returns the same to rounding. Where it does not serve every argument it says so,
`@serves(condition)`: the next set is asked then, at last the definition. Deleting this folder leaves a library that works.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from bpcore.backend import backend_of, is_array, is_floating

SETS = {"numpy": ("fast", "numpy_twins"), "cupy": ("cuda",)}  # for the library that an array comes from, in order of preference
EXTRAS = ("fast",)  # sets that need more than the array's library
TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-10}  # of the largest entry: between a twin and its definition


class Twin(NamedTuple):
    """A twin, the set that it is of, and its condition, None where it serves always."""

    call: Callable[..., Any]
    of: str
    serves: Callable[..., bool] | None


def serves(condition: Callable[..., bool]) -> Callable[[Any], Any]:
    """Mark a twin as one for arguments that `condition(*args)` holds for. It is asked at each call: let it be cheap."""

    def mark(twin: Any) -> Any:
        twin.serves = condition
        return twin

    return mark


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str]:
    """A set of twins, and why it is not there where it is None."""
    try:
        return importlib.import_module(f"{__name__}.{name}"), ""
    except ImportError as error:
        return None, str(error)


def twins(primitive: str, array_type: type, extras: bool = True) -> list[Twin]:
    """The twins of a primitive for arrays of exactly this type, in order of preference."""
    found = []
    for name in SETS.get(array_type.__module__.partition(".")[0], ()):
        module = load(name)[0] if extras or name not in EXTRAS else None
        call = getattr(module, primitive, None)
        if module is not None and call is not None and array_type is module.ARRAY:
            found.append(Twin(call, name, getattr(call, "serves", None)))
    return found


def verified(twin: Twin, definition: Callable[..., Any]) -> Callable[..., Any]:
    """The twin, run beside its definition: an ArithmeticError where what they return or write differs by more than rounding."""

    def call(*args: Any) -> Any:
        copies = {id(x): copy(x) for x in args}
        expected = definition(*(copies[id(x)] for x in args))
        got = twin.call(*args)
        pairs = [*zip(listed(got), listed(expected), strict=True), *((x, copies[id(x)]) for x in args)]
        for i, (one, other) in enumerate(pairs):
            if is_array(other) and is_floating(other):
                apart = difference(one, other)
                if not apart <= max(TOLERANCE[str(x.dtype).rpartition(".")[2]] for x in (one, other)):
                    what = f"result {i}" if i < len(listed(got)) else f"argument {i - len(listed(got))}"
                    raise ArithmeticError(
                        f"the twin of {definition.__name__} in kernels/{twin.of} differs from its definition in {what} by "
                        f"{apart:.1e} of the largest entry; run with BPCORE_KERNELS=off, and report it"
                    )
        return got

    return call


def copy(x: Any) -> Any:
    """A copy of an array; what is no array, as it is."""
    return backend_of(x).xp.asarray(x, copy=True) if is_array(x) and x.ndim else x


def listed(result: Any) -> list[Any]:
    """What a primitive returned, one by one."""
    return list(result) if isinstance(result, tuple) else [result]


def difference(one: Any, other: Any) -> float:
    """The largest difference of two arrays over the largest finite entry; 0 where they are equal, NaN and infinities included."""
    backend = backend_of(other)
    xp, other = backend.xp, backend.xp.asarray(other)
    if 0 in other.shape:
        return 0.0
    one = xp.asarray(one, dtype=other.dtype)
    same = (one == other) | (xp.isnan(one) & xp.isnan(other))
    scale = xp.max(xp.abs(xp.where(xp.isfinite(other), other, xp.zeros_like(other))))
    apart = xp.max(xp.where(same, xp.zeros_like(other), xp.abs(one - other)))
    apart, scale = float(backend.to_host(apart)), float(backend.to_host(scale))
    return apart / scale if scale and apart else apart
