"""Checks of arguments: each returns the argument as a plain Python value, or raises an error that says what it must be.

name: the argument's name. of: the object that takes the argument; errors then say "Linear's n_in" instead of "n_in".
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Shown(reprlib.Repr):
    """Short representations: of an array its type, shape and dtype, of a class its name, of anything else some 120 characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 8

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, type):
            return f"<class {x.__name__!r}>"
        if isinstance(x, ModuleType):
            return f"<module {x.__name__!r}>"
        if isinstance(getattr(x, "shape", None), tuple) and (hasattr(x, "dtype") or hasattr(x, "__array__")):
            dtype = f", {x.dtype}" if hasattr(x, "dtype") else ""  # a table has none
            return f"{type(x).__name__} of shape {tuple(x.shape)}{dtype}"
        return super().repr1(x, level)


def show(value: Any) -> str:
    """A value in an error: never the numbers of an array. A class is followed by the repair, unless it is a type of numbers."""
    library = value.__module__.partition(".")[0] if isinstance(value, type) else "builtins"
    made = f", which is not made yet: {value.__name__}(...)" if library not in ("builtins", "numpy") else ""
    return _SHOWN.repr(value) + made


_SHOWN = _Shown()


def nearest(name: Any, known: Iterable[str]) -> str:
    """ "; did you mean 'W'?" for the name among `known` that is most like `name`, or ""."""
    import difflib  # only for an error

    by_lower = {other.lower().replace("_", ""): other for other in known}
    close = difflib.get_close_matches(str(name).lower().replace("_", ""), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def misfit(name: str, signature: inspect.Signature, args: tuple[Any, ...], named: dict[str, Any]) -> TypeError | None:
    """The error of a call name(*args, **named) that does not fit the signature, or None if it fits."""
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        unknown = next((key for key in named if key not in signature.parameters), "")
        hint = nearest(unknown, signature.parameters) if unknown else ""
        return TypeError(f"{name}{inspect.Signature(bare)}: {error}{hint}")
    return None


def expect_call(what: str, function: Callable[..., Any], *names: str) -> None:
    """Raise a TypeError unless `function` takes positional arguments, which are called `names`. what: for the error."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of C, which tells nothing
        return
    error = misfit(what, signature, names, {})
    if error is not None:
        raise TypeError(f"{error}; it is called with ({', '.join(names)})")


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, where a call that does not fit its signature is an error that shows the signature and the nearest name."""

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        try:
            return function(*args, **named)
        except (TypeError, AttributeError):  # of an attribute, where a method is called on its class
            misfit = explanation(function, args, named)
            if misfit is None:
                raise
            raise misfit from None

    return call


def explanation(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> TypeError | None:
    """The error of a call of a function or a method that does not fit; without `self`, and a constructor by its class."""
    signature = inspect.signature(function)
    name = function.__qualname__
    first = next(iter(signature.parameters), "")
    of = name.rpartition(".")[0]
    if (
        first == "self"
        and of
        and function.__name__ != "__init__"
        and not any(of == c.__name__ for a in args[:1] for c in type(a).__mro__)
    ):
        return TypeError(f"{name} was called on the class; make an object first: {of}(...).{function.__name__}(...)")
    if first in ("self", "cls") and args:
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        name = owner.__name__ if function.__name__ == "__init__" else f"{owner.__name__}.{function.__name__}"
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        args = args[1:]
    return misfit(name.removesuffix(".__call__"), signature, args, named)


def users_level() -> int:
    """The stacklevel of a warning for which the line of the caller of bpcore is shown."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("bpcore", "numpy", "contextlib"):
        frame, level = frame.f_back, level + 1
    return level


def is_ours(of_class: type[Any]) -> bool:
    """Whether a class is one of bpcore's."""
    return of_class.__module__.startswith("bpcore.")


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
        raise ValueError(f"{named(name, of)} must be a whole number from {least} up, got {show(value)}")
    return n


def number(name: str, value: Any, rule: str, holds: Callable[[Any], bool], of: Any = None) -> Any:
    """value as an int or a float, or a ValueError unless it is a number and `holds(value)`; rule: the condition in words."""
    if not is_number(value) or not holds(value):
        raise ValueError(f"{named(name, of)} must be a number, {rule}, got {show(value)}")
    return plain(value)  # a NumPy scalar would promote


def bounded(name: str, value: Any, low: float, below: float = math.inf, of: Any = None) -> float:
    """value as a float, or a ValueError unless low <= value < below."""
    if not is_number(value) or not low <= float(value) < below:
        bound = f"{low} <= {name}" if below == math.inf else f"{low} <= {name} < {below}"
        raise ValueError(f"{named(name, of)} must be a finite number with {bound}, got {show(value)}")
    return float(value)


def flag(name: str, value: Any, of: Any = None) -> bool:
    """value as a bool, or a ValueError unless it is True or False."""
    if not isinstance(value, bool) and getattr(getattr(value, "dtype", None), "kind", "") != "b":
        raise ValueError(f"{named(name, of)} must be True or False, got {show(value)}")
    return bool(value)


def text(name: str, value: Any, example: str, of: Any = None) -> str:
    """value, or a ValueError unless it is a text that is not empty. example: such a text, for the error."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{named(name, of)} must be a text such as {example!r}, got {show(value)}")
    return value


def path(name: str, value: Any, of: Any = None) -> str | os.PathLike[str]:
    """value, or a ValueError unless it is a path: a text that is not empty, or a pathlib.Path."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or value == "":
        raise ValueError(f"{named(name, of)} must be a path, a text or a pathlib.Path, got {show(value)}")
    if "\0" in os.fspath(value):
        raise ValueError(f"{named(name, of)} has a null character, which no path may have, got {show(value)}; leave it out")
    return value


def shape(name: str, value: Any, of: Any = None, least: int = 0) -> tuple[int, ...]:
    """value as a tuple of ints, or a TypeError unless it is a tuple or a list, or a ValueError for a number below `least`."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{named(name, of)} must be a tuple of whole numbers, got {show(value)}; e.g. (64, 10), or (10,)")
    return tuple(whole(name, n, of=of, least=least) for n in value)


def axis(name: str, value: Any, of: Any = None) -> int:
    """value as an int, or a ValueError unless it is a whole number; a negative axis counts from the end."""
    if not is_number(value, Integral):
        raise ValueError(f"{named(name, of)} must be a whole number, got {show(value)}")
    return int(value)


def seed(value: Any) -> int:
    """value as an int, or a fresh seed for None. Raises ValueError unless it is a whole number from 0 to 2**63 - 1."""
    if value is None:
        return int.from_bytes(os.urandom(4), "little")  # short enough to be typed again
    if not is_number(value, Integral) or not 0 <= int(value) < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, or None for a fresh one, got {show(value)}")
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
    return ", ".join([*map(short_of, positional), *(f"{name}={short_of(value)}" for name, value in named.items())])


def short_of(value: Any) -> str:
    """The repr of an argument; of an array only its shape and dtype."""
    return show(value) if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape != () else repr(value)
