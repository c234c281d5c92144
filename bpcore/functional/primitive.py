"""A primitive: one definition in pure Array API, and faster twins of it picked by the array's type."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

ENABLED = os.environ.get("BPCORE_KERNELS", "on") != "off"


def primitive(definition: Callable[..., Any]) -> Any:
    """Make `definition` a primitive, called with positional arguments.

    The type of its first argument picks the twin, in one dictionary lookup; a type without a twin gets the definition.
    Twins are found by name in bpcore/kernels/<library>_twins.py, where <library> is the package that the type comes from,
    when an array of that type is first seen. BPCORE_KERNELS=off leaves only definitions.
    """
    picked: dict[type, Callable[..., Any]] = {}

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        try:
            chosen = picked[type(args[0])]
        except KeyError:
            chosen = picked[type(args[0])] = twin(definition, type(args[0])) or definition
        return chosen(*args)

    call.definition = definition  # type: ignore[attr-defined]  # twins fall back on it, and are held against it
    return call


def twin(definition: Callable[..., Any], array_type: type) -> Callable[..., Any] | None:
    """The twin of `definition` for arrays of exactly this type, or None."""
    library = array_type.__module__.partition(".")[0]
    name = f"bpcore.kernels.{library}_twins"
    try:
        kernels = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, "bpcore.kernels"):
            raise
        return None
    if not ENABLED or array_type is not kernels.ARRAY:
        return None
    found: Callable[..., Any] | None = getattr(kernels, definition.__name__, None)
    return found
