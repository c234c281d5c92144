"""Callbacks: told of the start, of each step, of each epoch and of the end of `fit`."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

from bpcore.module import Array
from bpcore.schedules import monitored, whole
from bpcore.training.history import check_suffix


class Callback:
    """What callbacks share: they do nothing, and have no state. Those with `last` are told after the others.

    monitor, path: the record's entry that is looked at, and the file that is written; `fit` begins by seeing to both.
    """

    last = False
    monitor: str | None = None
    path: str | os.PathLike[str] | None = None

    def on_start(self, trainer: Any) -> None:
        """`fit` begins, or goes on."""

    def on_step(self, trainer: Any, J: Array) -> None:
        """A step was taken; J lies on the device: looking at it makes the host wait."""

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        """An epoch ended and was measured."""

    def on_end(self, trainer: Any) -> None:
        """`fit` ends, whichever way."""

    def state(self, trainer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(numbers, host arrays) that a checkpoint must keep."""
        return {}, {}

    def restore(self, trainer: Any, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Take what `state` gave."""


class Progress(Callback):
    """A tqdm bar for each epoch with the loss every `every` steps, and a line of figures at its end.

    Silent where the output is not a terminal; with lines=True the lines are printed there too, with False nowhere.
    """

    def __init__(self, every: int = 20, lines: bool | None = None):
        whole("every", every)
        self.every, self.lines = every, lines
        self.bar: Any = None
        self.steps, self.told = 0, 0.0  # that the bar was not told of yet, and when it was

    def on_step(self, trainer: Any, J: Array) -> None:
        if self.bar is None:
            from tqdm import tqdm

            title = f"epoch {trainer.epoch + 1}/{trainer.epochs}"
            start = trainer.position - 1
            self.bar = tqdm(total=trainer.steps_per_epoch, initial=start, desc=title, leave=False, disable=None, unit="step")
        if not self.bar.disable and trainer.steps % self.every == 0:
            loss = f"{float(trainer.network.backend.to_host(J)):.4f}"
            self.bar.set_postfix(loss=loss, refresh=False)  # drawn with the bar: ten times a second, and at the end
        self.steps += 1
        if not self.bar.disable and time.monotonic() - self.told >= 0.05:
            self.tell()

    def tell(self) -> None:
        """Tell the bar of the steps."""
        self.bar.update(self.steps)
        self.steps, self.told = 0, time.monotonic()

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        self.close()
        if self.lines or (self.lines is None and sys.stderr.isatty()):
            figures = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float) and k not in ("lr", "seconds"))
            print(f"epoch {record['epoch']:>3}/{trainer.epochs}  {figures}", flush=True)

    def on_end(self, trainer: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.tell()
            self.bar.refresh()
            self.bar.close()
            self.bar = None


class EarlyStopping(Callback):
    """Stop after `patience` epochs in which `monitor` did not improve by `min_delta`, and go back to the best θ.

    higher: whether more is better, as for accuracy. The best θ and the count are in checkpoints.
    """

    def __init__(self, monitor: str = "test_loss", patience: int = 10, min_delta: float = 0.0, higher: bool = False):
        whole("patience", patience)
        self.monitor: str = monitor
        self.patience, self.min_delta, self.higher = patience, min_delta, higher
        self.best, self.best_epoch, self.waited = -math.inf if higher else math.inf, 0, 0
        self.theta: Any = None

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        value = monitored(record, self.monitor)
        better = value - self.best if self.higher else self.best - value
        first = self.theta is None or (math.isnan(self.best) and not math.isnan(value))
        if better > self.min_delta or first:
            self.best, self.best_epoch, self.waited = value, record["epoch"], 0
            self.theta = trainer.network.backend.to_host(trainer.network.theta).copy()
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.network.theta[...] = trainer.network.backend.asarray(self.theta)
            trainer.finished = f"no better {self.monitor} than {self.best:.6g} of epoch {self.best_epoch} in {self.waited} epochs"

    def state(self, trainer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        numbers = {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}
        return numbers, {} if self.theta is None else {"theta": self.theta}

    def restore(self, trainer: Any, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.waited = numbers["best"], numbers["best_epoch"], numbers["waited"]
        self.theta = arrays.get("theta")


class Checkpoint(Callback):
    """Save the trainer to `path`: every `every` steps; where `best` names a record's entry, when it improved; else each epoch.

    higher: whether more of `best` is better.
    """

    last = True  # what it saves has seen the epoch

    def __init__(self, path: str | os.PathLike[str], every: int | None = None, best: str | None = None, higher: bool = False):
        if every is not None:
            whole("every", every)
        self.path, self.every, self.best, self.higher = path, every, best, higher
        self.monitor = best
        self.value = -math.inf if higher else math.inf

    def on_step(self, trainer: Any, J: Array) -> None:
        if self.every is not None and trainer.steps % self.every == 0:
            trainer.save(self.path)

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        if self.best is not None:
            value = monitored(record, self.best)
            if value > self.value if self.higher else value < self.value:
                self.value = value
                trainer.save(self.path)
        elif self.every is None or trainer.finished:
            trainer.save(self.path)

    def state(self, trainer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"value": self.value}, {}

    def restore(self, trainer: Any, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.value = numbers["value"]


class HistoryLog(Callback):
    """The history as a file, .csv or .jsonl, written anew at the ends of epochs: a resumed run's log is whole too.

    Where epochs end more than ten times a second it is written so often, and once more when `fit` ends.
    """

    def __init__(self, path: str | os.PathLike[str]):
        check_suffix(path)
        self.path = path
        self.written, self.rows = -math.inf, 0  # when, and how much

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        if time.monotonic() - self.written >= 0.1:
            self.write(trainer)

    def on_end(self, trainer: Any) -> None:
        if len(trainer.history) != self.rows:
            self.write(trainer)

    def write(self, trainer: Any) -> None:
        """Write all there is."""
        trainer.history.write(self.path)
        self.written, self.rows = time.monotonic(), len(trainer.history)
