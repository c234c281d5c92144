"""The state of a training run: whose its callbacks and schedule are, and how a checkpoint stores and restores it."""

from __future__ import annotations

import copy
import dataclasses
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from bpcore import arguments, checkpoint
from bpcore.arguments import is_number, show, users_level
from bpcore.checkpoint import CheckpointError, Header, Tensors
from bpcore.schedules import Schedule, WarmUp
from bpcore.structure import arranged, class_name, expect_class, same_name
from bpcore.training import outlived
from bpcore.training.callbacks import Callback
from bpcore.training.guard import Guard
from bpcore.training.history import History

Restored = tuple[Callback, dict[str, Any], Tensors]  # a callback, and the numbers and arrays that a file has for it


class RunState(NamedTuple):
    """The entry "training" of a header. optimizer, loss, schedule_class: names of classes; None where a file does not say.

    callbacks: (class's name, numbers) of each.

    monitors: the columns that the schedule and the callbacks watch; None where a file does not say. columns: of the tables that
    were trained on, by input, if their names are texts.
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
    monitors: list[str | None]
    columns: dict[str, list[str]]


def parse(path: Any, header: Header) -> RunState:
    """The state of training in a checkpoint's header. Raises CheckpointError if it is missing or incomplete."""
    training = header.get("training")
    if not isinstance(training, dict):
        raise CheckpointError(f"{path} holds a network only; load it with Network.load, and start a new training")
    try:
        steps, epoch, position = (operator.index(n) for n in training["counters"])
        if min(steps, epoch, position) < 0:
            raise ValueError(f"counters {steps}, {epoch}, {position}")
        callbacks = [(callback["class"], dict(callback["numbers"])) for callback in training["callbacks"]]
        monitors = list(training.get("monitors", [None] * (1 + len(callbacks))))
        if len(monitors) != 1 + len(callbacks):
            raise ValueError(f"monitors {monitors}")
        position_of = training["position_of"]
        if position_of is not None:
            rows, batch_size = position_of
            position_of = None if rows is None else operator.index(rows), operator.index(batch_size)
        if not isinstance(training["finished"], (str, type(None))):
            raise ValueError(f"finished {training['finished']!r}")
        return RunState(
            optimizer=training["optimizer"]["class"],
            loss=training["loss"][-1]["class"] if "loss" in training else None,
            schedule=dict(training["schedule"]),
            schedule_class=training.get("schedule class"),
            counters=(steps, epoch, position),
            position_of=position_of,
            seed=arguments.seed(training["seed"]),
            finished=training["finished"],
            history=History([dict(record) for record in training["history"]]),
            callbacks=callbacks,
            monitors=monitors,
            columns={
                label: [arguments.text("a column", name, "age") for name in list(names)]
                for label, names in dict(training.get("columns", {})).items()
            },
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its state of training is incomplete ({error!r})") from error


def watched(part: Any) -> str | None:
    """The column that a callback or a schedule watches, and whether larger is better; None if it watches none."""
    of = innermost(part)
    monitor = getattr(of, "monitor", None)
    return f"{monitor}, higher=True" if monitor is not None and getattr(of, "higher", False) else monitor


# whose callbacks and schedules are


def innermost(part: Any) -> Any:
    """The schedule within warm-ups, or `part` itself."""
    while isinstance(part, WarmUp):
        part = part.then
    return part


def keeps_something(part: Callback | Schedule, trainer: Any) -> bool:
    """Whether to begin the callback or schedule again would lose something."""
    base = Schedule if isinstance(part, Schedule) else Callback
    if type(part).state is base.state:
        return type(part).begin is not base.begin
    try:
        return any(part.state(trainer)) if isinstance(part, Callback) else bool(part.state())
    except Exception:  # a user's
        return True


def take(parts: Iterable[Any], trainer: Any, running: bool = False) -> None:
    """Make callbacks and a schedule those of `trainer`. Each that was not begins afresh.

    running: whether the trainer has used them. Then one that another trainer has taken since is a RuntimeError.
    """
    for part in parts:
        own = innermost(part)
        if not isinstance(own, (Callback, Schedule)):
            outlived.follow(own, trainer)  # a function of the step
            continue
        run = vars(own).get("_run")
        if run is trainer.counters:
            continue
        if running and run is not None and keeps_something(own, trainer):
            raise RuntimeError(
                f"{own!r} belongs to another trainer, which has started it afresh; give each trainer one of its own, and save or "
                "continue a run before the next trainer takes its callbacks"
            )
        begin(own, trainer)


def begin(part: Callback | Schedule, trainer: Any) -> None:
    """Start a callback or a schedule afresh, for this trainer."""
    part.begin(trainer) if isinstance(part, Callback) else part.begin()
    vars(part)["_outlined_for"] = None
    if isinstance(part, Schedule):  # callbacks: when `fit` starts them
        outlived.follow(part, trainer)
    vars(part)["_run"] = trainer.counters  # an object that only this trainer has; not setattr, because schedules are frozen


# what a checkpoint stores


def of(trainer: Any) -> tuple[Tensors, Header]:
    """(arrays, header) of a checkpoint of the trainer."""
    tensors, header = trainer.training_step.state()
    arrays, callbacks = callbacks_state(trainer.callbacks, trainer)
    header["training"] |= {
        "schedule": schedule_state(trainer.schedule),
        "schedule class": class_name(innermost(trainer.schedule)),
        "counters": [trainer.steps, trainer.epoch, trainer.position],
        "position_of": trainer.position_of,
        "finished": trainer.finished,
        "callbacks": callbacks,
        "monitors": [watched(part) for part in (trainer.schedule, *trainer.callbacks)],
        "history": list(trainer.history),
    }
    columns = {label: names for label, names in trainer._columns.items() if all(isinstance(name, str) for name in names)}
    if columns:
        header["training"]["columns"] = columns
    return {**tensors, **arrays}, header


def restore(trainer: Any, tensors: Tensors, header: Header, path: Any) -> None:
    """Set the trainer to a checkpoint. All is checked before anything is assigned; what fails later sets all back."""
    step = trainer.training_step
    tensors, header = arranged(tensors, header, step.network.layout)
    saved = parse(path, header)
    step.check_bound()
    vectors = step.check_state(path, tensors, header, saved.optimizer, saved.loss)
    pairs = paired(path, trainer, saved, tensors)
    check_schedule(path, trainer.schedule, saved)
    undo = remember(trainer)
    try:
        step.restore(vectors)
        step.seed = saved.seed
        trainer.steps, trainer.epoch, trainer.position = saved.counters
        trainer.position_of = saved.position_of
        trainer.finished = saved.finished
        trainer.history = saved.history
        trainer._columns = dict(saved.columns)
        trainer.guard = Guard(step, trainer.counters)
        restore_parts(trainer, saved.schedule, pairs)
        observes = innermost(trainer.schedule)
        if isinstance(observes, Schedule) and keeps_no_state(observes):
            text = f"{type(observes).__name__} observes epochs and defines no state and restore: it starts afresh here"
            warnings.warn(text, RuntimeWarning, stacklevel=users_level())
        if saved.schedule and not schedule_state(trainer.schedule):
            state = f"the state of a schedule {saved.schedule_class or ''}".rstrip()
            text = f"{path} has {state}, which {trainer.schedule!r} does not take: it is left out"
            warnings.warn(text, RuntimeWarning, stacklevel=users_level())
    except BaseException as error:
        undo()
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(
            f"{path} does not fit: restore of a callback or the schedule raised {error!r}; mend it, or take an older copy. "
            "Nothing was loaded"
        ) from error


def keeps_no_state(schedule: Schedule) -> bool:
    """Whether a schedule depends on what it observes, and a file does not keep that."""
    of_class = type(schedule)
    return of_class.observe is not Schedule.observe and of_class.state is Schedule.state


def check_state(part: Any, trainer: Any) -> None:
    """Raise a TypeError if a callback or a schedule has a state that a file cannot store."""
    try:
        state = part.state(trainer)[0] if isinstance(part, Callback) else part.state() if isinstance(part, Schedule) else {}
    except Exception:  # a user's, that has a state in training only
        return
    if isinstance(state, dict):
        expect_storable(part, state)


def expect_storable(part: Any, state: Any) -> None:
    """Raise a TypeError unless a file can store the numbers of a callback, or the state of a schedule."""
    name = checkpoint.unstorable(state)
    if name is not None:
        where = "; put arrays in the second dictionary" if isinstance(part, Callback) else ""
        keeps = f"a file keeps numbers, texts and lists of them{where}"
        raise TypeError(f"the state of {part!r} has {show(state[name])} for {name!r}, and {keeps}")


def schedule_state(schedule: Schedule | Callable[[int], float]) -> dict[str, Any]:
    """The state of a schedule; {} for a plain function."""
    state = schedule.state() if isinstance(schedule, Schedule) else {}
    expect_storable(schedule, state)
    return state


def check_schedule(path: Any, schedule: Schedule | Callable[[int], float], saved: RunState) -> None:
    """Raise CheckpointError if the schedule and the file both have a state, and that of the file does not fit."""
    own = schedule_state(schedule)
    if own and saved.schedule:
        checkpoint.expect(path, "a schedule with", sorted(own), sorted(saved.schedule))
        check_kinds(path, f"its {type(schedule).__name__}", own, saved.schedule)
        if saved.schedule_class is not None:
            expect_class(path, "schedule", innermost(schedule), saved.schedule_class)
        if saved.monitors[0] is not None:
            checkpoint.expect(path, "a schedule that monitors", watched(schedule), saved.monitors[0])


def callbacks_state(callbacks: Sequence[Callback], trainer: Any) -> tuple[Tensors, list[dict[str, Any]]]:
    """The state of callbacks: arrays by name, e.g. "callback.0.theta", and an entry of the header for each callback."""
    tensors: Tensors = {}
    entries = []
    for i, callback in enumerate(callbacks):
        state = callback.state(trainer)
        if not (isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, dict) for part in state)):
            raise TypeError(f"the state of {callback!r} must be (numbers by name, arrays by name), got {show(state)}")
        numbers, arrays = state
        if not has_text_keys(numbers):
            raise TypeError(f"the state of {callback!r} has a key that is no text, which a file would change: {show(numbers)}")
        expect_storable(callback, numbers)
        entries.append({"class": class_name(callback), "numbers": numbers})
        tensors.update({f"callback.{i}.{name}": array for name, array in arrays.items()})
    return tensors, entries


