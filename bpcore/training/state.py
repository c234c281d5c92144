"""A trainer's state as a checkpoint, and back: all that decides the next step."""

from __future__ import annotations

import operator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bpcore import checkpoint
from bpcore.schedules import Schedule
from bpcore.structure import describe
from bpcore.training.guard import Guard
from bpcore.training.history import History

if TYPE_CHECKING:
    from bpcore.training.trainer import Trainer


def save(trainer: Trainer, path: Any) -> None:
    """Write network, optimiser's vectors, counters, schedule, callbacks and history to `path`.

    The random streams are functions of (seed, step, epoch), so seed and counters hold them.
    """
    tensors, header = trainer.network.state()
    backend = trainer.network.backend
    tensors.update({f"optimizer.{name}": backend.to_host(vector) for name, vector in trainer.moments.items()})
    if trainer.scaling is not None:
        tensors["scaling"] = backend.to_host(trainer.scaling.state)
    callbacks = []
    for i, callback in enumerate(trainer.callbacks):
        numbers, arrays = callback.state(trainer)
        callbacks.append({"class": type(callback).__name__, "numbers": numbers})
        tensors.update({f"callback.{i}.{name}": array for name, array in arrays.items()})
    header["training"] = {
        "optimizer": {"class": type(trainer.optimizer).__name__, "hyperparameters": asdict(trainer.optimizer)},
        "schedule": trainer.schedule.state() if isinstance(trainer.schedule, Schedule) else {},
        "counters": [trainer.steps, trainer.epoch, trainer.position],
        "position_of": trainer.position_of,
        "seed": trainer.seed,
        "finished": trainer.finished,
        "callbacks": callbacks,
        "history": trainer.history.records,
    }
    checkpoint.write(path, tensors, header)


def resume(trainer: Trainer, path: Any) -> None:
    """Give `trainer` the state in `path`. All is checked before anything is assigned."""
    tensors, header = checkpoint.read(path)
    net, training = trainer.network, header.get("training")
    if not isinstance(training, dict):
        raise checkpoint.CheckpointError(f"{path} holds a network only; load it with Network.load, and train anew")
    trainer.check_bound()
    theta = net.check_state(path, tensors, header)
    checkpoint.expect(path, "dtype", net.dtype, header["network"].get("dtype"))
    checkpoint.expect(path, "network", describe(net.module), header["network"].get("structure"))
    try:
        optimizer, schedule = training["optimizer"]["class"], dict(training["schedule"])
        steps, epoch, position = (operator.index(n) for n in training["counters"])
        if min(steps, epoch, position) < 0:
            raise ValueError(f"counters {steps}, {epoch}, {position}")
        position_of = None if training["position_of"] is None else tuple(training["position_of"])
        seed, finished, history = training["seed"], training["finished"], History(list(training["history"]))
        callbacks = [(callback["class"], callback["numbers"]) for callback in training["callbacks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is damaged: its state of training is not whole ({error!r})") from error
    checkpoint.expect(path, "optimiser", type(trainer.optimizer).__name__, optimizer)
    vectors = sorted(name.removeprefix("optimizer.") for name in tensors if name.startswith("optimizer."))
    checkpoint.expect(path, "the optimiser's vectors", sorted(trainer.moments), vectors)
    size = net.n_parameters
    moments = {n: checkpoint.tensor(path, tensors, f"optimizer.{n}", size, net.dtype) for n in trainer.moments}
    scaled = lambda yes: "float16, its loss scaled" if yes else "its own dtype"  # noqa: E731  a name for a thunk
    checkpoint.expect(path, "computing in", scaled(trainer.scaling is not None), scaled("scaling" in tensors))
    scaling = checkpoint.tensor(path, tensors, "scaling", 2, "float32") if trainer.scaling is not None else None
    classes = [type(callback).__name__ for callback in trainer.callbacks]
    checkpoint.expect(path, "callbacks", classes, [name for name, _ in callbacks])
    for name in tensors:
        if name.startswith("callback.") and name.endswith(".theta"):  # one keeps it: arrays of other names are its own
            checkpoint.tensor(path, tensors, name, net.layout.size, net.dtype)
    own = trainer.schedule.state() if isinstance(trainer.schedule, Schedule) else {}
    if own and schedule:
        checkpoint.expect(path, "a schedule with", sorted(own), sorted(schedule))

    net.theta[...] = net.backend.asarray(theta)
    for name, vector in moments.items():
        trainer.moments[name][...] = net.backend.asarray(vector)
    if trainer.scaling is not None:
        trainer.scaling.state[...] = net.backend.asarray(scaling)
    trainer.steps, trainer.epoch, trainer.position, trainer.position_of = steps, epoch, position, position_of
    trainer.seed, trainer.finished, trainer.history = seed, finished, history
    trainer.guard = Guard(trainer)
    if isinstance(trainer.schedule, Schedule) and own and schedule:
        trainer.schedule.restore(schedule)
    for i, (callback, (_, numbers)) in enumerate(zip(trainer.callbacks, callbacks, strict=True)):
        prefix = f"callback.{i}."
        arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        callback.restore(trainer, numbers, arrays)
