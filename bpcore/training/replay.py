"""Replay of steps: on a GPU the launches of a step are recorded, and repeated as one launch. See bpcore/recordings.py.

The step's number and the learning rate lie on the device, and the same kernels do the same arithmetic: the results are those of
a normal step, bit for bit. Each shape of a batch has its own recording.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bpcore.array import Array
from bpcore.context import tf32
from bpcore.module import Mode
from bpcore.optimizers import Optimizer, has_own_update
from bpcore.recordings import LOCK, NotRecorded, Recording, Recordings, recordings_for
from bpcore.training.data import Batch
from bpcore.training.step import Look, Outcome, Step


def replay_for(step: Step, replay: bool | str) -> Replay | None:
    """The replay of a step, or None if it cannot be replayed; then a warning says why, see `recordings_for`."""
    own = has_own_update(step.optimizer)
    why = f"{type(step.optimizer).__name__} has an update of its own, which may need numbers on the host" if own else ""
    recordings = recordings_for("Steps", step.network.backend, replay, why)
    return None if recordings is None else Replay(step, recordings)


class Replay:
    """The replay of a step: the same call as `Step`, and the same results.

    The numbers that change from step to step, the step's number and lr, lie on the device.
    """

    def __init__(self, step: Step, recordings: Recordings):
        backend = step.network.backend
        self.step = step
        self.recordings = recordings
        self.number = backend.zeros((), "int64")
        self.lr = backend.zeros((), "float64")
        self.known: tuple[Any, Any] = (0, 0.0)  # the values of number and lr on the device
        self.optimizer: Optimizer | None = None
        self.rule: Optimizer | None = None  # it, with lr = 0

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle and copy: without its recordings
        return replayed, (self.step, self.recordings.replay)

    def __call__(self, batch: Batch, labels: Array | None, number: int, lr: float, look: Look | None = None) -> Outcome:
        """Take a step, as `Step` does, but call `look` after the update. A step that cannot be replayed runs normally."""
        step = self.step
        step.network.expect_layout()
        with LOCK:
            recording = self.recordings.find(flat(batch), self.held(), (step.network.module, step.loss), len(batch[0]))
            if recording is not None:
                if recording.outputs is not None and labels is not None:
                    step.loss.check_labels(labels, recording.outputs)
                try:
                    outcome = self.take(recording, batch, labels, number, lr)
                except NotRecorded as error:
                    outcome = step(batch, labels, number, lr, look)  # raises if the data are the cause: replay stays possible
                    self.recordings.refuse(recording, error)
                    return outcome
                if look is not None:
                    look(outcome, batch_of(recording.inputs or [], batch))
                return outcome
        return step(batch, labels, number, lr, look)

    def held(self) -> tuple[Any, ...]:
        """The values that a recording holds, beside the modules' attributes."""
        step = self.step
        if step.optimizer is not self.optimizer:
            self.optimizer, self.rule = step.optimizer, replace(step.optimizer, lr=0.0)
        interval = None if step.scaling is None else step.scaling.interval
        return step.loss, self.rule, step.clip_norm, step.accumulate, step.seed, interval, tf32.get()

    def take(self, recording: Recording, batch: Batch, labels: Array | None, number: int, lr: float) -> Outcome:
        """A step by its recording."""
        step = self.step
        for scalar, value, old in zip((self.number, self.lr), (number, lr), self.known, strict=True):
            if value != old:
                scalar[...] = value
        self.known = (number, lr)

        def function(copies: list[Array]) -> tuple[Array, int, Any]:
            outcome = step(batch_of(copies, batch), labels, self.number, self.lr)
            return outcome.J, outcome.outputs, step.network.scratch

        J, recording.outputs, _ = recording(flat(batch), function)
        return Outcome(recording.copied(J), 0.0, Mode(True, step.seed, number), recording.outputs)


def replayed(step: Step, replay: bool | str) -> Replay:
    """The replay of a step, without recordings yet."""
    return Replay(step, Recordings("Steps", step.network.backend, replay))


def flat(batch: Batch) -> list[Array]:
    """The arrays of a batch."""
    inputs, y, weights = batch
    return [*inputs, y, *([] if weights is None else [weights])]


def batch_of(arrays: list[Array], like: Batch) -> Batch:
    """The arrays of `flat` as a batch again."""
    n = len(like[0])
    return tuple(arrays[:n]), arrays[n], None if like[2] is None else arrays[n + 1]
