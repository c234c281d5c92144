"""What a trainer is given, checked before the first step: its parts, and whether `fit` can go through to its end."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bpcore.arguments import expect_call, flag, is_number, is_ours, show, text, users_level, whole
from bpcore.files import check_place
from bpcore.module import Mode, Module
from bpcore.schedules import Schedule, monitored
from bpcore.training.callbacks import Callback
from bpcore.training.data import Arrays, Batches, Columns, as_array, check_columns, check_finite, columns_of, labels_of
from bpcore.training.evaluation import check_data
from bpcore.training.history import History
from bpcore.training.metric import Metric
from bpcore.training.metrics import chosen_metrics
from bpcore.training.state import check_state, innermost, take
from bpcore.training.step import Step

STORED = {"state": ["trainer"], "restore": ["trainer", "numbers", "arrays"]}
CALLED = {"on_start": ["trainer"], "on_step": ["trainer", "J"], "on_epoch": ["trainer", "record"], "on_end": ["trainer"]}


def as_callbacks(trainer: Any, callbacks: Any) -> list[Callback]:
    """The callbacks in one or in an iterable of them, in the order in which they are called. Those new to the trainer begin."""
    given = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else callbacks
    if not isinstance(given, Iterable):
        raise TypeError(f"callbacks must be bpcore Callbacks, got {show(callbacks)}")
    given = list(given)
    for i, callback in enumerate(given):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be bpcore Callbacks, got {show(callback)}")
        if any(callback is other for other in given[:i]):
            raise ValueError(f"callbacks has one object twice, {show(callback)}; leave one out")
        unknown = [name for name in dir(type(callback)) if name.startswith("on_") and name not in CALLED]
        if unknown and vars(callback).get("_run") is None:
            warn(f"{type(callback).__name__}.{unknown[0]} is never called; a callback has {', '.join(CALLED)}")
        own = {method for method in (*CALLED, *STORED) if getattr(type(callback), method) is not getattr(Callback, method)}
        if len(own & set(STORED)) == 1:
            one, other = sorted(STORED, key=lambda method: method not in own)
            raise TypeError(f"{type(callback).__name__} defines {one} without {other}: a resumed run would start it afresh")
        for method, names in (CALLED | STORED).items():
            if method in own and vars(callback).get("_run") is None:
                expect_call(f"{type(callback).__name__}.{method}", getattr(callback, method), *names)
    take(given, trainer)
    return sorted(given, key=lambda callback: callback.last)


def as_schedule(trainer: Any, schedule: Any) -> Any:
    """The schedule, or a function of the step. It begins afresh if it is new to the trainer."""
    if not callable(schedule) or isinstance(schedule, (type, Module)):
        raise TypeError(f"schedule must be a function of the step, got {show(schedule)}; e.g. one of bpcore.schedules")
    expect_call("schedule", schedule, "step")
    take([schedule], trainer)
    trainer._ends = schedule.length if isinstance(schedule, Schedule) else None
    trainer._observed = innermost(schedule)
    return schedule


def as_seed(trainer: Any, seed: Any) -> Any:
    """A seed, between epochs only: it decides which rows are left of an epoch. Step checks its value."""
    if trainer.position:
        raise ValueError(f"seed cannot change {trainer.position} steps into an epoch, whose order it decides; finish the epoch")
    return seed


def as_metrics(trainer: Any, metrics: Any) -> list[Metric]:
    """The metrics, whose methods take what `evaluate` gives them."""
    chosen = chosen_metrics(metrics)
    for metric in chosen:
        expect_call(f"{type(metric).__name__}.scores", metric.scores, "t", "y")
        expect_call(f"{type(metric).__name__}.terms", metric.terms, "t", "y", "w")
    return chosen


def as_history(trainer: Any, history: Any) -> History:
    """history, or a TypeError unless it is a History."""
    if not isinstance(history, History):
        raise TypeError(f"history must be a bp.History, got {show(history)}; to forget the epochs: bp.History()")
    return history


def as_count(name: str, trainer: Any, value: Any) -> int:
    """A count of what is done."""
    return whole(name, value, least=0)


SETTINGS: dict[str, Callable[[Any, Any], Any]] = {  # of a trainer: each checks a value that is assigned, and returns it
    "schedule": as_schedule,
    "metrics": as_metrics,
    "callbacks": as_callbacks,
    "seed": as_seed,
    "history": as_history,
    **{name: partial(as_count, name) for name in ("steps", "epoch", "position")},
    "progress": lambda trainer, progress: None if progress is None else flag("progress", progress),
}


def as_batch_size(batch_size: Any, call: str) -> int:
    """batch_size as an int. call: what to write where somebody passes labels in its place."""
    if getattr(batch_size, "ndim", 0) or isinstance(batch_size, (list, tuple)):
        raise TypeError(
            f"batch_size must be a whole number, got {show(batch_size)}; labels and a mask are no second argument: {call}"
        )
    return whole("batch_size", batch_size)


def as_factor(factor: Any, step: int) -> float:
    """The factor that a schedule gave at this step, as a float: of any number or array with one, but no text, None or bool."""
    if is_number(factor):
        try:
            return float(factor)
        except OverflowError:
            return math.inf  # the learning rate is then refused
    if getattr(factor, "shape", None) != () or isinstance(factor, bool):
        raise TypeError(f"the schedule gave {show(factor)} at step {step}; it must return a number, e.g. 0.5")
    return float(factor)


def check(
    trainer: Any,
    examples: Arrays | Batches,
    held_out: Arrays | Batches | None,
    epochs: int,
    batch_size: int,
    measured: bool,
    drop_last: bool,
) -> int | None:
    """Raise, before `fit` changes anything, if it cannot go through to its end. Returns the steps of an epoch, or None.

    measured: whether the training set is measured.
    """
    trainer._own()
    trainer.metrics = trainer.metrics  # checked, also if somebody has changed the list
    expect_columns(examples, trainer._columns)
    check_data(trainer.network, trainer.loss, examples, trainer.metrics)
    if held_out is not None:
        expect_columns(held_out, trainer._columns | examples.columns)
        check_data(trainer.network, trainer.loss, held_out, trainer.metrics)
        if isinstance(held_out, Batches):
            held_out.rows()  # raises for an empty batch
    for part in (innermost(trainer.schedule), *trainer.callbacks):
        check_state(part, trainer)
    check_observers((trainer.schedule, *trainer.callbacks), trainer.metrics, measured, held_out is not None)
    now = (examples.n, batch_size)
    if trainer.position and now != trainer.position_of:
        raise ValueError(
            f"an epoch is unfinished, {trainer.position} steps into (rows, batch size) {trainer.position_of}; got {now}: "
            "continue with the same data and batch_size"
        )
    steps = examples.steps(batch_size, drop_last)
    check_smallest(trainer.training_step, examples, batch_size, drop_last)
    warn_early(trainer, epochs, steps)
    trainer._columns |= examples.columns
    return steps


def expect_columns(examples: Arrays | Batches, columns: Columns) -> None:
    """Raise a ValueError unless tables have these columns, of the training data. Batches are checked when they are read."""
    if isinstance(examples, Batches):
        examples.columns = dict(columns)
    else:
        check_columns(examples.name, examples.columns, "the training data", columns)


def check_batch(trainer: Any, X: Any, y: Any = None) -> Any:
    """X, a batch or the X of `predict`. ValueError unless tables have the columns of the training data."""
    check_columns("the batch" if y is not None else "the data", columns_of(X, y), "the training data", trainer._columns)
    return X


def expect_finite(X: Any) -> None:
    """Raise a ValueError that says where if X, of which `predict` made an error, has numbers that are not finite."""
    columns, several = columns_of(X), X if isinstance(X, tuple) else (X,)
    for label, x in zip(labels_of(several), several, strict=True):
        check_finite("the data", label, as_array(x, label), columns=columns.get(label, ()))


def expect_order(X: Any, y: Any, error: ValueError) -> None:
    """Raise a ValueError that says so if X and y, of which a step made `error`, look like each other's."""
    X_axes, y_axes = (len(getattr(x, "shape", ())) for x in (X, y))
    if X_axes == 1 and y_axes > 1 and type(error) is ValueError:
        raise ValueError(f"{error}; or are X and y swapped? step(X, y)") from error


