"""Checks of arguments: each returns the argument as a plain Python value, or raises an error that says what it must be.

name: the argument's name. of: the object that takes the argument; errors then say "Linear's n_in" instead of "n_in".
"""

from __future__ import annotations

import inspect
import math
import operator
import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any


def named(name: str, of: Any) -> str:
    """The name of the argument in errors."""
    return name if of is None else f"{type(of).__name__}'s {name}"


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether value is a number of this kind, Real or Integral, and not a bool."""
    return isinstance(value, kind) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """value with Python's numbers instead of NumPy's and tuples instead of lists; other values are returned unchanged."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    if not is_number(value):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def whole(name: str, value: Any, of: Any = None, least: int = 1) -> int:
    """value as an int, or a ValueError unless it is a whole number from `least` up."""
    try:
        n = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        n = None
    if n is None or n < least:
        raise ValueError(f"{named(name, of)} must be a whole number from {least} up, got {value!r}")
    return n


def number(name: str, value: Any, rule: str, holds: Callable[[Any], bool], of: Any = None) -> Any:
    """value as an int or a float, or a ValueError unless it is a number and `holds(value)`; rule: the condition in words."""
    if not is_number(value) or not holds(value):
        raise ValueError(f"{named(name, of)} must be a number, {rule}, got {value!r}")
    return plain(value)  # a NumPy scalar would promote


def bounded(name: str, value: Any, low: float, below: float = math.inf, of: Any = None) -> float:
    """value as a float, or a ValueError unless low <= value < below."""
    if not is_number(value) or not low <= float(value) < below:
        bound = f"{low} <= {name}" if below == math.inf else f"{low} <= {name} < {below}"
        raise ValueError(f"{named(name, of)} must be a finite number with {bound}, got {value!r}")
    return float(value)


def flag(name: str, value: Any, of: Any = None) -> bool:
    """value as a bool, or a ValueError unless it is True or False."""
    if not isinstance(value, bool) and getattr(getattr(value, "dtype", None), "kind", "") != "b":
        raise ValueError(f"{named(name, of)} must be True or False, got {value!r}")
    return bool(value)


def text(name: str, value: Any, example: str, of: Any = None) -> str:
    """value, or a ValueError unless it is a text that is not empty. example: such a text, for the error."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{named(name, of)} must be a text such as {example!r}, got {value!r}")
    return value


def path(name: str, value: Any, of: Any = None) -> str | os.PathLike[str]:
    """value, or a ValueError unless it is a path: a text that is not empty, or a pathlib.Path."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or value == "":
        raise ValueError(f"{named(name, of)} must be a path, a text or a pathlib.Path, got {value!r}")
    return value


def axis(name: str, value: Any, of: Any = None) -> int:
    """value as an int, or a ValueError unless it is a whole number; a negative axis counts from the end."""
    if not is_number(value, Integral):
        raise ValueError(f"{named(name, of)} must be a whole number, got {value!r}")
    return int(value)


def seed(value: Any) -> int:
    """value as an int, or a fresh seed for None. Raises ValueError unless it is a whole number from 0 to 2**63 - 1."""
    if value is None:
        return int.from_bytes(os.urandom(4), "little")  # short enough to be typed again
    if not is_number(value, Integral) or not 0 <= int(value) < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, or None for a fresh one, got {value!r}")
    return int(value)


def of_constructor(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, by name): the arguments that x was made with, read from the attributes of the same names."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, argument in inspect.signature(type(x)).parameters.items():
        value = getattr(x, name)
        if argument.kind is argument.VAR_POSITIONAL:
            positional.extend(value)
        elif argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD:
            positional.append(value)
        elif value != argument.default:
            named[name] = value
    return tuple(positional), named


def given(x: Any) -> str:
    """The arguments of `of_constructor` as source, for a repr: "3, 2, bias=False"; "..." if x does not keep them."""
    try:
        positional, named = of_constructor(x)
    except (AttributeError, TypeError, ValueError):  # an argument is not kept, or is an array, which has no truth value
        return "..."
    return ", ".join([*map(repr, positional), *(f"{name}={value!r}" for name, value in named.items())])
