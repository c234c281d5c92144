"""The state of a training run in a checkpoint's header: read and checked against a trainer, before anything is assigned."""

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
    """The entry "training" of a header. optimizer: its class's name. callbacks: (class's name, numbers) of each."""

    optimizer: str
    schedule: dict[str, Any]
    counters: tuple[int, int, int]  # steps, epoch, position
    position_of: tuple[Any, Any] | None
    seed: int
    finished: str | None
    history: History
    callbacks: list[tuple[str, dict[str, Any]]]


def parse(path: Any, header: Header) -> RunState:
    """The state of training in a checkpoint's header. Raises CheckpointError if it is missing or incomplete."""
    training = header.get("training")
    if not isinstance(training, dict):
        raise checkpoint.CheckpointError(f"{path} holds a network only; load it with Network.load, and start a new training")
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
        raise checkpoint.CheckpointError(f"{path} is damaged: its state of training is incomplete ({error!r})") from error


def schedule_state(schedule: Schedule | Callable[[int], float]) -> dict[str, Any]:
    """The state of a schedule; {} for a plain function."""
    return schedule.state() if isinstance(schedule, Schedule) else {}


def check_schedule(path: Any, schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """Raise CheckpointError if the schedule and the file both have a state, with other names in it."""
    own = schedule_state(schedule)
    if own and saved.schedule:
        checkpoint.expect(path, "a schedule with", sorted(own), sorted(saved.schedule))


def restore_schedule(schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """Restore the schedule's state from the file, if both have one."""
    if isinstance(schedule, Schedule) and saved.schedule and schedule.state():
        schedule.restore(saved.schedule)


def callbacks_state(callbacks: Sequence[Callback], trainer: Any) -> tuple[Tensors, list[dict[str, Any]]]:
    """The state of callbacks: arrays by name, e.g. "callback.0.theta", and an entry of the header for each callback."""
    tensors: Tensors = {}
    entries = []
    for i, callback in enumerate(callbacks):
        numbers, arrays = callback.state(trainer)
        entries.append({"class": type(callback).__name__, "numbers": numbers})
        tensors.update({f"callback.{i}.{name}": array for name, array in arrays.items()})
    return tensors, entries


def check_callbacks(path: Any, callbacks: Sequence[Callback], saved: RunState, tensors: Tensors) -> None:
    """Raise CheckpointError unless the file has callbacks of these classes, and their θ have the size and dtype of its θ."""
    checkpoint.expect(
        path, "callbacks", [type(callback).__name__ for callback in callbacks], [name for name, _ in saved.callbacks]
    )
    theta = tensors["theta"]
    for name in tensors:
        if name.startswith("callback.") and name.endswith(".theta"):  # the callback checks other arrays itself
            checkpoint.tensor(path, tensors, name, len(theta), str(theta.dtype))


def restore_callbacks(callbacks: Sequence[Callback], trainer: Any, saved: RunState, tensors: Tensors) -> None:
    """Restore the state of each callback from the file."""
    for i, callback in enumerate(callbacks):
        _, numbers = saved.callbacks[i]
        prefix = f"callback.{i}."
        arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        callback.restore(trainer, numbers, arrays)