def check_observers(observers: Iterable[Any], metrics: list[Metric], measured: bool, held_out: bool) -> None:
    """Raise unless everything that is monitored is measured, and every `path` can be written to.

    measured, held_out: whether the training set is measured, and whether there is a validation set.
    """
    names = ["loss", *(m.name for m in metrics)]
    columns = [f"training_{name}" for name in names if measured] + [f"test_{name}" for name in names if held_out]
    columns += ["gap"] * (measured and held_out)
    written: dict[str, Any] = {}  # by path, what of bpcore's own writes there
    for observer in observers:
        monitor = getattr(observer, "monitor", None)
        path = getattr(observer, "path", None)
        if monitor is not None:
            monitored(dict.fromkeys(columns, 0.0), text("monitor", monitor, "test_loss", of=observer))
            better = {m.name: m.higher for m in metrics}.get(monitor.partition("_")[2], False)
            if better not in (None, getattr(observer, "higher", None)) and hasattr(observer, "higher"):
                which = "higher" if better else "lower"
                warn(f"{observer!r}: {which} values of {monitor} are better; pass higher={better}")
        if path is not None:
            target = str(check_place(path))
            if is_ours(type(observer)) and target != os.devnull:
                if target in written:
                    raise ValueError(f"{observer!r} and {written[target]!r} would write to one file; give each a path of its own")
                written[target] = observer


