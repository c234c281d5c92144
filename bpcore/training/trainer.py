"""The training loop, the same on every backend."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from bpcore import arguments, checkpoint
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.checkpoint import Header, Tensors, check_place
from bpcore.module import Module
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.optimizers import Optimizer
from bpcore.schedules import Constant, Schedule, monitored
from bpcore.training import state
from bpcore.training.callbacks import Callback
from bpcore.training.data import Arrays, Batch, Batches, Epoch, as_examples
from bpcore.training.evaluation import check_data, measure
from bpcore.training.guard import Counters, Guard
from bpcore.training.history import History
from bpcore.training.interrupt import on_interrupt
from bpcore.training.metrics import Metric, metric
from bpcore.training.part import Part
from bpcore.training.reading import Augment, Placing, batches
from bpcore.training.replay import Replay, replay_for
from bpcore.training.scaling import Scaling
from bpcore.training.step import Step

__all__ = ["Trainer"]

EVALUATION_ROWS = 1024  # rows of a batch in evaluation, which needs no memory for a backward pass


class Trainer:
    """Trains a network with a loss and an optimiser, in a loop over batches and epochs: see `fit`.

    network: on any backend. schedule: the factor on the optimiser's learning rate, one of bpcore.schedules or any function of
    the step. metrics: names or objects, see bpcore.training.metrics. clip_norm: the largest norm of a step's gradient.
    accumulate: the number of micro-batches into which a batch is split; J and ∇J stay those of the whole batch. callbacks: see
    bp.Callback. seed: of the order of the data and of dropout's masks, which are the same on every backend. replay: on a GPU,
    launch a step as one recorded graph, with the same results bit for bit, which is faster for small networks. If that is not
    possible, steps run one kernel at a time, and a warning says why: see bpcore.training.replay.

    `steps` and `epoch` count what is done so far; `position` counts the steps done in the current epoch. `history` has the
    record of each epoch. `training_step` is the Step that the loop repeats.
    """

    steps = Part[int]("counters.steps")
    epoch = Part[int]("counters.epoch")
    position = Part[int]("counters.position")
    network = Part[Network]("training_step.network")
    loss = Part[Loss]("training_step.loss")
    optimizer = Part[Optimizer]("training_step.optimizer")
    clip_norm = Part[float | None]("training_step.clip_norm")
    accumulate = Part[int]("training_step.accumulate")
    seed = Part[int]("training_step.seed")
    gradient = Part[Array]("training_step.gradient")
    moments = Part[dict[str, Array]]("training_step.moments")
    scaling = Part[Scaling | None]("training_step.scaling")

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule | Callable[[int], float] | None = None,
        metrics: str | Metric | Iterable[str | Metric] = (),
        clip_norm: float | None = None,
        accumulate: int = 1,
        callbacks: Callback | Iterable[Callback] = (),
        seed: int = 0,
        replay: bool = False,
    ):
        if schedule is not None and (isinstance(schedule, (type, Module)) or not callable(schedule)):
            raise TypeError(f"schedule must be a function of the step, got {show(schedule)}; e.g. one of bpcore.schedules")
        self.training_step = Step(network, loss, optimizer, clip_norm, accumulate, seed)
        self.counters = Counters()
        self.guard = Guard(self.training_step, self.counters)
        self.schedule = Constant() if schedule is None else schedule
        self.metrics = [metric(m) for m in several(metrics)]
        for callback in several(callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be bpcore Callbacks, got {show(callback)}; e.g. [bp.EarlyStopping()]")
        self.callbacks = sorted(several(callbacks), key=lambda callback: callback.last)
        self.epochs = 0
        self.steps_per_epoch: int | None = None
        self.history = History()
        self.finished: str | None = None  # why training is over for good, e.g. by early stopping
        self.interrupted = False
        self.position_of: tuple[Any, Any] | None = None  # (rows, batch size) of the current epoch
        self._replay: Replay | None = replay_for(self.training_step) if replay else None
        self._take: Step | Replay = self._replay or self.training_step

    def step(self, X: Any, y: Any, weights: Any = None) -> Array:
        """One step on one batch. Returns J before the step, a scalar on the device.

        X, y, weights: host data, which moves to the device, or arrays there. Raises NonFiniteLoss, with θ at its last good
        values, if J or ∇J is not finite: see bpcore.training.guard.
        """
        return self._step(*self.training_step.place(X, y, weights))

    def _step(self, batch: Batch, labels: Array | None) -> Array:
        """One step on a batch on the device. labels: y on the host, or None."""
        guard = self.guard
        guard.begin()
        outcome = self._take(batch, labels, self.counters.steps, self.lr, guard.look)
        self.counters.steps += 1
        return outcome.J

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        steps = self.counters.steps
        lr = self.training_step.optimizer.lr * float(self.schedule(steps))
        if not math.isfinite(lr):
            raise ValueError(f"the schedule gave a learning rate of {lr} at step {steps}; it must be finite")
        return lr

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        epochs: int,
        batch_size: int = 32,
        training_sample: int | None = None,
        evaluation_batch_size: int = EVALUATION_ROWS,
        augment: Augment | None = None,
        read_ahead: int = 0,
    ) -> History:
        """Train until `epochs` epochs are done in all, and return the history.

        train, validation: (X, y) or (X, y, weights), NumPy memmaps too, or an iterable of such batches. Arrays are split into
        batches of batch_size, in a new random order in each epoch; memmaps are shuffled in runs of neighbouring rows, which a
        disk reads quickly. At the end of each epoch the training loss, the test loss and the metrics are measured in evaluation
        mode, at the same θ, evaluation_batch_size rows at a time. training_sample: measure the training loss and metrics on so
        many rows only, the same in each epoch. Ctrl-C stops after the current step and loses nothing; call `fit` again to
        continue.

        augment: a function (X, generator) -> X, called with each training batch before it moves to the device. X is an array, or
        a tuple of several inputs; do not write to it, and return as many rows. The generator is NumPy's, and depends on (seed,
        epoch, number of the batch). read_ahead: the number of batches that a thread prepares in advance, in the same order and
        with the same augment; on a GPU it also moves them there, while a step computes.
        """
        epochs = arguments.whole("epochs", epochs)
        batch_size = arguments.whole("batch_size", batch_size)
        evaluation_batch_size = arguments.whole("evaluation_batch_size", evaluation_batch_size)
        if training_sample is not None:
            training_sample = arguments.whole("training_sample", training_sample)
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be a function (X, generator) -> X, got {show(augment)}")
        if read_ahead != 0:
            read_ahead = arguments.whole("read_ahead", read_ahead)
        examples = as_examples(train, "train")
        held_out = None if validation is None else as_examples(validation, "validation")
        check_data(self.network, self.loss, examples)
        if held_out is not None:
            check_data(self.network, self.loss, held_out)
        self._check_callbacks(held_out is not None)
        if self.position and (examples.n, batch_size) != self.position_of:
            raise ValueError(
                f"an epoch is unfinished, {self.position} steps into (rows, batch size) {self.position_of}; got "
                f"{(examples.n, batch_size)}: continue with the same data and batch_size"
            )
        self.position_of = (examples.n, batch_size)
        self.epochs, self.steps_per_epoch = epochs, examples.steps(batch_size)
        measured = examples if training_sample is None else examples.sample(training_sample, self.seed)
        self.interrupted = False
        with on_interrupt(self._interrupt):
            for callback in self.callbacks:
                callback.on_start(self)
            try:
                while self.epoch < epochs and not self.finished and not self.interrupted:
                    epoch = Epoch(batch_size, self.seed, self.epoch, self.position)
                    side = self.network.backend.side if read_ahead else None
                    shuffled = batches(examples, epoch, augment, self.training_step.place, read_ahead, side)
                    with closing(shuffled):
                        self._epoch(shuffled, measured, held_out, evaluation_batch_size)
            finally:
                for callback in self.callbacks:
                    callback.on_end(self)
        return self.history

    def _check_callbacks(self, held_out: bool) -> None:
        """Raise before the first epoch if something monitors a column that is not measured, or cannot write to its path."""
        names = ["loss", *(m.name for m in self.metrics)]
        columns = [f"training_{name}" for name in names]
        if held_out:
            columns += [*(f"test_{name}" for name in names), "gap"]
        for observer in (self.schedule, *self.callbacks):
            monitor = getattr(observer, "monitor", None)
            path = getattr(observer, "path", None)
            if monitor is not None:
                monitored(dict.fromkeys(columns, 0.0), monitor)
            if path is not None:
                check_place(path)

    def _epoch(self, shuffled: Placing, measured: Arrays | Batches, held_out: Arrays | Batches | None, batch_size: int) -> None:
        """Do the rest of the current epoch, and measure, batch_size rows at a time."""
        started = time.perf_counter()
        for batch, labels in shuffled:
            J = self._step(batch, labels)
            self.counters.position += 1
            if self.guard.candidate is not None:
                self.guard.look_back()
            for callback in self.callbacks:
                callback.on_step(self, J)
            if self.interrupted:
                return
        self.guard.look_back()
        record: dict[str, Any] = {"epoch": self.epoch + 1, "steps": self.steps, "lr": self.lr}
        for prefix, examples in (("training", measured), ("test", held_out)):
            if examples is not None:
                record.update({f"{prefix}_{name}": value for name, value in self.evaluate(examples, batch_size).items()})
        self.guard.expect_good(record["training_loss"])
        if held_out is not None:
            record["gap"] = record["test_loss"] - record["training_loss"]
        record["seconds"] = time.perf_counter() - started
        self.counters.epoch += 1
        self.counters.position = 0
        self.guard.take_snapshot()
        self.history.append(record)
        if isinstance(self.schedule, Schedule):
            self.schedule.observe(record)
        for callback in self.callbacks:
            callback.on_epoch(self, record)

    def evaluate(self, data: Any, batch_size: int = EVALUATION_ROWS) -> dict[str, float]:
        """The loss J and the metrics over all of `data`, in evaluation mode, batch_size rows at a time.

        data: (X, y), (X, y, weights), or an iterable of such batches. Raises the errors of `fit` if they do not fit the network.
        """
        batch_size = arguments.whole("batch_size", batch_size)
        examples = as_examples(data, "data")
        if examples is not data:  # else `fit` has checked them
            check_data(self.network, self.loss, examples)
        return measure(self.network, self.loss, self.metrics, examples, batch_size)

    def state(self) -> tuple[Tensors, Header]:
        """(arrays, header): all that decides the next step, as arrays on the host and a dictionary of plain values.

        On NumPy the arrays are those that the next step overwrites: copy them. Random numbers depend on (seed, step, epoch) only,
        so the seed and the counters suffice for them. Raises NonFiniteLoss if J or θ is not finite.
        """
        self.guard.look_back()
        self.guard.expect_good(self.guard.J())
        tensors, header = self.training_step.state()
        arrays, callbacks = state.callbacks_state(self.callbacks, self)
        header["training"] |= {
            "schedule": state.schedule_state(self.schedule),
            "counters": [self.steps, self.epoch, self.position],
            "position_of": self.position_of,
            "finished": self.finished,
            "callbacks": callbacks,
            "history": list(self.history),
        }
        return {**tensors, **arrays}, header

    def restore(self, tensors: Tensors, header: Header, path: Any = "the state") -> None:
        """Set this run to what `state` returned. Raises CheckpointError, which names `path`, before anything is assigned."""
        step = self.training_step
        saved = state.parse(path, header)
        step.check_bound()
        vectors = step.check_state(path, tensors, header, saved.optimizer)
        state.check_callbacks(path, self.callbacks, saved, tensors)
        state.check_schedule(path, self.schedule, saved)

        step.restore(vectors)
        step.seed = saved.seed
        self.steps, self.epoch, self.position = saved.counters
        self.position_of = saved.position_of
        self.finished = saved.finished
        self.history = saved.history
        self.guard = Guard(step, self.counters)
        state.restore_schedule(self.schedule, saved)
        state.restore_callbacks(self.callbacks, self, saved, tensors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that decides the next step to `path`, atomically. A run resumed from it ends the same, bit for bit.

        `Network.load` can read the network from it.
        """
        checkpoint.write(path, *self.state())

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Continue the run that wrote `path`. Raises CheckpointError, and changes nothing, if the file does not fit.

        The network's structure and dtype, and the classes of the optimiser and the callbacks, must be the same. Hyperparameters
        stay those of this trainer; the seed becomes that of the file.
        """
        self.restore(*checkpoint.read(path), path)

    def _interrupt(self) -> None:
        """The first Ctrl-C stops after the current step, the second at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def several(given: Any) -> list[Any]:
    """The objects in `given`, or `given` itself if it is one object."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
