"""Curves for TensorBoard, written by the package tensorboardX."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bpcore import arguments
from bpcore.array import Array
from bpcore.packages import imported, pip
from bpcore.training.callbacks import Callback, Run

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes curves to a folder that `tensorboard --logdir folder` shows, while a run goes on.

    Each column of the history is a curve over epochs, "epoch/test_loss"; J of a batch and the learning rate are curves over
    steps, "step/J" and "step/lr", with a point every `every` steps, at which the host waits for J. A resumed run goes on in the
    same folder: what an earlier process wrote beyond the resumed step is hidden.

    Needs tensorboardX, which needs neither TensorBoard nor PyTorch to write. Raises RuntimeError if it is missing and, when `fit`
    starts, OSError if the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 20):
        self.folder = os.fspath(arguments.path("folder", folder))
        self.every = arguments.whole("every", every)
        self.writer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "writer": None}  # a copy opens its own

    def on_start(self, trainer: Run) -> None:
        tensorboardx = imported("tensorboardX", "TensorBoard needs tensorboardX", pip("tensorboard"))
        self.close()
        with self._writing():
            os.makedirs(self.folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):  # raises now, and not in a thread of the writer
                pass
        own = f".{time.time_ns()}.{os.getpid()}"  # a name of seconds alone could replace a file just closed
        # purge_step hides points of this step and later ones: an epoch's point lies at its last step, which is done
        with self._writing():
            self.writer = tensorboardx.SummaryWriter(self.folder, purge_step=trainer.steps + 1, flush_secs=5, filename_suffix=own)

    def on_step(self, trainer: Run, J: Array) -> None:
        if trainer.steps % self.every == 0:
            self._add(trainer, "step/J", float(trainer.network.backend.to_host(J)))
            self._add(trainer, "step/lr", trainer.lr_of(trainer.steps - 1))

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "steps" and isinstance(value, (int, float)):
                self._add(trainer, f"epoch/{name}", value)

    def on_end(self, trainer: Run) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left, and close the file."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with self._writing():
                writer.close()

    def _add(self, trainer: Run, curve: str, value: float) -> None:
        with self._writing():
            self.writer.add_scalar(curve, value, trainer.steps)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The system's errors say which folder, and the repair."""
        try:
            yield
        except OSError as error:
            why = f"cannot write to {self.folder}: {error.strerror or error}; free space there, or choose another folder"
            raise OSError(error.errno or errno.EIO, why) from error
