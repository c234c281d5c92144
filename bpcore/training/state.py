"""The state of a training run in a checkpoint's header: read and checked against a trainer, before anything is assigned."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bpcore import arguments, checkpoint
from bpcore.checkpoint import Header, Tensors
from bpcore.schedules import Schedule, WarmUp
from bpcore.structure import class_name, same_name
from bpcore.training.callbacks import Callback
from bpcore.training.history import History


class RunState(NamedTuple):
    """The entry "training" of a header. optimizer, loss, schedule_class: names of classes, or None in a file of format 1.

    callbacks: (class's name, numbers) of each.
    """

    optimizer: str
    loss: str | None
    schedule: dict[str, Any]
    schedule_class: str | None
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
        rows, batch_size = training["position_of"] or (None, None)
        finished, history = training["finished"], training["history"]
        if not isinstance(finished, str | None) or not all(isinstance(record, dict) for record in history):
            raise TypeError(f"finished {finished!r}, history {history!r}")
        return RunState(
            optimizer=training["optimizer"]["class"],
            loss=training["loss"][-1]["class"] if "loss" in training else None,
            schedule=dict(training["schedule"]),
            schedule_class=training.get("schedule class"),
            counters=(steps, epoch, position),
            position_of=None if training["position_of"] is None else (rows, batch_size),
            seed=arguments.seed(training["seed"]),
            finished=finished,
            history=History(list(history)),
            callbacks=[(callback["class"], dict(callback["numbers"])) for callback in training["callbacks"]],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise checkpoint.CheckpointError(f"{path} is damaged: its state of training is incomplete ({error!r})") from error


def schedule_state(schedule: Schedule | Callable[[int], float]) -> dict[str, Any]:
    """The state of a schedule; {} for a plain function."""
    return schedule.state() if isinstance(schedule, Schedule) else {}


def schedule_class(schedule: Schedule | Callable[[int], float]) -> str:
    """The name of a schedule's class, or of a plain function. For a WarmUp, that of the one after it, which has the state."""
    while isinstance(schedule, WarmUp):
        schedule = schedule.then
    return class_name(schedule)


def check_schedule(path: Any, schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """Raise CheckpointError if the schedule and the file both have a state, of another class or with other names in it."""
    own = schedule_state(schedule)
    if own and saved.schedule:
        checkpoint.expect(path, "a schedule with", sorted(own), sorted(saved.schedule))
        if saved.schedule_class is not None and not same_name(schedule_class(schedule), saved.schedule_class):
            checkpoint.expect(path, "schedule", schedule_class(schedule), saved.schedule_class)


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
        entries.append({"class": class_name(callback), "numbers": numbers})
        tensors.update({f"callback.{i}.{name}": array for name, array in arrays.items()})
    return tensors, entries


def check_callbacks(path: Any, callbacks: Sequence[Callback], saved: RunState, tensors: Tensors) -> None:
    """Raise CheckpointError unless the file has callbacks of these classes, and their θ have the size and dtype of its θ."""
    names, saved_names = [class_name(callback) for callback in callbacks], [name for name, _ in saved.callbacks]
    if len(names) != len(saved_names) or not all(map(same_name, names, saved_names)):
        checkpoint.expect(path, "callbacks", names, saved_names)
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
