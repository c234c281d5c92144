"""A package at a prompt: the names that tab completion lists, and the error for an unknown name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

from bpcore.arguments import explained, nearest


def gathered(namespace: Mapping[str, Any], *modules: str) -> list[str]:
    """A package's `__all__`: `modules`, and the classes and functions of bpcore that it imported from its files."""
    return [*modules, *(name for name, x in namespace.items() if getattr(x, "__module__", "").startswith("bpcore."))]


METHODS = ("Network", "Trainer", "History", "Mode", "Cost")  # the classes whose methods people call
INNER = ("step", "forward", "backward", "inputs", "place", "place_weights", "update", "commit", "keep")  # called in each step


def explain(namespace: dict[str, Any], names: list[str]) -> list[str]:
    """Have calls that do not fit a signature raise bpcore's errors: see `arguments.explained`. Returns `names`.

    Of `names` in a package's namespace: functions, constructors, the functions and classes of modules, and all public methods of
    METHODS, except those that are called in each step.
    """
    done: set[type] = set()
    for name in names:
        public = namespace[name]
        if isinstance(public, ModuleType):
            inner = vars(public)
            explain(inner, [name for name, x in inner.items() if getattr(x, "__module__", "") == public.__name__])
        elif isinstance(public, FunctionType):
            namespace[name] = wrapper = explained(public)
            setattr(sys.modules[public.__module__], name, wrapper)  # where pickle looks for it
        elif isinstance(public, type):
            bases = [cls for cls in public.__mro__ if cls.__module__.startswith("bpcore.")]
            if public.__init__ is object.__init__:  # type: ignore[misc]  # of the class, not of an instance
                bases[-1].__init__ = no_arguments  # type: ignore[misc]
            for cls in bases:
                if cls not in done:
                    explain_class(cls, name in METHODS)
                    done.add(cls)
    return names


def explain_class(cls: type, methods: bool) -> None:
    """The same for the constructor of a class, and, if wanted, for its public methods."""
    for name, value in list(vars(cls).items()):
        if name == "__init__" or (methods and not name.startswith("_") and name not in INNER):
            if isinstance(value, FunctionType):
                setattr(cls, name, explained(value))
            elif isinstance(value, classmethod):
                setattr(cls, name, type(value)(explained(value.__func__)))  # a subclass may refuse instances


def no_arguments(self: Any) -> None:
    """The constructor of a class that takes no arguments."""


no_arguments.__name__ = "__init__"  # errors name a constructor by its class


class Moved:
    """A method that is a function elsewhere now: an AttributeError that says where."""

    def __init__(self, home: str):
        self.home = home

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        raise AttributeError(f"this is not a method any more: call {self.home}")


def listed(namespace: Mapping[str, Any]) -> Callable[[], list[str]]:
    """A package's `__dir__`: its `__all__` and its dunders, but not the files that it imported."""

    def __dir__() -> list[str]:
        return sorted({*namespace["__all__"], *(name for name in namespace if name.startswith("__"))})

    return __dir__


def unknown(package: str, names: Sequence[str], moved: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """A package's `__getattr__`: an AttributeError that suggests the nearest name. moved: old name to the new place."""

    def __getattr__(name: str) -> Any:
        hint = ""
        if moved and name in moved:
            hint = f"; it is in {moved[name]} now"
        elif not name.startswith("_"):
            hint = nearest(name, names)  # not for underscores: Python itself asks for such names
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}", name=name)

    return __getattr__
