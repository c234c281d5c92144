"""A primitive: one definition in pure Array API, and faster twins of it picked by the array's type."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from bpcore.backend import is_array, is_half, namespace

SETTINGS = ("on", "plain", "off", "verify")
SETTING = os.environ.get("BPCORE_KERNELS", "on")
if SETTING not in SETTINGS:
    raise ValueError(f"BPCORE_KERNELS must be one of {', '.join(SETTINGS)}; got {SETTING!r}")

PRIMITIVES: dict[str, Any] = {}  # all there are, by name


def primitive(definition: Callable[..., Any]) -> Any:
    """Make `definition` a primitive, called with positional arguments.

    The type of its first argument picks what runs, in one dictionary lookup: a twin of the same name in bpcore/kernels where
    one serves these arguments, else the definition. BPCORE_KERNELS=on takes all twins that can be imported; plain leaves out
    those that need an extra; off leaves only definitions; verify runs the definition beside each twin and raises
    ArithmeticError where they differ by more than rounding.
    """
    picked: dict[type, Callable[..., Any]] = {}

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        try:
            chosen = picked[type(args[0])]
        except KeyError:
            chosen = picked[type(args[0])] = choose(definition, type(args[0]))
        return chosen(*args)

    call.definition = definition  # type: ignore[attr-defined]  # twins fall back on it, and are held against it
    PRIMITIVES[definition.__name__] = call
    return call


def in_float32(definition: Callable[..., Any]) -> Callable[..., Any]:
    """`definition`, which for float16 computes in float32: its sums or powers would overflow there, or lose too much.

    The dtype is that of the first argument. What is returned is float16 again, but what a forward function returns beside u,
    for its backward function, stays float32. Arrays that are written, d... and `out`, stay as they are: writing to them casts.
    """
    read = [not (name == "out" or (name[0] == "d" and name[1:])) for name in inspect.signature(definition).parameters]
    narrow = None if definition.__name__.endswith("_backward") else 1  # how many of the results

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        if not is_half(args[0]):
            return definition(*args)
        xp = namespace(args[0])
        wide = (xp.astype(x, xp.float32) if r and is_array(x) and is_half(x) else x for x, r in zip(args, read, strict=True))
        results = definition(*wide)
        several = isinstance(results, tuple)
        first = [u if u is None else xp.astype(u, xp.float16) for u in (results[:narrow] if several else (results,))]
        return (*first, *results[len(first) :]) if several else first[0]

    return call


def twins_folder() -> Any:
    """The package bpcore.kernels, or None where the folder was deleted."""
    try:
        return importlib.import_module("bpcore.kernels")
    except ModuleNotFoundError as error:
        if error.name != "bpcore.kernels":
            raise
        return None


def choose(definition: Callable[..., Any], array_type: type) -> Callable[..., Any]:
    """What runs for arrays of exactly this type: the first twin that serves the arguments, else the definition."""
    chosen = definition
    kernels = None if SETTING == "off" else twins_folder()
    if kernels is not None:
        for twin in reversed(kernels.twins(definition.__name__, array_type, extras=SETTING != "plain")):
            checked = kernels.verified(twin, definition) if SETTING == "verify" else twin.call
            chosen = checked if twin.serves is None else first_that_serves(twin.serves, checked, chosen)
    return chosen


def first_that_serves(serves: Callable[..., bool], twin: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The twin where it serves the arguments, else the other."""
    return lambda *args: twin(*args) if serves(*args) else other(*args)
