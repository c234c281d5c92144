"""Schedules: `schedule(step)` is the factor on the optimiser's learning rate in step 0, 1, 2, ... Lengths are in steps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpcore.arguments import bounded, flag, given, number, show, text, users_level, whole

__all__ = ["Constant", "Cosine", "Exponential", "OneCycle", "ReduceOnPlateau", "Schedule", "Step", "WarmUp"]


class Schedule:
    """A factor on the optimiser's learning rate, as a function of the step. To write one, subclass this.

    A subclass defines `__call__`. If it depends on what is measured, it defines `observe` too, and `state` and `restore`, so
    that a resumed run continues exactly as if it had not stopped. A Trainer also takes a plain function of the step.

    monitor: the history column that `observe` reads, such as "test_loss"; `fit` checks before it starts that the column exists.
    length: the number of steps after which the schedule is over, so that a Trainer warns about steps beyond; None if it never is.

    >>> class InverseTime(bp.schedules.Schedule):
    ...     def __init__(self, rate):
    ...         self.rate = rate
    ...     def __call__(self, step):
    ...         return 1 / (1 + self.rate * step)
    >>> net = bp.Network(bp.Linear(2, 1))
    >>> trainer = bp.Trainer(net, bp.SquaredError(), bp.SGD(0.1), schedule=InverseTime(0.5))
    >>> J = [trainer.step([[1.0, 2.0]], [[3.0]]) for step in range(2)]
    >>> trainer.lr
    0.05
    """

    monitor: str | None = None
    length: int | None = None

    def __call__(self, step: int) -> float:
        """The factor in step 0, 1, 2, ...: a finite number >= 0."""
        raise TypeError(f"{type(self).__name__} must define __call__(self, step) -> factor")

    def begin(self) -> None:
        """A new trainer takes this schedule: forget what earlier ones had it observe.

        By default, `restore` gets the state that the schedule had when its first trainer took it.
        """
        first = self.__dict__.setdefault("_first", copy.deepcopy(self.state()))  # not setattr: a subclass may be frozen
        if first:
            self.restore(copy.deepcopy(first))

    def observe(self, record: Mapping[str, Any]) -> None:
        """Called at the end of each epoch with its record in the history: numbers by column, e.g. record["test_loss"]."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of the schedule: numbers and strings by name; {} if the factor depends on the step only."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the schedule to the state that `state` returned. An error here leaves the trainer as it was."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({given(self)})"


def store(schedule: Schedule, **numbers: float) -> None:
    """Set fields of a frozen schedule: to checked Python numbers, because NumPy's would promote."""
    for name, value in numbers.items():
        object.__setattr__(schedule, name, value)


