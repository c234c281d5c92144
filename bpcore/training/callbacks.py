"""Callbacks: what is called at the start, after each step, after each epoch, and at the end of `fit`."""

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
    """What a callback may use of the trainer that calls it, for annotations: `def on_end(self, trainer: bp.Run)`.

    Only `finished` is to be assigned; it says why training is over, and stops `fit` for good after the epoch under way.
    """

    finished: str | None

    @property
    def network(self) -> Network:
        """The network that is trained; `network.theta[...] = x` replaces θ."""
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
        """The steps done in the epoch under way."""
        ...

    @property
    def epochs(self) -> int:
        """How many epochs `fit` trains for in all."""
        ...

    @property
    def steps_per_epoch(self) -> int | None:
        """The steps of an epoch; None where the data do not say how many batches they are."""
        ...

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint of the run."""
        ...


class Callback:
    """What `fit` calls as it goes on; the methods here do nothing. To write a callback, subclass this and override some.

    monitor: the history column to watch; path: the file to write; `fit` checks both before it starts. last: whether this callback
    is called after those that are not last, whatever the order in which they were passed.

    A callback that keeps numbers or arrays from epoch to epoch defines `state` and `restore`, so that a resumed run goes on as
    the uninterrupted one would.

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
        """`fit` begins, or goes on after a stop."""

    def on_step(self, trainer: Run, J: Array) -> None:
        """A step was taken. J: the loss before it, a scalar on the device; looking at its value makes the host wait."""

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        """An epoch ended. record: its measurements by column, the same dictionary as `trainer.history[-1]`."""

    def on_end(self, trainer: Run) -> None:
        """`fit` ends, also by Ctrl-C or an error."""

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint must keep: (numbers and strings by name, NumPy arrays by name)."""
        return {}, {}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Go on from what `state` returned."""


class Progress(Callback):
    """A tqdm bar for each epoch, and a line of figures at the epoch's end.

    every: the bar shows the loss every `every` steps. lines: whether to print the lines; None prints them to a terminal only. The
    bar is shown on a terminal only.
    """

    def __init__(self, every: int = 20, lines: bool | None = None):
        self.every = whole("every", every)
        self.lines = lines
        self.bar: Any = None
        self.steps = 0  # taken since the bar was last updated
        self.updated = 0.0  # when the bar was last updated

    def on_step(self, trainer: Run, J: Array) -> None:
        if self.bar is None:
            from tqdm import tqdm

            title = f"epoch {trainer.epoch + 1}/{trainer.epochs}"
            done = trainer.position - 1
            self.bar = tqdm(total=trainer.steps_per_epoch, initial=done, desc=title, leave=False, disable=None, unit="step")
        if not self.bar.disable and trainer.steps % self.every == 0:
            loss = f"{float(trainer.network.backend.to_host(J)):.4f}"
            self.bar.set_postfix(loss=loss, refresh=False)  # drawn with the bar, ten times a second and at the end
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
    """Stop after `patience` epochs without a better `monitor`, and go back to the best θ.

    monitor: the history column to watch. min_delta: it is better when it improves by more than this. higher: whether larger is
    better, as for accuracy. Checkpoints keep the best θ and the count.
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
    """Save the trainer to `path` after each epoch; or every `every` steps; or after the epochs in which `best` improved.

    best: the history column to watch. higher: whether larger is better. With both `every` and `best` it saves at both; with
    `every` alone also when training is over.
    """

    last = True  # the other callbacks have seen the epoch when it is saved

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
            if value > self.value if self.higher else value < self.value:
                self.value = value
                trainer.save(self.path)
        elif self.every is None or trainer.finished:
            trainer.save(self.path)

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"value": self.value}, {}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.value = numbers["value"]


class HistoryLog(Callback):
    """Writes the history to a file, .csv or .jsonl, after each epoch. It writes all records, so a resumed run's log is whole too.

    Where epochs take less than a tenth of a second, it writes ten times a second and once more when `fit` ends.
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
