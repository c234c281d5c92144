"""Replay of steps: the launches of a step on a GPU are recorded, and repeated as one launch.

A step of a small network waits for Python, not for the GPU. A replayed step copies the batch to where the recording reads it,
and makes one launch. The step's number and the learning rate lie on the device, and the same kernels do the same arithmetic:
the results are those of a normal step, bit for bit.

Each shape of a batch has its own recording, with its own memory: some steps run normally, then one is recorded.
"""

from __future__ import annotations

import warnings
from typing import Any

from bpcore.array import Array
from bpcore.context import recording
from bpcore.module import Mode
from bpcore.optimizers import Optimizer
from bpcore.primitive import SETTING
from bpcore.training.data import Batch
from bpcore.training.step import Look, Outcome, Step

RECORDINGS = 8  # at most; batches of further shapes run normally
RUNS = 5  # normal steps before a recording, at most: until a step needs no new memory


def replay_for(step: Step) -> Replay | None:
    """The replay of a step, or None and a warning if it cannot be replayed."""
    backend, update = step.network.backend, type(step.optimizer).update
    if SETTING not in ("on", "plain"):
        why = f"BPCORE_KERNELS={SETTING} switches kernels off, or checks their results"
    elif backend.graph is None:
        why = f"backend {backend.name!r} records nothing; recording needs a GPU, backend='cupy' and the folder bpcore/kernels"
    elif update.__module__ != Optimizer.__module__:
        why = f"{type(step.optimizer).__name__} has an update of its own, which may need numbers on the host"
    else:
        return Replay(step)
    warn(why)
    return None


def warn(why: str) -> None:
    """Warn that steps are not replayed, and why."""
    warnings.warn(f"replay=True does nothing: {why}. Steps run one kernel at a time", RuntimeWarning, stacklevel=4)


class NotRecorded(RuntimeError):
    """A step could not be recorded, and why. Nothing of it has run."""


class Recording:
    """The recording of a step for batches of one shape: its own copy of the batch, and the graph."""

    def __init__(self, step: Step, batch: Batch):
        graph: Any = step.network.backend.graph
        self.step = step
        self.graph = graph()
        inputs, y, weights = batch
        self.batch = tuple(map(self.copied, inputs)), self.copied(y), None if weights is None else self.copied(weights)
        self.J: Array | None = None  # where the recorded step writes J
        self.outputs = 1  # of an example
        self.runs = 0  # normal steps so far

    def copied(self, x: Array) -> Array:
        """A copy of x in its own memory."""
        copy: Array = self.step.network.backend.xp.asarray(x, copy=True)
        return copy

    def __call__(self, batch: Batch, labels: Array | None, number: Array, lr: Array) -> Array:
        """Take one step and return J. It runs normally until the graph is settled; then it is recorded."""
        if self.J is not None and labels is not None:
            self.step.loss.check_labels(labels, self.outputs)
        for target, x in zip(flat(self.batch), flat(batch), strict=True):
            target[...] = x

        def take() -> Outcome:
            return self.step(self.batch, labels, number, lr)

        if self.J is None and not self.graph.settled and self.runs < RUNS:
            self.runs += 1
            return self.copied(self.graph.run(take).J)
        if self.J is None:
            token = recording.set(True)
            try:
                outcome = self.graph.capture(take)
            except Exception as error:  # a capture runs nothing: the step can still run normally
                raise NotRecorded(f"{type(error).__name__}: {error}") from error
            finally:
                recording.reset(token)
            self.J, self.outputs = outcome.J, outcome.outputs
        self.graph.launch()
        return self.copied(self.J)


class Replay:
    """The replay of a step: the same call as `Step`, and the same results. `recordings` has one for each shape of a batch.

    The numbers that change from step to step, the step's number and lr, lie on the device.
    """

    def __init__(self, step: Step):
        backend = step.network.backend
        self.step = step
        self.number = backend.zeros((), "int64")
        self.lr = backend.zeros((), "float64")
        self.known: tuple[Any, Any] = (0, 0.0)  # the values of number and lr on the device
        self.recordings: dict[Any, Recording] = {}
        self.why = ""  # why steps cannot be replayed; empty if they can
        self.warned = False

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle and copy: without its recordings
        return Replay, (self.step,)

    def __call__(self, batch: Batch, labels: Array | None, number: int, lr: float, look: Look | None = None) -> Outcome:
        """Take a step, as `Step` does, but call `look` after the update. A step that cannot be replayed runs normally."""
        if self.why and not self.warned:  # before anything of a step runs, since a warning may be an error
            self.warned = True
            warn(self.why)
        recorded = None if self.why else self.recording(batch)
        if recorded is None:
            return self.step(batch, labels, number, lr, look)
        for scalar, value, old in zip((self.number, self.lr), (number, lr), self.known, strict=True):
            if value != old:
                scalar[...] = value
        self.known = (number, lr)
        try:
            J = recorded(batch, labels, self.number, self.lr)
        except NotRecorded as error:
            outcome = self.step(batch, labels, number, lr, look)  # raises if the data are the cause: replay stays possible then
            self.why = str(error)
            self.recordings.clear()
            return outcome
        outcome = Outcome(J, 0.0, Mode(True, self.step.seed, number), recorded.outputs)
        if look is not None:
            look(outcome, recorded.batch)
        return outcome

    def recording(self, batch: Batch) -> Recording | None:
        """The recording for batches of this shape and the present settings of the step; None if there are too many."""
        step = self.step
        shapes = tuple((tuple(x.shape), x.dtype) for x in flat(batch))
        key = len(batch[0]), shapes, step.loss, step.optimizer, step.clip_norm, step.accumulate, step.seed
        if key not in self.recordings and len(self.recordings) < RECORDINGS:
            self.recordings[key] = Recording(step, batch)
        return self.recordings.get(key)


def flat(batch: Batch) -> list[Array]:
    """The arrays of a batch."""
    inputs, y, weights = batch
    return [*inputs, y, *([] if weights is None else [weights])]
