"""The arithmetic of one training step, the same whether it runs as it is or is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpcore.context import computing_in
from bpcore.functional.losses import total as total_of
from bpcore.functional.updates import clip_norm, squared_norm
from bpcore.module import Array, Mode
from bpcore.training.data import Batch, check_lengths

if TYPE_CHECKING:
    from bpcore.training.trainer import Trainer


def take_step(trainer: Trainer, batch: Batch, labels: Any, step: Any, lr: Any, look: Callable[..., None]) -> Array:
    """A step on arrays already here: J and ∇J, look(J, ‖∇J‖², *batch, mode), clip, update. Returns J.

    step, lr: numbers, or scalars on the device, int64 and float64. labels: y on the host, None where it is not there.
    """
    net, seen = trainer.network, not trainer.network.backend.asynchronous
    inputs, y, weights = batch
    if trainer.accumulate == 1:
        modes = [Mode(True, trainer.seed, step, look=seen)]
        evaluation = net.forward(trainer.loss, inputs, y, weights, modes[0], labels)
        trainer.outputs = evaluation.outputs
        J, gradient = (
            evaluation.J,
            net.backward(evaluation, trainer.gradient, 1.0 if trainer.scaling is None else trainer.scaling.S),
        )
    else:
        parts = range(min(trainer.accumulate, y.shape[0]))
        modes = [Mode(True, trainer.seed, step, k, seen) for k in parts]
        with computing_in(net.compute_dtype):  # infinities of float16 may meet
            J, gradient = accumulated(trainer, inputs, y, weights, modes, labels)
    if trainer.scaling is not None:
        trainer.scaling.unscale(gradient)
    square = squared_norm(gradient) if seen or trainer.clip_norm is not None else 0.0  # a GPU that clips nothing is spared it
    look(J, square, *batch, modes[0])
    if trainer.clip_norm is not None:
        clip_norm(gradient, square, trainer.clip_norm, gradient)
    trainer.optimizer.update(trainer.trained, gradient, trainer.moments, step + 1, lr, net.layout.decayed)
    for mode in modes:
        mode.commit()
    return J


def accumulated(
    trainer: Trainer, inputs: tuple[Array, ...], y: Array, weights: Array | None, modes: list[Mode], labels: Any
) -> tuple[Array, Array]:
    """J and ∇J of a batch in micro-batches, put together by their Σ w."""
    net, n, parts = trainer.network, check_lengths("a batch", inputs, y, weights), len(modes)
    if n == 0:
        raise ValueError("a batch is empty: X has 0 rows; give at least one example")
    total = trainer.loss.total_weight(y, None) if weights is None else total_of(weights)  # above zero
    J, gradient = 0.0, trainer.gradient
    for k, mode in enumerate(modes):
        rows = slice(k * n // parts, (k + 1) * n // parts)
        w, known = None if weights is None else weights[rows, ...], None if labels is None else labels[rows]
        evaluation = net.forward(trainer.loss, tuple(x[rows, ...] for x in inputs), y[rows, ...], w, mode, known)
        share, trainer.outputs = trainer.loss.total_weight(y[rows, ...], w), evaluation.outputs
        J = J + evaluation.J * share
        v = share / total if trainer.scaling is None else trainer.scaling.S * (share / total)
        if k == 0:
            net.backward(evaluation, gradient, v)
        else:
            gradient[...] = gradient + net.backward(evaluation, trainer.micro, v)
    return J / total, gradient
