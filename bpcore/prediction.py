"""Prediction: a network's outputs for many rows, a batch at a time, and the loss that turns them into labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpcore.arguments import show, whole
from bpcore.array import kind
from bpcore.library import Backend, host_data
from bpcore.module import Mode
from bpcore.modules import Loss


def expect_loss(loss: Any, method: str) -> Loss:
    """loss, or a TypeError unless it is one. method: of the network, for the repair."""
    if isinstance(loss, Loss):
        return loss
    repair = f"net.{method}(X, bp.CrossEntropy()), or trainer.{method}(X), which has its own"
    raise TypeError(f"{method} needs the loss, which knows what outputs mean, got {show(loss)}; pass it: {repair}")


NO_ROWS = "X needs a row for each example, got shape ({},); one example is X[None], and of a table np.asarray(X)[None]"


def expect_rows(evaluate: Callable[[Any], Any], row: tuple[Any, ...], several: bool, n: int) -> None:
    """Raise ValueError unless the first of n entries of X is a row, with an output of one row: X may be one example."""
    try:
        u = evaluate(row if several else row[0])
    except ValueError as error:
        raise ValueError(NO_ROWS.format(n)) from error
    if any(output.ndim == 0 or output.shape[0] != 1 for output in (u if isinstance(u, tuple) else (u,))):
        raise ValueError(NO_ROWS.format(n))


def by_batches(evaluate: Callable[[Any], Any], X: Any, batch_size: Any, mode: Mode | None, backend: Backend) -> Any:
    """evaluate(X), computed batch_size rows at a time: beside the result, the device holds one batch.

    X: host data (a memmap is read by batches) or an array of the backend; a tuple is several inputs with as many rows. Raises
    ValueError unless each output has a row for each row of X, or for a mode of training, where rows depend on their batch.
    """
    size = whole("batch_size", batch_size)
    if mode is not None and mode.training:
        raise ValueError(
            "batch_size is for evaluation, and mode is one of training, where rows depend on their batch; leave one out"
        )
    several = isinstance(X, tuple)
    named = [(f"X[{i}]", x) for i, x in enumerate(X)] if several and len(X) > 1 else [("X", x) for x in (X if several else (X,))]
    inputs = tuple(x if (host := host_data(x, name)) is None else host for name, x in named)
    lengths = [x.shape[0] if x.ndim else None for x in inputs]
    if None in lengths or len(set(lengths)) != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(f"batch_size needs inputs with one row for each example, got shapes {shapes}; leave batch_size out")
    n = inputs[0].shape[0]
    if n > 1 and all(x.ndim == 1 and kind(x) == "real floating" for x in inputs):
        expect_rows(evaluate, tuple(x[:1, ...] for x in inputs), several, n)
    results: list[Any] = []
    for start in range(0, max(n, 1), size):
        rows = slice(start, min(start + size, n))  # the Array API does not allow a slice past the end
        batch = tuple(x[rows, ...] for x in inputs)
        u = evaluate(batch if several else batch[0])
        outputs = u if isinstance(u, tuple) else (u,)
        if any(output.ndim == 0 or output.shape[0] != rows.stop - start for output in outputs):
            shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
            if any(x.ndim == 1 for x in inputs):
                raise ValueError(NO_ROWS.format(n))
            raise ValueError(
                f"batch_size needs outputs with a row for each of a batch's {rows.stop - start} rows, got shapes {shapes}; leave "
                "batch_size out"
            )
        if rows.stop - start == n:  # the only batch
            return u
        results = results or [backend.zeros((n, *output.shape[1:]), output.dtype) for output in outputs]
        for result, output in zip(results, outputs, strict=True):
            result[rows, ...] = output
    return tuple(results) if isinstance(u, tuple) else results[0]