def has_text_keys(value: Any) -> bool:
    """Whether all keys of dictionaries in `value` are texts."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(has_text_keys, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(has_text_keys, value))


def paired(path: Any, trainer: Any, saved: RunState, tensors: Tensors) -> list[Restored]:
    """The trainer's callbacks that have a state in the file, by class and monitor, in the order of each.

    Raises CheckpointError if there is a state that none of them takes, or one of another kind than theirs.
    """
    free = list(trainer.callbacks)
    pairs = []
    for i, ((name, numbers), monitor) in enumerate(zip(saved.callbacks, saved.monitors[1:], strict=True)):
        prefix = f"callback.{i}."
        arrays = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
        if not numbers and not arrays:
            continue
        fitting = (k for k, c in enumerate(free) if same_name(class_name(c), name) and monitor in (None, watched(c)))
        k = next(fitting, None)
        if k is None:
            watching = "" if monitor is None else f" that monitors {monitor!r}"
            raise CheckpointError(
                f"{path} does not fit: it has the state of a callback {name}{watching}, got {trainer.callbacks}; add one "
                "(you may take it out again after resuming: trainer.callbacks = [...]). Nothing was loaded"
            )
        callback = free.pop(k)
        try:
            own, _ = callback.state(trainer)
        except Exception:  # a user's, that has a state in training only
            own = {}
        if own:
            checkpoint.expect(path, f"{name} with", sorted(own), sorted(numbers))
            check_kinds(path, name, own, numbers)
        pairs.append((callback, numbers, arrays))
    return pairs


def check_kinds(path: Any, of: str, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise CheckpointError where a saved value is of another kind than the present one: a text, a list. None is of any kind."""
    for name, value in own.items():
        expected, got = kind_of(value), kind_of(saved[name])
        if "None" not in (expected, got):
            checkpoint.expect(path, f"{of}'s {name} to be of kind", expected, got)


