"""Callbacks: objects that `fit` calls at its start, after each step, after each epoch, and at its end."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any, Protocol

from bpcore.arguments import number, whole
from bpcore.array import Array
from bpcore.network import Network
from bpcore.schedules import monitored
from bpcore.training.history import History, check_suffix

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "HistoryLog", "Progress", "Run"]


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
    it had not stopped.

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
        """Set the callback to the state that `state` returned."""


class Progress(Callback):
    """Shows a tqdm bar for each epoch, and prints a line of figures at its end.

    every: the bar shows the loss every `every` steps. lines: whether to print the lines; None prints them to a terminal only. The
    bar is shown on a terminal only.
    """

    def __init__(self, every: int = 20, lines: bool | None = None):
        self.every = whole("every", every)
        self.lines = lines
        self.bar: Any = None
        self.steps = 0  # taken since the bar was last updated
        self.updated = 0.0  # when the bar was last updated

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar": None}  # a copy opens a bar of its own

    def on_step(self, trainer: Run, J: Array) -> None:
        if self.bar is None:
            from tqdm import tqdm

            title = f"epoch {trainer.epoch + 1}/{trainer.epochs}"
            done = trainer.position - 1
            self.bar = tqdm(total=trainer.steps_per_epoch, initial=done, desc=title, leave=False, disable=None, unit="step")
        if not self.bar.disable and trainer.steps % self.every == 0:
            loss = f"{float(trainer.network.backend.to_host(J)):.4f}"
            self.bar.set_postfix(loss=loss, refresh=False)  # shown when the bar is drawn: ten times a second and at the end
        self.steps += 1
        if not self.bar.disable and time.monotonic() - self.updated >= 0.05:
            self.update()

    def update(self) -> None:
        """Add the steps taken since the last update to the bar."""
        self.bar.update(self.steps)
        self.steps = 0
        self.updated = time.monotonic()

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        self.close()
        if self.lines or (self.lines is None and sys.stderr.isatty()):
            figures = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float) and k not in ("lr", "seconds"))
            print(f"epoch {record['epoch']:>3}/{trainer.epochs}  {figures}", flush=True)

    def on_end(self, trainer: Run) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.update()
            self.bar.refresh()
            self.bar.close()
            self.bar = None


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a better `monitor`, and goes back to the best θ.

    monitor: the history column to watch. min_delta: the improvement that a better value exceeds. higher: whether larger is
    better, as for accuracy. Checkpoints store the best θ and the count.
    """

    def __init__(self, monitor: str = "test_loss", patience: int = 10, min_delta: float = 0.0, higher: bool = False):
        self.monitor: str = monitor
        self.patience = whole("patience", patience)
        self.min_delta = number("min_delta", min_delta, "finite", math.isfinite)
        self.higher = higher
        self.best = -math.inf if higher else math.inf
        self.best_epoch = 0
        self.waited = 0  # epochs since the best
        self.theta: Any = None  # the best θ, on the host

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        value = monitored(record, self.monitor)
        improvement = value - self.best if self.higher else self.best - value
        first = self.theta is None or (math.isnan(self.best) and not math.isnan(value))
        if improvement > self.min_delta or first:
            self.best, self.best_epoch, self.waited = value, record["epoch"], 0
            self.theta = trainer.network.backend.to_host(trainer.network.theta).copy()
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.network.theta[...] = trainer.network.backend.asarray(self.theta)
            trainer.finished = f"no better {self.monitor} than {self.best:.6g} of epoch {self.best_epoch} in {self.waited} epochs"

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        numbers = {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}
        return numbers, {} if self.theta is None else {"theta": self.theta}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.waited = numbers["best"], numbers["best_epoch"], numbers["waited"]
        self.theta = arrays.get("theta")


class Checkpoint(Callback):
    """Saves the trainer to `path` after each epoch; or every `every` steps; or after the epochs in which `best` improved.

    best: the history column to watch. higher: whether larger is better. With both `every` and `best` it saves at
    both. With `every` alone it also saves when the training is over.
    """

    last = True  # save when the other callbacks have seen the epoch

    def __init__(self, path: str | os.PathLike[str], every: int | None = None, best: str | None = None, higher: bool = False):
        self.path: str | os.PathLike[str] = path
        self.every = None if every is None else whole("every", every)
        self.best = self.monitor = best
        self.higher = higher
        self.value = -math.inf if higher else math.inf  # the best so far

    def on_step(self, trainer: Run, J: Array) -> None:
        if self.every is not None and trainer.steps % self.every == 0:
            trainer.save(self.path)

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        if self.best is not None:
            value = monitored(record, self.best)
            better = value > self.value if self.higher else value < self.value
            if better:
                self.value = value
                trainer.save(self.path)
        elif self.every is None or trainer.finished:
            trainer.save(self.path)

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"value": self.value}, {}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.value = numbers["value"]


class HistoryLog(Callback):
    """Writes the history to a file, .csv or .jsonl, after each epoch: all records, so that a resumed run's log is complete too.

    If epochs take less than a tenth of a second, it writes ten times a second and once more when `fit` ends.
    """

    def __init__(self, path: str | os.PathLike[str]):
        check_suffix(path)
        self.path: str | os.PathLike[str] = path
        self.written = -math.inf  # when the file was last written
        self.rows = 0  # records in the file

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
