"""The training loop: the same on every backend."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from bpcore import arguments
from bpcore.arguments import bounded, whole
from bpcore.checkpoint import check_place
from bpcore.library import host_data
from bpcore.module import Array
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.optimizers import Optimizer
from bpcore.schedules import Constant, Schedule, monitored
from bpcore.training import state
from bpcore.training.callbacks import Callback
from bpcore.training.data import Batch, data
from bpcore.training.evaluation import check_data, evaluate
from bpcore.training.guard import Guard
from bpcore.training.history import History
from bpcore.training.metrics import Metric, metric
from bpcore.training.reading import Augment, Placing, batches
from bpcore.training.replay import Replay, replay_for
from bpcore.training.scaling import Scaling
from bpcore.training.step import take_step

EVALUATION_ROWS = 1024  # a batch of evaluation: there is no backward pass to keep memory for


class Trainer:
    """A network, a loss and an optimiser, and the loop that puts them to work.

    network: on any backend. schedule: the factor on the optimiser's learning rate, see bpcore.schedules; any function of
    the step. metrics: names or objects, see bpcore.training.metrics. clip_norm: the largest norm of a step's gradient.
    accumulate: into how many micro-batches a batch is split; J and ∇J stay those of the whole batch. seed: of the order
    of the data and of dropout's masks, the same on every backend. replay: on a GPU, launch a step as one recorded graph, with
    the same results bit for bit: quicker for small networks. Where that cannot be, steps run as they do without, and a
    warning says why; see bpcore.training.replay.

    Counters: `steps` and `epoch`, done so far, and `position`, the steps done in the epoch under way.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule | Callable[[int], float] | None = None,
        metrics: Any = (),
        clip_norm: float | None = None,
        accumulate: int = 1,
        callbacks: Any = (),
        seed: int = 0,
        replay: bool = False,
    ):
        for what, value, kind in (("network", network, Network), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)):
            if not isinstance(value, kind):
                raise TypeError(f"{what} must be a bpcore {kind.__name__}, got {value!r}")
        if clip_norm is not None:
            bounded("clip_norm", clip_norm, 1e-30)
        whole("accumulate", accumulate)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the step, got {schedule!r}; e.g. one of bpcore.schedules")
        if network.n_parameters == 0:
            raise ValueError(f"{network.module!r} has no trained parameter; there is nothing to train")
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.schedule = Constant() if schedule is None else schedule
        self.metrics = [metric(m) for m in ((metrics,) if isinstance(metrics, (str, Metric)) else metrics)]
        self.clip_norm = None if clip_norm is None else float(clip_norm)  # a NumPy scalar would promote
        self.accumulate, self.seed = accumulate, arguments.seed(seed)
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be bpcore Callbacks, got {callback!r}")
        self.callbacks = sorted(callbacks, key=lambda callback: callback.last)
        self.steps = self.epoch = self.position = 0
        self.epochs = 0
        self.steps_per_epoch: int | None = None
        self.outputs = 1  # of an example, in the last step
        self.history = History()
        self.finished: str | None = None  # why there is no more to do, set for good, e.g. by early stopping
        self.interrupted = False
        self.position_of: tuple[Any, Any] | None = None  # (rows, batch size) of the epoch under way
        self._bind()
        self._replay: Replay | None = replay_for(self) if replay else None

    def _bind(self) -> None:
        net = self.network
        self._theta = net.theta
        self.trained = net.theta[: net.n_parameters]
        self.gradient = net.backend.zeros(net.n_parameters, net.dtype)
        self.micro = net.backend.zeros(net.n_parameters if self.accumulate > 1 else 0, net.dtype)
        self.moments = self.optimizer.start(self.trained)
        self.scaling = Scaling(net.backend) if net.compute_dtype == "float16" else None
        self.vectors = {"theta": net.theta, **self.moments}  # all that a step writes
        if self.scaling is not None:
            self.vectors["scaling"] = self.scaling.state
        self.guard = Guard(self)

    def check_bound(self) -> None:
        """A RuntimeError where the network was moved: the optimiser's vectors were not."""
        if self.network.theta is not self._theta:
            raise RuntimeError("the network was moved after the trainer was made; move first: Trainer(net.to(...), ...)")

    def step(self, X: Any, y: Any, weights: Any = None) -> Array:
        """One step on one batch. Returns J before the step, a scalar on the device.

        X, y, weights: host data, which moves to the device, or arrays there. Raises NonFiniteLoss, with θ at its last good
        values, where J or ∇J is not finite: see Guard.
        """
        return self._step(*self._place(X, y, weights))

    def _place(self, X: Any, y: Any, weights: Any) -> tuple[Batch, Any]:
        """A batch on the device, and its labels on the host where they are there, to be looked at."""
        self.check_bound()
        net = self.network
        return (net.inputs(X), net.place(y), net.place_weights(weights)), host_data(y)

    def _step(self, batch: Batch, labels: Any) -> Array:
        """One step on a batch that is on the device."""
        J = None if self._replay is None else self._replay.step(batch, labels)
        if J is None:
            J = take_step(self, batch, labels, self.steps, self.lr, self.guard.look)
        self.steps += 1
        if self._replay is not None:
            self._replay.tell()
        return J

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        lr = self.optimizer.lr * float(self.schedule(self.steps))
        if not math.isfinite(lr):
            raise ValueError(f"the schedule gave a learning rate of {lr} at step {self.steps}; it must be finite")
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

        train, validation: (X, y), (X, y, weights), NumPy memmaps among them, or an iterable of such batches. Arrays come in
        batches of batch_size, in an order shuffled anew each epoch. At each epoch's end training and test loss and the
        metrics are measured in evaluation mode with the same θ, evaluation_batch_size rows at a time; training_sample
        measures the training figures on so many rows, the same each time. Ctrl-C stops after the step under way and keeps
        the work; `fit` again goes on.

        augment: a function (X, generator) -> X of each batch that is trained on, before it moves to the device; X is an
        array, or a tuple of several inputs, and stays as it is; the result has as many rows. generator, NumPy's, is a
        function of (seed, epoch, number of the batch). Memmaps are shuffled in runs of neighbouring rows, which a disk
        reads quickly. read_ahead: how many batches a thread makes ready meanwhile, by the same order and augment; on a GPU
        it moves them there too, beside the steps.
        """
        whole("epochs", epochs)
        whole("batch_size", batch_size)
        whole("evaluation_batch_size", evaluation_batch_size)
        if training_sample is not None:
            whole("training_sample", training_sample)
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be a function (X, generator) -> X, got {augment!r}")
        if read_ahead != 0:
            whole("read_ahead", read_ahead)
        examples, held_out = data(train, "train"), None if validation is None else data(validation, "validation")
        check_data(self.network, self.loss, examples)
        if held_out is not None:
            check_data(self.network, self.loss, held_out)
        self._check_callbacks(held_out is not None)
        if self.position and (examples.n, batch_size) != self.position_of:
            raise ValueError(
                f"an epoch is under way, {self.position} steps into (rows, batch size) {self.position_of}; got "
                f"{(examples.n, batch_size)}: go on with the same data and batch_size"
            )
        self.position_of = (examples.n, batch_size)
        self.epochs, self.steps_per_epoch = epochs, examples.steps(batch_size)
        measured = examples if training_sample is None else examples.sample(training_sample, self.seed)
        self.interrupted = False
        with self._stop_on_interrupt():
            for callback in self.callbacks:
                callback.on_start(self)
            try:
                while self.epoch < epochs and not self.finished and not self.interrupted:
                    counters = self.seed, self.epoch, self.position
                    side = self.network.backend.side if read_ahead else None
                    shuffled = batches(examples, batch_size, *counters, augment, self._place, read_ahead, side)
                    with closing(shuffled):
                        self._epoch(shuffled, measured, held_out, evaluation_batch_size)
            finally:
                for callback in self.callbacks:
                    callback.on_end(self)
        return self.history

    def _check_callbacks(self, held_out: bool) -> None:
        """Raise now, not after an epoch, where something monitors what is not measured, or has no place to write to."""
        names = ["loss", *(m.name for m in self.metrics)]
        columns = [f"training_{name}" for name in names] + [f"test_{name}" for name in names if held_out] + ["gap"] * held_out
        for told in (self.schedule, *self.callbacks):
            monitor, path = getattr(told, "monitor", None), getattr(told, "path", None)
            if monitor is not None:
                monitored(dict.fromkeys(columns, 0.0), monitor)
            if path is not None:
                check_place(path)

    def _epoch(self, shuffled: Placing, measured: Any, held_out: Any, batch_size: int) -> None:
        """The rest of the epoch under way, and its measurements."""
        started = time.perf_counter()
        for batch, labels in shuffled:
            J = self._step(batch, labels)
            self.position += 1
            if self.guard.candidate is not None:
                self.guard.look_back()
            for callback in self.callbacks:
                callback.on_step(self, J)
            if self.interrupted:
                return
        self.guard.look_back()
        record: dict[str, Any] = {"epoch": self.epoch + 1, "steps": self.steps, "lr": self.lr}
        for prefix, given in (("training", measured), ("test", held_out)):
            if given is not None:
                record.update({f"{prefix}_{name}": value for name, value in self.evaluate(given, batch_size).items()})
        self.guard.expect_good(record["training_loss"])
        if held_out is not None:
            record["gap"] = record["test_loss"] - record["training_loss"]
        record["seconds"] = time.perf_counter() - started
        self.epoch, self.position = self.epoch + 1, 0
        self.guard.keep()
        self.history.append(record)
        if isinstance(self.schedule, Schedule):
            self.schedule.observe(record)
        for callback in self.callbacks:
            callback.on_epoch(self, record)

    def evaluate(self, given: Any, batch_size: int = EVALUATION_ROWS) -> dict[str, float]:
        """The loss J and the metrics over all of `given`, in evaluation mode. Raises like `fit` where data do not fit."""
        whole("batch_size", batch_size)
        examples = data(given, "data")
        if examples is not given:  # else `fit` has checked them
            check_data(self.network, self.loss, examples)
        return evaluate(self.network, self.loss, self.metrics, examples, batch_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that decides the next step to `path`, atomically: a run resumed from it ends bit for bit the same.

        `Network.load` reads the network of it too.
        """
        self.guard.look_back()
        self.guard.expect_good(self.guard.J())
        state.save(self, path)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take up where the run that wrote `path` was. Nothing changes where the file does not fit: CheckpointError.

        Network, dtype, kind of optimiser and callbacks must be the same; hyperparameters are this trainer's; the seed is
        the file's.
        """
        state.resume(self, path)

    @contextmanager
    def _stop_on_interrupt(self) -> Iterator[None]:
        """Ctrl-C asks for a stop after the step under way; a second one stops at once."""

        def ask(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