def check_smallest(step: Step, examples: Arrays | Batches, batch_size: int, drop_last: bool) -> None:
    """Raise ValueError if a batch or a micro-batch of one row cannot be trained on, and there will be one.

    BatchNorm needs two numbers a feature. Of an iterable that is no list only the first batch is known.
    """
    inputs, _, _ = examples.first()
    rest = 0
    if isinstance(examples, Batches):
        sizes = examples.rows()
    else:
        full, rest = divmod(examples.n, batch_size)
        sizes = [batch_size] * (full > 0) + [rest] * (rest > 0 and not drop_last)
    least = min(sizes, key=lambda size: size // min(step.accumulate, size))
    if least // min(step.accumulate, least) > 1:
        return
    try:
        step.network(one_row(inputs), mode=Mode(training=True, seed=step.seed, saving=False))
    except ValueError as error:
        part = "a batch of 1 row" if least == 1 else f"micro-batches of 1 row, accumulate={step.accumulate} of {least} rows"
        repair = "give it more" if isinstance(examples, Batches) else "choose another batch_size"
        repair += ", or pass drop_last=True" * (0 < rest == least and not drop_last)
        raise ValueError(f"{examples.name} in batches would have {part}, and {error}, {repair}") from error


def one_row(inputs: tuple[Any, ...]) -> Any:
    """The first row of the inputs, as a network takes it."""
    rows = tuple(x[:1, ...] for x in inputs)
    return rows if len(rows) > 1 else rows[0]


def leave_best(trainer: Any) -> None:
    """Training goes on from the θ that the network has. Warn if a callback, taken away since, had gone back to a best one."""
    history = trainer.history
    if history.theta_epoch is not None:
        warn(
            f"training goes on from the θ of epoch {history.theta_epoch}, to which a callback had gone back, and the optimiser's "
            "vectors are those of the last step; keep that callback, or make a new Trainer"
        )
        history.theta_epoch = None


def warn_early(trainer: Any, epochs: int, steps_per_epoch: int | None) -> None:
    """Warn if `fit` has nothing to do, or goes on when the schedule is over."""
    done = trainer.epoch
    if trainer.finished:
        warn(f"training is over: {trainer.finished}. fit does nothing; set trainer.finished = None to go on")
    elif done >= epochs:
        warn(f"{done} epochs are done, and epochs={epochs} counts these: fit does nothing; pass epochs={done + epochs} for more")
    elif steps_per_epoch is not None and trainer._ends is not None:
        last = trainer.steps + (epochs - done) * steps_per_epoch - trainer.position
        if last > trainer._ends:
            warn_end(trainer, last)


def warn_end(trainer: Any, last: int) -> None:
    """Warn, once, that the run goes on to step `last` when the schedule is over."""
    schedule, length = trainer.schedule, trainer._ends
    warn(
        f"{schedule!r} is over after {length} steps, and the run goes on to step {last} with a factor of {schedule(last):.3g}; "
        "make it longer"
    )
    trainer._ends = None


def warn(message: str) -> None:
    """Warn the user, at the user's line."""
    warnings.warn(message, RuntimeWarning, stacklevel=users_level())
