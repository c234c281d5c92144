"""Callbacks: objects that `fit` calls at its start, after each step, after each epoch, and at its end."""

from __future__ import annotations

import copy
import math
import os
import time
from typing import Any, Protocol

from bpcore import arguments
from bpcore.arguments import given, number, whole
from bpcore.array import Array
from bpcore.network import Network
from bpcore.schedules import improved, monitored
from bpcore.training.history import History, check_suffix

__all__ = ["Callback", "Checkpoint", "HistoryLog", "Run"]


class Run(Protocol):
    """The attributes of a trainer that a callback may use, for annotations: `def on_end(self, trainer: bp.Run)`.

    Assign only `finished`: a text that says why training is over. `fit` then stops for good at the end of the current epoch.
    """

    finished: str | None

    @property
    def network(self) -> Network:
        """The trained network; `network.theta[...] = x` replaces θ."""
        ...

    @property
    def history(self) -> History:
        """The records of the epochs done so far."""
        ...

    @property
    def steps(self) -> int:
        """The steps done so far."""
        ...

    @property
    def epoch(self) -> int:
        """The epochs done so far."""
        ...

    @property
    def position(self) -> int:
        """The steps done in the current epoch."""
        ...

    @property
    def epochs(self) -> int:
        """The number of epochs at which `fit` ends."""
        ...

    @property
    def steps_per_epoch(self) -> int | None:
        """The steps of an epoch; None if the number of batches is not known."""
        ...

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        ...

    def lr_of(self, step: int) -> float:
        """The learning rate of a step, 0 the first: `lr_of(steps - 1)` is that of the last one."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint of the run."""
        ...


class Callback:
    """An object whose methods `fit` calls. To write a callback, subclass this and override some; here they do nothing.

    monitor: the history column that the callback reads, path: the file that it writes, or None; `fit` checks both before it
    starts. last: True has this callback called after all that are not last; otherwise the order is that of the Trainer's
    argument.

    Each method gets the trainer; see bp.Run for the attributes to use. `trainer.finished = "why"` stops the training. A callback
    that stores numbers or arrays from epoch to epoch defines `state` and `restore`, so that a resumed run continues exactly as if
    it had not stopped, and a second trainer that gets the callback starts it afresh.

    >>> class StopBelow(bp.Callback):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...     def on_epoch(self, trainer, record):
    ...         if record["training_loss"] < self.loss:
    ...             trainer.finished = f"the training loss fell below {self.loss}"
    >>> net = bp.Network(bp.Linear(2, 1))
    >>> trainer = bp.Trainer(net, bp.SquaredError(), bp.SGD(0.1), callbacks=[StopBelow(0.1)])
    >>> len(trainer.fit(([[1.0, 2.0]], [[3.0]]), epochs=100)) < 100
    True
    """

    last = False
    monitor: str | None = None
    path: str | os.PathLike[str] | None = None

    def begin(self, trainer: Run) -> None:
        """A new trainer takes this callback: forget what it stored for earlier ones.

        By default, `restore` gets the state that the callback had when its first trainer took it.
        """
        if type(self).restore is Callback.restore:
            return
        if "_first" not in self.__dict__:
            attributes = dict(vars(self))
            try:
                self._first: Any = copy.deepcopy(self.state(trainer))
            except Exception:  # it has a state only in training: then its attributes come back
                self._first = attributes
        elif isinstance(self._first, dict):
            first = self._first
            vars(self).clear()
            vars(self).update(first, _first=first)
        else:
            self.restore(trainer, *copy.deepcopy(self._first))

    def on_start(self, trainer: Run) -> None:
        """`fit` starts, for the first time or again."""

    def on_step(self, trainer: Run, J: Array) -> None:
        """A step is done. J: the loss of its batch before the update, a scalar on the device; float(J) makes the host wait."""

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        """An epoch is done. record: `trainer.history[-1]`, its measurements by column: epoch, steps, training_loss, ..."""

    def on_end(self, trainer: Run) -> None:
        """`fit` ends, even by Ctrl-C or an error."""

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint stores of the callback: (numbers and strings by name, NumPy arrays by name)."""
        return {}, {}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Set the callback to the state that `state` returned. An error here leaves the trainer as it was."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({given(self)})"


class Checkpoint(Callback):
    """Saves the trainer to `path` after each epoch; or every `every` steps; or after the epochs in which `best` improved.

    best: the history column to watch. higher: whether larger is better. With both `every` and `best` it saves at
    both. With `every` alone it also saves when the training is over. Without `best` the last file holds the best θ if
    EarlyStopping has gone back to it.
    """

    last = True  # save when the other callbacks have seen the epoch

    def __init__(self, path: str | os.PathLike[str], every: int | None = None, best: str | None = None, higher: bool = False):
        self.path: str | os.PathLike[str] = arguments.path("path", path)
        self.every = None if every is None else whole("every", every)
        self.best = self.monitor = None if best is None else arguments.text("best", best, "test_loss")
        self.higher = arguments.flag("higher", higher)
        self.value = -math.inf if higher else math.inf  # the best so far

    def begin(self, trainer: Run) -> None:
        self.value = -math.inf if self.higher else math.inf

    def on_step(self, trainer: Run, J: Array) -> None:
        if self.every is not None and trainer.steps % self.every == 0:
            trainer.save(self.path)

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        if self.best is not None:
            value = monitored(record, self.best)
            if improved(value, self.value, 0.0, self.higher):
                self.value = value
                trainer.save(self.path)
        elif self.every is None or trainer.finished:
            trainer.save(self.path)

    def on_end(self, trainer: Run) -> None:
        """Save again if the network has gone back to its best θ since the last epoch was saved."""
        done = trainer.epoch >= trainer.epochs and trainer.position == 0 and not trainer.finished
        if self.best is None and done and trainer.history.theta_epoch is not None:
            trainer.save(self.path)

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        return {} if self.best is None else {"value": self.value}, {}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        if self.best is not None:
            self.value = number("value", numbers["value"], "not NaN", lambda value: not math.isnan(value))


class HistoryLog(Callback):
    """Writes the history to a file, .csv or .jsonl, after each epoch: all records, so that a resumed run's log is complete too.

    If epochs take less than a tenth of a second, it writes ten times a second and once more when `fit` ends.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path: str | os.PathLike[str] = arguments.path("path", path)
        check_suffix(path)

    def on_start(self, trainer: Run) -> None:
        self.written = -math.inf  # when the file was last written
        self.rows = 0  # records written to it

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        if time.monotonic() - self.written >= 0.1:
            self.write(trainer)

    def on_end(self, trainer: Run) -> None:
        if len(trainer.history) != self.rows:
            self.write(trainer)

    def write(self, trainer: Run) -> None:
        """Write all records."""
        trainer.history.write(self.path)
        self.written = time.monotonic()
        self.rows = len(trainer.history)
