"""Attributes of an object that belong to one of its parts."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Part(Generic[T]):
    """An attribute that belongs to a part: with `steps = Part[int]("counters.steps")`, x.steps is x.counters.steps."""

    def __init__(self, path: str):
        self.part, _, self.name = path.rpartition(".")
        self.get = attrgetter(path)

    def __get__(self, whole: Any, owner: Any = None) -> T:
        if whole is None:  # on the class, as `help` looks it up
            return cast(T, self)
        value: T = self.get(whole)
        return value

    def __set__(self, whole: Any, value: T) -> None:
        setattr(getattr(whole, self.part), self.name, value)
