"""The state of a training run in a checkpoint's header: read, and held against a trainer's parts, before anything is assigned."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bpcore import checkpoint
from bpcore.checkpoint import Header, Tensors
from bpcore.schedules import Schedule
from bpcore.training.callbacks import Callback
from bpcore.training.history import History


class RunState(NamedTuple):
    """What the header's entry "training" says. optimizer, callbacks: names of classes, with the numbers that callbacks keep."""

    optimizer: str
    schedule: dict[str, Any]
    counters: tuple[int, int, int]  # steps, epoch, position
    position_of: tuple[Any, Any] | None
    seed: int
    finished: str | None
    history: History
    callbacks: list[tuple[str, dict[str, Any]]]


def parse(path: Any, header: Header) -> RunState:
    """The state of training in a checkpoint's header, or a CheckpointError where there is none or where it is not whole."""
    training = header.get("training")
    if not isinstance(training, dict):
        raise checkpoint.CheckpointError(f"{path} holds a network only; load it with Network.load, and train anew")
    try:
        steps, epoch, position = (operator.index(n) for n in training["counters"])
        if min(steps, epoch, position) < 0:
            raise ValueError(f"counters {steps}, {epoch}, {position}")
        return RunState(
            optimizer=training["optimizer"]["class"],
            schedule=dict(training["schedule"]),
            counters=(steps, epoch, position),
            position_of=None if training["position_of"] is None else tuple(training["position_of"]),
            seed=training["seed"],
            finished=training["finished"],
            history=History(list(training["history"])),
            callbacks=[(callback["class"], callback["numbers"]) for callback in training["callbacks"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is damaged: its state of training is not whole ({error!r})") from error


def schedule_state(schedule: Schedule | Callable[[int], float]) -> dict[str, Any]:
    """What a schedule keeps; a plain function keeps nothing."""
    return schedule.state() if isinstance(schedule, Schedule) else {}


def check_schedule(path: Any, schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """A CheckpointError where both the schedule and the file keep something, and under other names."""
    own = schedule_state(schedule)
    if own and saved.schedule:
        checkpoint.expect(path, "a schedule with", sorted(own), sorted(saved.schedule))


def restore_schedule(schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """Give the schedule what the file keeps of it, where both keep something."""
    if isinstance(schedule, Schedule) and saved.schedule and schedule.state():
        schedule.restore(saved.schedule)


def callbacks_state(callbacks: Sequence[Callback], trainer: Any) -> tuple[Tensors, list[dict[str, Any]]]:
    """What callbacks keep: arrays, "callback.0.theta", and an entry of the header for each."""
    tensors: Tensors = {}
    entries = []
    for i, callback in enumerate(callbacks):
        numbers, arrays = callback.state(trainer)
        entries.append({"class": type(callback).__name__, "numbers": numbers})
        tensors.update({f"callback.{i}.{name}": array for name, array in arrays.items()})
    return tensors, entries


def check_callbacks(path: Any, callbacks: Sequence[Callback], saved: RunState, tensors: Tensors) -> None:
    """A CheckpointError unless the file has callbacks of these classes, and each θ that one keeps is like the file's θ."""
    checkpoint.expect(
        path, "callbacks", [type(callback).__name__ for callback in callbacks], [name for name, _ in saved.callbacks]
    )
    theta = tensors["theta"]
    for name in tensors:
        if name.startswith("callback.") and name.endswith(".theta"):  # arrays of other names are the callback's own affair
            checkpoint.tensor(path, tensors, name, len(theta), str(theta.dtype))


def restore_callbacks(callbacks: Sequence[Callback], trainer: Any, saved: RunState, tensors: Tensors) -> None:
    """Give each callback what the file keeps of it."""
    for i, (callback, (_, numbers)) in enumerate(zip(callbacks, saved.callbacks, strict=True)):
        prefix = f"callback.{i}."
        arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        callback.restore(trainer, numbers, arrays)
