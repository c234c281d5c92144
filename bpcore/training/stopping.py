"""Early stopping, and the best θ at the end."""

from __future__ import annotations

import math
from typing import Any

from bpcore import arguments
from bpcore.schedules import improved, monitored
from bpcore.training.callbacks import Callback, Run

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a better `monitor`. When `fit` ends, however it ends, the network has the best θ.

    monitor: the history column to watch. min_delta: the improvement that a better value exceeds, >= 0. higher: whether larger is
    better, as for accuracy. restore_best: False leaves the last θ in the network.

    Afterwards `best` is the best value, `best_epoch` its epoch, and `history.theta_epoch` that epoch too if θ went back to it. To
    call `fit` again continues from the last θ, which the optimiser's vectors belong to, unless you have assigned another θ. So
    does a resumed checkpoint: it stores the best θ and the count, and after the end of `fit` also the last θ.
    """

    def __init__(
        self,
        monitor: str = "test_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        higher: bool = False,
        restore_best: bool = True,
    ):
        self.monitor: str = arguments.text("monitor", monitor, "test_loss")
        self.patience = arguments.whole("patience", patience)
        self.min_delta = arguments.bounded("min_delta", min_delta, 0.0)
        self.higher = arguments.flag("higher", higher)
        self.restore_best = arguments.flag("restore_best", restore_best)
        self._clear()

    def _clear(self) -> None:
        """Forget everything."""
        self.best = -math.inf if self.higher else math.inf
        self.best_epoch = 0
        self.waited = 0  # epochs since the best
        self.theta: Any = None  # the best θ, on the host
        self.last_theta: Any = None  # the last θ, on the host, while the network has the best one

    def begin(self, trainer: Run) -> None:
        self._clear()

    def on_start(self, trainer: Run) -> None:
        if self.last_theta is not None:
            backend, theta = trainer.network.backend, trainer.network.theta
            if (backend.to_host(theta) == self.theta).all():
                theta[...] = backend.asarray(self.last_theta)
            self.last_theta = trainer.history.theta_epoch = None
        if self.waited >= self.patience and trainer.finished is None:  # it has stopped this run, and somebody goes on
            self.waited = 0

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        value = monitored(record, self.monitor)
        first = self.theta is None or math.isnan(self.best)  # NaN: from a checkpoint of an older version
        if not math.isnan(value) and (first or improved(value, self.best, self.min_delta, self.higher)):
            self.best, self.best_epoch, self.waited = value, record["epoch"], 0
            self.theta = trainer.network.backend.to_host(trainer.network.theta).copy()
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.go_back(trainer)  # now: a Checkpoint that is called next saves the best θ
            better = f"no better {self.monitor} than {self.best:.6g} of epoch {self.best_epoch}"
            trainer.finished = f"{better if self.theta is not None else f'{self.monitor} was NaN'} in {self.waited} epochs"

    def on_end(self, trainer: Run) -> None:
        self.go_back(trainer)

    def go_back(self, trainer: Run) -> None:
        """Set the network to the best θ, unless it has it, or another callback has gone back before."""
        backend, theta = trainer.network.backend, trainer.network.theta
        if not self.restore_best or self.theta is None or trainer.history.theta_epoch is not None:
            return
        last = backend.to_host(theta).copy()
        if (last != self.theta).any():
            theta[...] = backend.asarray(self.theta)
            self.last_theta, trainer.history.theta_epoch = last, self.best_epoch

    def state(self, trainer: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        numbers = {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}
        arrays = {"theta": self.theta, "last_theta": self.last_theta}
        return numbers, {name: array for name, array in arrays.items() if array is not None}

    def restore(self, trainer: Run, numbers: dict[str, Any], arrays: dict[str, Any]) -> None:
        best = arguments.number("best", numbers["best"], "as `state` gives it", lambda best: True)
        best_epoch = arguments.whole("best_epoch", numbers["best_epoch"], least=0)
        waited = arguments.whole("waited", numbers["waited"], least=0)
        expected = tuple(trainer.network.theta.shape), trainer.network.dtype
        for name, array in arrays.items():
            if (array.shape, str(array.dtype)) != expected:
                got = f"{array.shape}, {array.dtype}"
                raise ValueError(f"expected {name} of shape and dtype {expected[0]}, {expected[1]}, got {got}")
        if best_epoch and "theta" not in arrays:
            raise ValueError(f"the θ of its best epoch, {best_epoch}, is missing")
        self.best, self.best_epoch, self.waited = best, best_epoch, waited
        self.theta, self.last_theta = arrays.get("theta"), arrays.get("last_theta")
        if self.last_theta is not None:
            trainer.history.theta_epoch = best_epoch
