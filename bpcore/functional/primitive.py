"""A primitive: one definition in pure Array API, and faster twins of it picked by the array's type."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

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


def choose(definition: Callable[..., Any], array_type: type) -> Callable[..., Any]:
    """What runs for arrays of exactly this type: the first twin that serves the arguments, else the definition."""
    chosen = definition
    if SETTING != "off":
        try:
            kernels = importlib.import_module("bpcore.kernels")
        except ModuleNotFoundError as error:
            if error.name != "bpcore.kernels":
                raise
            return definition
        for twin in reversed(kernels.twins(definition.__name__, array_type, extras=SETTING != "plain")):
            checked = kernels.verified(twin, definition) if SETTING == "verify" else twin.call
            chosen = checked if twin.serves is None else first_that_serves(twin.serves, checked, chosen)
    return chosen


def first_that_serves(serves: Callable[..., bool], twin: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The twin where it serves the arguments, else the other."""
    return lambda *args: twin(*args) if serves(*args) else other(*args)
