"""Steps replayed: what a step launches on a GPU is recorded, and launched again in one go.

A step of a small network waits for Python, not for the GPU. Recorded, it is a copy of the batch to where the recorded step
reads it, and one launch. The step's number and the learning rate lie on the device, and the same kernels do the same
arithmetic, so that the results are those of a step that is not recorded, bit for bit.

Each shape of a batch has a recording, with memory of its own: some steps run as they are, then one is recorded.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from bpcore.context import recording
from bpcore.functional.primitive import SETTING, twins_folder
from bpcore.module import Array, Mode
from bpcore.optimizers import Optimizer
from bpcore.training.data import Batch
from bpcore.training.step import take_step

if TYPE_CHECKING:
    from bpcore.training.trainer import Trainer

RECORDINGS = 8  # shapes of batches; others run as they are
RUNS = 5  # steps of a shape at most until one needs no new memory


def replay_for(trainer: Trainer) -> Replay | None:
    """The replay of a trainer's steps, or None and a warning where there cannot be one."""
    graph, update = graph_of(trainer.network.theta), type(trainer.optimizer).update
    if SETTING not in ("on", "plain"):
        why = f"BPCORE_KERNELS={SETTING} leaves no kernels, or looks at what they give"
    elif graph is None:
        why = f"backend {trainer.network.backend.name!r} records nothing; it takes a GPU, backend='cupy' and bpcore/kernels"
    elif update.__module__ != Optimizer.__module__:
        why = f"{type(trainer.optimizer).__name__} has an update of its own, which may want numbers of the host"
    else:
        return Replay(trainer, graph)
    warn(why)
    return None


def graph_of(array: Array) -> Any:
    """The class of graphs for the library that `array` comes from, None where there is none."""
    kernels = twins_folder()
    found = [] if kernels is None else kernels.twins("Graph", type(array))
    return found[0].call if found else None


def warn(why: str) -> None:
    """Say that and why steps are not replayed."""
    warnings.warn(f"replay=True does nothing: {why}. Steps run one kernel at a time", RuntimeWarning, stacklevel=4)


class NotRecorded(RuntimeError):
    """Why a step could not be recorded; nothing was run."""


class Recording:
    """The step for batches of one shape: where it reads the batch, and its graph."""

    def __init__(self, trainer: Trainer, graph: Any, batch: Batch):
        self.trainer, self.graph = trainer, graph
        inputs, y, weights = batch
        self.batch = tuple(map(self.copied, inputs)), self.copied(y), self.copied(weights)
        self.J: Array | None = None  # where a recorded step leaves it
        self.outputs = 1
        self.runs = 0

    def copied(self, x: Array) -> Array:
        """A copy of x, in memory that is not shared with anything."""
        return None if x is None else self.trainer.network.backend.xp.asarray(x, copy=True)

    def step(self, batch: Batch, labels: Any, number: Array, lr: Array) -> Array:
        """One step, as it is until the graph is settled, then recorded."""
        trainer = self.trainer
        if self.J is not None and labels is not None:
            trainer.loss.check_labels(labels, self.outputs)
        for here, x in zip(flat(self.batch), flat(batch), strict=True):
            here[...] = x
        whole = lambda: take_step(trainer, self.batch, labels, number, lr, lambda *_: None)  # noqa: E731  a name for a thunk
        if self.J is None and not self.graph.settled and self.runs < RUNS:
            self.runs += 1
            return self.copied(self.graph.run(whole))
        if self.J is None:
            token = recording.set(True)
            try:
                self.J = self.graph.capture(whole)
            except Exception as error:  # a capture runs nothing: the step can be made as it is
                raise NotRecorded(f"{type(error).__name__}: {error}") from error
            finally:
                recording.reset(token)
            self.outputs = trainer.outputs
        self.graph.launch()
        return self.copied(self.J)


class Replay:
    """The recordings of a trainer's steps, and the numbers that differ from step to step, on the device."""

    def __init__(self, trainer: Trainer, graph: Any):
        backend = trainer.network.backend
        self.trainer, self.graph = trainer, graph
        self.number, self.lr, self.known = backend.zeros((), "int64"), backend.zeros((), "float64"), (0, 0.0)
        self.recordings: dict[Any, Recording] = {}
        self.why = ""  # it cannot be done
        self.told = False

    def step(self, batch: Batch, labels: Any) -> Array | None:
        """J of a step that was made, or None where nothing was done, and the step is to run as it is."""
        trainer, guard = self.trainer, self.trainer.guard
        made = None if self.told else self.recording(batch)
        if made is None:
            return None
        self.why, known = "", (trainer.steps, trainer.lr)
        before = guard.copies() if guard.due() else None
        try:
            for here, value, old in zip((self.number, self.lr), known, self.known, strict=True):
                if value != old:
                    here[...] = value
            self.known = known
            J = made.step(batch, labels, self.number, self.lr)
        except NotRecorded as error:
            self.why = str(error)
            return None
        mode = Mode(True, trainer.seed, trainer.steps)
        guard.look(J, 0.0, *made.batch, mode, before)
        return J

    def recording(self, batch: Batch) -> Recording | None:
        """The recording for batches like this, of a trainer as it is; None where there are too many."""
        trainer = self.trainer
        shapes = tuple((tuple(x.shape), x.dtype) for x in flat(batch))
        fixed = trainer.loss, trainer.optimizer, trainer.clip_norm, trainer.accumulate, trainer.seed
        key = len(batch[0]), shapes, *fixed
        if key not in self.recordings and len(self.recordings) < RECORDINGS:
            self.recordings[key] = Recording(trainer, self.graph(), batch)
        return self.recordings.get(key)

    def tell(self) -> None:
        """After a step: say it, once, where recording failed and the step as it is did not."""
        if self.why and not self.told:
            self.told = True
            self.recordings.clear()
            warn(self.why)


def flat(batch: Batch) -> list[Array]:
    """The arrays of a batch."""
    inputs, y, weights = batch
    return [*inputs, y, *([] if weights is None else [weights])]
