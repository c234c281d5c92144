"""The training loop, the same on every backend."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, nullcontext
from typing import Any

from bpcore import arguments, checkpoint
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.checkpoint import Header, Tensors
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.optimizers import Optimizer
from bpcore.recordings import checked
from bpcore.schedules import Constant, Schedule
from bpcore.training import door, outlived, state
from bpcore.training.callbacks import Callback
from bpcore.training.data import Arrays, Batch, Batches, Columns, Epoch, as_examples, columns_of
from bpcore.training.evaluation import check_data, measure
from bpcore.training.guard import Counters, Guard
from bpcore.training.history import History, expect_record
from bpcore.training.interrupt import on_interrupt
from bpcore.training.metric import Metric
from bpcore.training.metrics import chosen_metrics
from bpcore.training.part import Part
from bpcore.training.progress import audience
from bpcore.training.reading import Augment, Placing, Reader, batches
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
    bp.Callback. seed: of the order of the data and of dropout's masks, which are the same on every backend; None draws one,
    which `trainer.seed` shows and `save` keeps. replay: "auto", True or False. On a GPU, after a few steps of a
    shape, a step is launched as one recorded graph, with the same results bit for bit. Where that cannot be, steps run one kernel
    at a time, and a warning says why, with "auto" only on a GPU: see bpcore/recordings.py. The Python of modules does not
    run in a replayed step: a module of your own that appends to a list in `forward` needs replay=False. progress: by default
    there is a bp.Progress where somebody looks, on a terminal or in a notebook; True shows one anywhere, False none.

    `steps` and `epoch` count what is done so far; `position` counts the steps done in the current epoch. `history` has the
    record of each epoch. `training_step` is the Step that the loop repeats.

    A trainer starts callbacks and schedules that have a state afresh, even if another trainer has used them; that one cannot go
    on then. loss, clip_norm, accumulate, seed, schedule, metrics and callbacks can be assigned later, and an optimiser of the
    same class with other hyperparameters: `trainer.optimizer = bp.Adam(lr=1e-4)`. For another network or optimiser make a new
    trainer.
    """

    steps = Part[int]("counters.steps")
    epoch = Part[int]("counters.epoch")
    position = Part[int]("counters.position")
    network = Part[Network]("training_step.network")
    loss = Part[Loss]("training_step.loss")
    optimizer = Part[Optimizer]("training_step.optimizer")
    clip_norm = Part[float | None]("training_step.clip_norm")
    accumulate = Part[int]("training_step.accumulate")
    gradient = Part[Array]("training_step.gradient")
    moments = Part[dict[str, Array]]("training_step.moments")
    scaling = Part[Scaling | None]("training_step.scaling")
    seed = Part[int]("training_step.seed")

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
        seed: int | None = 0,
        replay: bool | str = "auto",
        progress: bool | None = None,
    ):
        self.training_step = Step(network, loss, optimizer, clip_norm, accumulate, seed)
        self.counters = Counters()
        self.guard = Guard(self.training_step, self.counters)
        self.epochs = 0
        self.steps_per_epoch: int | None = None
        self.history = History()
        self.finished: str | None = None  # why training is over for good, e.g. by early stopping
        self.interrupted = False
        self.position_of: tuple[Any, Any] | None = None  # (rows, batch size) of the current epoch
        self._replay: Replay | None = replay_for(self.training_step, checked(replay))
        self._take: Step | Replay = self._replay or self.training_step
        self._ends: int | None = None  # the step from which the schedule is over, until a warning has said so
        self._columns: Columns = {}  # of the tables it was trained on
        self._observed: Any = None  # the schedule within warm-ups
        self.progress = progress
        self.metrics: list[Metric] = chosen_metrics(metrics)
        self.schedule: Schedule | Callable[[int], float] = Constant() if schedule is None else schedule
        self.callbacks: list[Callback] = door.as_callbacks(self, callbacks)

    def __setattr__(self, name: str, value: Any) -> None:
        """What can be assigned later is checked, and callbacks and schedules begin afresh; see also Step."""
        check = door.SETTINGS.get(name)
        object.__setattr__(self, name, value if check is None else check(self, value))

    def __repr__(self) -> str:
        parts = {"schedule": self.schedule, "metrics": [m.name for m in self.metrics], "callbacks": self.callbacks}
        shown = {name: part for name, part in parts.items() if part and part != Constant()} | self.training_step.settings()
        settings = "".join(f", {name}={part!r}" for name, part in shown.items())
        return f"<Trainer({self.network!r}, {self.loss!r}, {self.optimizer!r}{settings}) after {self.steps} steps>"

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy. Raises NonFiniteLoss, back at the last good θ, if J of the last step is not finite."""
        self.guard.look_back()
        return vars(self)

    def __copy__(self) -> Trainer:
        """A deep copy: two trainers with one network and one count of steps would disturb each other."""
        return copy.deepcopy(self)

    def step(self, X: Any, y: Any, weights: Any = None) -> Array:
        """One step on one batch. Returns J before the step, a scalar on the device.

        X, y, weights: host data, which moves to the device, or arrays there. Raises NonFiniteLoss, with θ at its last good
        values, if J or ∇J is not finite: see bpcore.training.guard.
        """
        if self.history.theta_epoch is not None:
            door.leave_best(self)
        if self._columns or hasattr(X, "columns"):  # a table
            door.check_batch(self, X, y)
            self._columns |= columns_of(X, y)
        try:
            return self._step(*self.training_step.place(X, y, weights))
        except ValueError as error:
            door.expect_order(X, y, error)
            raise

    def _step(self, batch: Batch, labels: Array | None) -> Array:
        """One step on a batch on the device. labels: y on the host, or None."""
        guard = self.guard
        if self._ends is not None and self.counters.steps >= self._ends:
            door.warn_end(self, self.counters.steps + 1)
        guard.begin(self._replay is not None)
        outcome = self._take(batch, labels, self.counters.steps, self.lr_of(self.counters.steps), guard.look)
        self.counters.steps += 1
        return outcome.J

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.lr_of(self.counters.steps)

    @lr.setter
    def lr(self, value: Any) -> None:
        raise TypeError("lr follows from optimiser and schedule; assign an optimiser: trainer.optimizer = bp.Adam(lr=...)")

    def lr_of(self, step: int) -> float:
        """The learning rate of a step, 0 the first. A schedule that observes epochs answers as of now."""
        if self._observed is not None and getattr(self._observed, "_run", self.counters) is not self.counters:
            self._own()
        factor = self.schedule(step)
        if type(factor) is not float:
            factor = door.as_factor(factor, step)
        lr = self.training_step.optimizer.lr * factor
        if not 0.0 <= lr < math.inf:
            raise ValueError(f"the schedule gave a learning rate of {lr} at step {step}; it must be finite and at least 0")
        return lr

    def _own(self) -> None:
        """Raise RuntimeError if another trainer has taken a callback or the schedule since this one used it."""
        state.take((self.schedule, *self.callbacks), self, running=self.steps > 0)
        self.callbacks = self.callbacks  # sorted, also if somebody has changed the list

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
        drop_last: bool = False,
    ) -> History:
        """Train until `epochs` epochs are done in all, and return the history.

        train, validation: (X, y) or (X, y, weights), NumPy memmaps too, or an iterable of such batches. Arrays are split into
        batches of batch_size, in a new random order in each epoch; memmaps are shuffled in runs of neighbouring rows, which a
        disk reads quickly. drop_last: leave out an epoch's last batch if it has fewer rows. At the end of each epoch the training
        loss, the test loss and the metrics are measured in evaluation mode, at the same θ, evaluation_batch_size rows at a time.
        Column `lr` of the history is the learning rate of the epoch's last step.
        training_sample: measure the training loss and metrics on so many rows only, the same in each epoch; with 0 they are not
        measured, the history has no such columns, and an iterable is read once an epoch. Ctrl-C stops after the current step and
        loses nothing; call `fit` again to continue.

        augment: a function (X, generator) -> X, called with each training batch before it moves to the device. X is an array, or
        a tuple of several inputs; do not write to it, and return as many rows. The generator is NumPy's, and depends on (seed,
        epoch, number of the batch). read_ahead: the number of batches that a thread prepares in advance, in the same order and
        with the same augment; on a GPU it also moves them there, while a step computes. The thread opens and reads iterables, so
        what is bound to a thread, such as a connection of sqlite3, must be opened in `__iter__`.
        """
        epochs = arguments.whole("epochs", epochs)
        batch_size = arguments.whole("batch_size", batch_size)
        evaluation_batch_size = arguments.whole("evaluation_batch_size", evaluation_batch_size)
        if training_sample is not None:
            training_sample = arguments.whole("training_sample", training_sample, least=0)
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be a function (X, generator) -> X, got {show(augment)}")
        if augment is not None:
            arguments.expect_call("augment", augment, "X", "generator")
        read_ahead = arguments.whole("read_ahead", read_ahead, least=0)
        drop_last = arguments.flag("drop_last", drop_last)
        examples = as_examples(train, "train")
        held_out = None if validation is None else as_examples(validation, "validation")
        with ExitStack() as ending:
            reader = None
            if read_ahead and isinstance(examples, Batches):  # an iterator may not leave its thread
                reader = examples.reader = Reader()
                ending.callback(reader.close)
                if isinstance(held_out, Batches):  # it may be the same object, or share what that one has opened
                    held_out.reader = reader
            for given in (examples, held_out or examples):
                ending.callback(given.close)
            drawn = examples.sample(training_sample, self.seed) if training_sample else examples
            measured = None if training_sample == 0 else drawn
            steps_per_epoch = door.check(self, examples, held_out, epochs, batch_size, measured is not None, drop_last)
            self.position_of = (examples.n, batch_size)
            self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
            self.interrupted = False
            ending.enter_context(on_interrupt(self._interrupt))
            told = audience(self.progress, self.callbacks)
            started: list[Callback] = []
            for callback in reversed(told):
                ending.callback(self._end, callback, started)
            for callback in told:
                outlived.start(callback, self)
                started.append(callback)
            door.leave_best(self)
            while self.epoch < epochs and not self.finished and not self.interrupted:
                epoch = Epoch(batch_size, self.seed, self.epoch, self.position, drop_last)
                side = self.network.backend.side if read_ahead else None
                with closing(batches(examples, epoch, augment, self.training_step.place, read_ahead, side, reader)) as shuffled:
                    self._epoch(shuffled, told, measured, held_out, evaluation_batch_size)
        return self.history

    def _end(self, callback: Callback, started: list[Callback]) -> None:
        if any(callback is one for one in started):
            callback.on_end(self)

    def _epoch(
        self,
        shuffled: Placing,
        told: list[Callback],
        measured: Arrays | Batches | None,
        held_out: Arrays | Batches | None,
        batch_size: int,
    ) -> None:
        """Do the rest of the current epoch, and measure, batch_size rows at a time. told: the callbacks to call."""
        started = time.perf_counter()
        for batch, labels in shuffled:
            J = self._step(batch, labels)
            self.counters.position += 1
            if self.guard.candidate is not None:
                self.guard.look_back()
            for callback in told:
                callback.on_step(self, J)
            if self.interrupted:
                return
        self._own()
        self.guard.look_back()
        record: dict[str, Any] = {"epoch": self.epoch + 1, "steps": self.steps, "lr": self.lr_of(self.steps - 1)}
        for prefix, examples in (("training", measured), ("test", held_out)):
            if examples is not None:
                record.update({f"{prefix}_{name}": value for name, value in self.evaluate(examples, batch_size).items()})
        self.guard.expect_good(self.guard.J() if measured is None else record["training_loss"])
        if measured is not None and held_out is not None:
            record["gap"] = record["test_loss"] - record["training_loss"]
        record["seconds"] = time.perf_counter() - started
        self.counters.epoch += 1
        self.counters.position = 0
        self.guard.take_snapshot()
        self.history.append(record)
        if isinstance(self.schedule, Schedule):
            self.schedule.observe(record)
        for callback in told:
            callback.on_epoch(self, record)
            expect_record(record)  # before another callback writes it

    def evaluate(self, data: Any, batch_size: int = EVALUATION_ROWS) -> dict[str, float]:
        """The loss J and the metrics over all of `data`, in evaluation mode, batch_size rows at a time.

        data: (X, y), (X, y, weights), or an iterable of such batches. Raises the errors of `fit` if they do not fit the network.
        """
        batch_size = door.as_batch_size(batch_size, "evaluate((X, y))")
        examples = as_examples(data, "data", once=True)
        with closing(examples) if examples is not data else nullcontext():
            if examples is not data:  # else `fit` has checked them
                door.expect_columns(examples, self._columns)
                check_data(self.network, self.loss, examples, self.metrics)
            return measure(self.network, self.loss, self.metrics, examples, batch_size)

    def predict(self, X: Any, batch_size: int = EVALUATION_ROWS) -> Array:
        """The labels at X, an array on the device, batch_size rows at a time: see Network.predict."""
        return self._labels("predict", X, batch_size)

    def probabilities(self, X: Any, batch_size: int = EVALUATION_ROWS) -> Array:
        """The probabilities of labels at X, an array on the device, batch_size rows at a time: see Network.probabilities."""
        return self._labels("probabilities", X, batch_size)

    def _labels(self, method: str, X: Any, batch_size: int) -> Array:
        """What this method of the network returns at X."""
        X = door.check_batch(self, X)
        rows = door.as_batch_size(batch_size, f"{method}(X), {method}((X, mask))")
        try:
            labels: Array = getattr(self.network, method)(X, self.loss, batch_size=rows)
        except ValueError:
            door.expect_finite(X)
            raise
        return labels

    def state(self) -> tuple[Tensors, Header]:
        """(arrays, header): all that decides the next step, as arrays on the host and a dictionary of plain values.

        On NumPy the arrays are those that the next step overwrites: copy them. Random numbers depend on (seed, step, epoch) only,
        so the seed and the counters suffice for them. Raises NonFiniteLoss if J or θ is not finite.
        """
        self._own()
        self.guard.look_back()
        self.guard.expect_good(self.guard.J())
        return state.of(self)

    def restore(self, tensors: Tensors, header: Header, path: Any = "the state") -> None:
        """Set this run to what `state` returned. Raises CheckpointError, which names `path`, and leaves all as it was."""
        state.restore(self, tensors, header, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that decides the next step to `path`, atomically. A run resumed from it ends the same, bit for bit.

        `Network.load` can read the network from it.
        """
        checkpoint.write(path, *self.state())

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Continue the run that wrote `path`. Raises CheckpointError, and changes nothing, if the file does not fit.

        The network's structure and dtype and the classes of the loss and the optimiser must be the same. A callback with a state
        in the file must be there, of the same class and monitor; others begin afresh. Hyperparameters stay those of this trainer;
        the seed becomes that of the file.
        """
        self.restore(*checkpoint.read(path), path)

    def _interrupt(self) -> None:
        """The first Ctrl-C stops after the current step, the second at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