def kind_of(value: Any) -> str:
    """The kind of a value in a header: JSON has one for all numbers, and one for tuples and lists."""
    kinds = {"NoneType": "None", "tuple": "list"}
    return "number" if is_number(value) else kinds.get(type(value).__name__, type(value).__name__)


def restore_parts(trainer: Any, schedule: dict[str, Any], pairs: list[Restored]) -> None:
    """Start the trainer's schedule and callbacks afresh, and restore those that have a state in the file."""
    for part in (innermost(trainer.schedule), *trainer.callbacks):
        if isinstance(part, (Schedule, Callback)):
            begin(part, trainer)
    if schedule and schedule_state(trainer.schedule):
        trainer.schedule.restore(schedule)
    for callback, numbers, arrays in pairs:
        callback.restore(trainer, numbers, arrays)


def remember(trainer: Any) -> Callable[[], None]:
    """A function that sets the trainer, its vectors, its schedule and its callbacks back to what they are now."""
    attributes, counters, seed = dict(vars(trainer)), dataclasses.replace(trainer.counters), trainer.training_step.seed
    vectors = trainer.guard.copies()
    parts = [part for part in (innermost(trainer.schedule), *trainer.callbacks) if isinstance(part, (Schedule, Callback))]
    before: list[tuple[dict[str, Any], Any]] = []
    for part in parts:
        try:
            state = copy.deepcopy(part.state(trainer) if isinstance(part, Callback) else part.state())
        except Exception:  # a user's, that has a state in training only
            state = None
        before.append((dict(vars(part)), state))
    theta_epoch = trainer.history.theta_epoch

    def undo() -> None:
        vars(trainer).update(attributes)
        vars(trainer.counters).update(vars(counters))
        trainer.training_step.seed = seed
        trainer.history.theta_epoch = theta_epoch
        for name, vector in trainer.training_step.vectors.items():
            vector[...] = vectors[name]
        for part, (own, state) in zip(parts, before, strict=True):
            if state is not None:  # for arrays that were changed in place
                with suppress(Exception):  # a user's
                    part.restore(trainer, *state) if isinstance(part, Callback) else part.restore(state)
            vars(part).clear()
            vars(part).update(own)

    return undo