def power(base: float, exponent: int) -> float:
    """base^exponent, infinite where Python raises an OverflowError."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Constant(Schedule):
    """1 in every step."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplies the learning rate by `factor` every `every` steps."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        store(self, every=whole("every", self.every), factor=bounded("factor", self.factor, 0.0))

    def __call__(self, step: int) -> float:
        return power(self.factor, step // self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """rate^step; with a rate of 0.5 ** (1 / 1000) it halves every thousand steps."""

    rate: float

    def __post_init__(self) -> None:
        store(self, rate=bounded("rate", self.rate, 0.0))

    def __call__(self, step: int) -> float:
        return power(self.rate, step)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 down to `floor` over `steps` steps along half a cosine, then `floor`; a Trainer warns about steps at a floor of 0.

    Loshchilov and Hutter, 2017
    """

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        store(self, steps=whole("steps", self.steps), floor=bounded("floor", self.floor, 0.0))

    @property
    def length(self) -> int | None:  # type: ignore[override]  # at a floor above 0 the run goes on
        return None if self.floor else self.steps

    def __call__(self, step: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linear from 1 / steps up to 1 in the first `steps` steps; then the schedule `then`, from its step 0."""

    steps: int
    then: Schedule = field(default_factory=Constant)

    @property
    def monitor(self) -> str | None:  # type: ignore[override]  # that of `then`
        return self.then.monitor

    @property
    def length(self) -> int | None:  # type: ignore[override]  # with that of `then`
        return None if self.then.length is None else self.steps + self.then.length

    def __post_init__(self) -> None:
        store(self, steps=whole("steps", self.steps))
        if not isinstance(self.then, Schedule):
            raise TypeError(f"then must be a schedule, got {show(self.then)}; see bpcore.schedules, or subclass Schedule")

    def __call__(self, step: int) -> float:
        return (step + 1) / self.steps if step < self.steps else self.then(step - self.steps)

    def begin(self) -> None:
        self.then.begin()

    def observe(self, record: Mapping[str, Any]) -> None:
        self.then.observe(record)

    def state(self) -> dict[str, Any]:
        return self.then.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.then.restore(state)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From `start` up to 1, then down to `end`, along half cosines, in `steps` steps; the part `warm` of them goes up.

    A Trainer warns about steps after these.

    Smith, 2018
    """

    steps: int
    warm: float = 0.3
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        store(self, steps=whole("steps", self.steps), warm=bounded("warm", self.warm, 0.0, 1.0))
        store(self, start=bounded("start", self.start, 0.0), end=bounded("end", self.end, 0.0))

    @property
    def length(self) -> int:  # type: ignore[override]  # beyond, the factor is `end`
        return self.steps

    def __call__(self, step: int) -> float:
        peak = self.warm * self.steps
        if step < peak:
            return between(self.start, 1.0, step / peak)
        return between(1.0, self.end, min((step - peak) / (self.steps - peak), 1.0))


def between(a: float, b: float, t: float) -> float:
    """From a (t = 0) to b (t = 1) along half a cosine."""
    return b + (a - b) * 0.5 * (1 + math.cos(math.pi * t))


class ReduceOnPlateau(Schedule):
    """Multiplies the learning rate by `factor` when `monitor` has not improved in more than `patience` epochs.

    monitor: the history column to watch. It has improved if it is better than its best value so far by more than `threshold`
    times the size of that value. higher: whether larger is better, as for accuracy.
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        monitor: str = "test_loss",
        higher: bool = False,
    ):
        self.factor = bounded("factor", factor, 0.0, 1.0)
        self.patience = whole("patience", patience, least=0)
        self.threshold = bounded("threshold", threshold, 0.0, 1.0)
        self.monitor: str = text("monitor", monitor, "test_loss")
        self.higher = flag("higher", higher)
        self.begin()

    def begin(self) -> None:
        self.best = -math.inf if self.higher else math.inf
        self.waited = 0  # epochs since the best
        self.current = 1.0  # the factor

    def __call__(self, step: int) -> float:
        return self.current

    def observe(self, record: Mapping[str, Any]) -> None:
        value = monitored(record, self.monitor)
        if improved(value, self.best, self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0, self.higher):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            if self.waited > self.patience:
                self.current, self.waited = self.current * self.factor, 0

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "current": self.current}

    def restore(self, state: Mapping[str, Any]) -> None:
        best = number("best", state["best"], "not NaN", lambda best: not math.isnan(best))
        waited = whole("waited", state["waited"], least=0)
        self.best, self.waited, self.current = best, waited, bounded("current", state["current"], 0.0)


def improved(value: float, best: float, by: float, higher: bool) -> bool:
    """Whether value is better than best by more than `by`; NaN never is. higher: whether larger is better."""
    return value > best + by if higher else value < best - by


def monitored(record: Mapping[str, Any], name: str) -> float:
    """record[name], with a warning if it is NaN, or a ValueError that names the columns of the record."""
    if not isinstance(name, str):
        raise TypeError(f"monitor must be the name of a history column, got {show(name)}; e.g. 'test_loss'")
    if name not in record:
        there = ", ".join(record) or "nothing is measured"
        raise ValueError(f"there is no {name!r} to monitor, only {there}; choose one, or pass validation to fit")
    value: float = record[name]
    if math.isnan(value):
        message = f"{name} is NaN, so that no epoch can be told to be the better one; monitor another column, or mend the data"
        warnings.warn(message, RuntimeWarning, stacklevel=users_level())
    return value
