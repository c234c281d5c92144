"""Schedules: `schedule(step)` is the factor on the optimiser's learning rate in step 0, 1, 2, ... Units are steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from bpcore.optimizers import at_least


def whole(name: str, value: Any) -> None:
    """A ValueError unless value is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, got {value!r}")


class Schedule:
    """What schedules share: most know the step alone, and keep no state. monitor: the record's entry that is looked at."""

    monitor: str | None = None

    def __call__(self, step: int) -> float:
        raise TypeError(f"{type(self).__name__} must define __call__(self, step) -> factor")

    def observe(self, record: Mapping[str, Any]) -> None:
        """Told the history's record at each epoch's end."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""


@dataclass(frozen=True)
class Constant(Schedule):
    """1 always."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(Schedule):
    """Times `factor` every `every` steps."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        whole("every", self.every)
        at_least("factor", self.factor, 0.0)

    def __call__(self, step: int) -> float:
        return self.factor ** (step // self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """rate^step; a rate of 0.5 ** (1 / 1000) halves every thousand steps."""

    rate: float

    def __post_init__(self) -> None:
        at_least("rate", self.rate, 0.0)

    def __call__(self, step: int) -> float:
        return self.rate**step


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 down to `floor` over `steps` steps along half a cosine, then `floor`.        Loshchilov and Hutter, 2017"""

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        at_least("floor", self.floor, 0.0)

    def __call__(self, step: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """From 1 / steps linearly up to 1 in the first `steps` steps, then the schedule `then`, from its step 0."""

    steps: int
    then: Schedule = field(default_factory=Constant)

    @property
    def monitor(self) -> str | None:  # type: ignore[override]  # of `then`
        return self.then.monitor

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if not isinstance(self.then, Schedule):
            raise TypeError(f"then must be a schedule, got {self.then!r}; see bpcore.schedules, or subclass Schedule")

    def __call__(self, step: int) -> float:
        return (step + 1) / self.steps if step < self.steps else self.then(step - self.steps)

    def observe(self, record: Mapping[str, Any]) -> None:
        self.then.observe(record)

    def state(self) -> dict[str, Any]:
        return self.then.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.then.restore(state)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From `start` up to 1 over the first `warm` of `steps` steps, then down to `end`, along cosines.        Smith, 2018"""

    steps: int
    warm: float = 0.3
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        at_least("warm", self.warm, 0.0, 1.0)
        at_least("start", self.start, 0.0)
        at_least("end", self.end, 0.0)

    def __call__(self, step: int) -> float:
        peak = self.warm * self.steps
        if step < peak:
            return between(self.start, 1.0, step / peak)
        return between(1.0, self.end, min((step - peak) / (self.steps - peak), 1.0))


def between(a: float, b: float, way: float) -> float:
    """From a (way 0) to b (way 1) along half a cosine."""
    return b + (a - b) * 0.5 * (1 + math.cos(math.pi * way))


class ReduceOnPlateau(Schedule):
    """Times `factor` after more than `patience` epochs in which `monitor` did not fall by a part `threshold` of its best."""

    def __init__(self, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, monitor: str = "test_loss"):
        at_least("factor", factor, 0.0, 1.0)
        at_least("patience", patience, 0)
        at_least("threshold", threshold, 0.0, 1.0)
        self.factor, self.patience, self.threshold = float(factor), patience, float(threshold)
        self.monitor: str = monitor
        self.best, self.waited, self.current = math.inf, 0, 1.0

    def __call__(self, step: int) -> float:
        return self.current

    def observe(self, record: Mapping[str, Any]) -> None:
        value = monitored(record, self.monitor)
        if value < self.best * (1 - self.threshold):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            if self.waited > self.patience:
                self.current, self.waited = self.current * self.factor, 0

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "current": self.current}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited, self.current = state["best"], state["waited"], state["current"]

    def __repr__(self) -> str:
        return f"ReduceOnPlateau({self.factor}, {self.patience}, {self.threshold}, {self.monitor!r})"


def monitored(record: Mapping[str, Any], name: str) -> float:
    """record[name], or a ValueError that says what there is."""
    if name not in record:
        raise ValueError(f"there is no {name!r} to monitor, only {', '.join(record)}; choose one, or pass validation to fit")
    value: float = record[name]
    return value
