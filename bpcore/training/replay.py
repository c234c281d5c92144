"""Steps replayed: what a step launches on a GPU is recorded, and launched again in one go.

A step of a small network waits for Python, not for the GPU. Recorded, it is a copy of the batch to where the recorded step
reads it, and one launch. The step's number and the learning rate lie on the device, and the same kernels do the same
arithmetic, so that the results are those of a step that is not recorded, bit for bit.

Each shape of a batch has a recording, with memory of its own: some steps run as they are, then one is recorded.
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

RECORDINGS = 8  # shapes of batches; others run as they are
RUNS = 5  # steps of a shape at most until one needs no new memory


def replay_for(step: Step) -> Replay | None:
    """The replay of a step, or None and a warning where there cannot be one."""
    backend, update = step.network.backend, type(step.optimizer).update
    if SETTING not in ("on", "plain"):
        why = f"BPCORE_KERNELS={SETTING} leaves no kernels, or looks at what they give"
    elif backend.graph is None:
        why = f"backend {backend.name!r} records nothing; it takes a GPU, backend='cupy' and bpcore/kernels"
    elif update.__module__ != Optimizer.__module__:
        why = f"{type(step.optimizer).__name__} has an update of its own, which may want numbers of the host"
    else:
        return Replay(step)
    warn(why)
    return None


def warn(why: str) -> None:
    """Say that and why steps are not replayed."""
    warnings.warn(f"replay=True does nothing: {why}. Steps run one kernel at a time", RuntimeWarning, stacklevel=4)


class NotRecorded(RuntimeError):
    """Why a step could not be recorded; nothing was run."""


class Recording:
    """The step for batches of one shape: where it reads the batch, and its graph."""

    def __init__(self, step: Step, batch: Batch):
        graph: Any = step.network.backend.graph
        self.step = step
        self.graph = graph()
        inputs, y, weights = batch
        self.batch = tuple(map(self.copied, inputs)), self.copied(y), None if weights is None else self.copied(weights)
        self.J: Array | None = None  # where a recorded step leaves it
        self.outputs = 1
        self.runs = 0

    def copied(self, x: Array) -> Array:
        """A copy of x, in memory that is not shared with anything."""
        copy: Array = self.step.network.backend.xp.asarray(x, copy=True)
        return copy

    def __call__(self, batch: Batch, labels: Array | None, number: Array, lr: Array) -> Array:
        """J of one step, which runs as it is until the graph is settled, and is recorded then."""
        if self.J is not None and labels is not None:
            self.step.loss.check_labels(labels, self.outputs)
        for target, x in zip(flat(self.batch), flat(batch), strict=True):
            target[...] = x

        def whole() -> Outcome:
            return self.step(self.batch, labels, number, lr)

        if self.J is None and not self.graph.settled and self.runs < RUNS:
            self.runs += 1
            return self.copied(self.graph.run(whole).J)
        if self.J is None:
            token = recording.set(True)
            try:
                outcome = self.graph.capture(whole)
            except Exception as error:  # a capture runs nothing: the step can be made as it is
                raise NotRecorded(f"{type(error).__name__}: {error}") from error
            finally:
                recording.reset(token)
            self.J, self.outputs = outcome.J, outcome.outputs
        self.graph.launch()
        return self.copied(self.J)


class Replay:
    """A step, replayed: the same call, and the same results. `recordings` are those of each shape of a batch.

    The numbers that differ from step to step, the step's number and lr, lie on the device.
    """

    def __init__(self, step: Step):
        backend = step.network.backend
        self.step = step
        self.number = backend.zeros((), "int64")
        self.lr = backend.zeros((), "float64")
        self.known: tuple[Any, Any] = (0, 0.0)  # what number and lr are
        self.recordings: dict[Any, Recording] = {}
        self.why = ""  # it cannot be done
        self.told = False

    def __call__(self, batch: Batch, labels: Array | None, number: int, lr: float, look: Look | None = None) -> Outcome:
        """As `Step`'s, but `look` is called after the update. Runs the step as it is where it cannot be replayed."""
        if self.why and not self.told:  # now, when nothing of a step was run
            self.told = True
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
            outcome = self.step(batch, labels, number, lr, look)  # raises where the data are to blame: replay goes on then
            self.why = str(error)
            self.recordings.clear()
            return outcome
        outcome = Outcome(J, 0.0, Mode(True, self.step.seed, number), recorded.outputs)
        if look is not None:
            look(outcome, recorded.batch)
        return outcome

    def recording(self, batch: Batch) -> Recording | None:
        """The recording for batches like this, of a step as it is; None where there are too many."""
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
