"""Measure the loss and the metrics over a data set; check that data fit a network and a loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from bpcore.arguments import is_ours, show
from bpcore.array import Array, is_floating, kind
from bpcore.backend import backend_of, get_backend
from bpcore.context import quiet
from bpcore.expect import expect_scalar
from bpcore.library import Backend, host_data
from bpcore.module import EMPTY, Mode, run
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.training.data import Arrays, Batches
from bpcore.training.metric import Metric, expect_terms, wide
from bpcore.training.reading import in_order

LOOK_EVERY = 256  # batches: then the host takes the sums, so that even float32 sums on a device stay accurate


@quiet
def check_data(network: Network, loss: Loss, examples: Arrays | Batches, metrics: Sequence[Metric] = ()) -> None:
    """Raise unless values are finite, shapes fit the network, the loss and the metrics, and labels and ids are in range.

    `fit` calls this once, before it starts. Arrays are checked as a whole; of an iterable of batches the first is checked here,
    and the others when they are read.
    """
    examples.check("float16" if network.compute_dtype == "float16" else network.dtype, network.dtype)
    batch = examples.first()
    labels = examples.y if isinstance(examples, Arrays) else batch[1]
    host = backend_of(labels).to_host(labels)
    inputs, y, weights = network.inputs(batch[0]), network.place(batch[1], name="y"), network.place_weights(batch[2])
    with trial_of(examples):
        t = network(inputs)
        if isinstance(t, tuple):
            network.forward(loss, inputs, y, weights, Mode())  # raises: a loss takes one output
        loss.expect(EMPTY, t, y, weights)
    loss.check_labels(host, t.shape[-1] if t.ndim else 1)
    if weights is not None and not is_ours(type(loss)):
        expect_weighed(loss, t, y)
    if isinstance(examples, Arrays):
        for row in extremes(examples.inputs):
            network(tuple(x[row : row + 1, ...] for x in examples.inputs))  # an id out of an embedding's range is an error
    of_loss = [fresh(metric).for_loss(loss) for metric in metrics]
    for metric in of_loss:
        metric.check_labels(host, tuple(t.shape))
    with trial_of(examples):
        terms(network, loss, of_loss, t, batch[1], batch[2])


def expect_weighed(loss: Loss, t: Array, y: Array) -> None:
    """Raise ValueError if a user's loss ignores weights: J is the same whichever half of the rows has them, and should not be."""
    shape = loss.examples(y)
    half = shape[0] // 2 if shape else 0
    if half == 0:
        return
    backend = backend_of(t)
    first, second = slice(half), slice(half, 2 * half)

    def J(rows: slice, weights: Array | None = None) -> float:
        value, _ = run(loss, EMPTY, (t[rows, ...], y[rows, ...], weights), Mode())
        expect_scalar(loss, value)
        return float(backend.to_host(value))

    weights = backend.zeros((2 * half, *shape[1:]), t.dtype)
    weights[first, ...] = 1
    both = slice(2 * half)
    if J(both, weights) == J(both, 1 - weights) and J(first) != J(second):
        raise ValueError(
            f"{show(loss)} ignores the weights: J is the same whichever rows have them; compute J with "
            "bpcore.functional.losses.weighted_mean(ℓ, weights), or leave the weights out"
        )


@contextmanager
def trial_of(examples: Arrays | Batches) -> Iterator[None]:
    """An error in the first rows says that it comes from them, and what was given."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not isinstance(examples, Arrays) or type(error) not in (TypeError, ValueError):
            raise
        X = examples.inputs[0]
        if X.ndim == 1 and ("features" in str(error) or kind(X) == "real floating"):
            swapped = "; or are X and y swapped?" if examples.y.shape[1:] > (1,) else ""
            raise ValueError(
                f"{examples.name}: X needs rows and features, got shape {tuple(X.shape)}; "
                f"one feature is X.reshape(-1, 1), and of a table X.to_frame(){swapped}"
            ) from error
        raise type(error)(f"{error} (tried on the first {min(2, examples.n)} rows of {examples!r})") from error


def extremes(inputs: tuple[Array, ...]) -> list[int]:
    """The indices of the rows with the smallest and the largest value of each integer input."""
    hosts = [backend_of(x).to_host(x) for x in inputs if kind(x) == "integral" and 0 not in x.shape]
    return [int(at) // (x.size // x.shape[0]) for x in hosts for at in (x.argmin(), x.argmax())]


@quiet
def measure(network: Network, loss: Loss, metrics: list[Metric], examples: Arrays | Batches, batch_size: int) -> dict[str, float]:
    """The loss J and the metrics over all examples, by name. The host waits for the device at the end, and every LOOK_EVERY."""
    backend = network.backend
    metrics = [fresh(metric).for_loss(loss) for metric in metrics]
    totals: list[Any] = []  # on the host: the sums of the loss, then those of each metric
    sums: list[Any] = []  # on the device: the sums of the batches since
    with closing(in_order(examples, batch_size)) as reading:
        for number, (inputs, y, weights) in enumerate(reading, 1):
            t = network(inputs, mode=Mode(look=not backend.asynchronous, saving=False))
            labels = host_data(y) if isinstance(examples, Batches) else None  # labels in arrays are checked already
            if labels is not None:
                loss.expect(EMPTY, t, network.place(y, name="y"), network.place_weights(weights))
                loss.check_labels(labels, t.shape[-1] if t.ndim else 1)
                for metric in metrics:
                    metric.check_labels(labels, tuple(t.shape))
            sums = joined(metrics, sums, terms(network, loss, metrics, t, y, weights))
            if number % LOOK_EVERY == 0:
                totals, sums = joined(metrics, totals, on_host(backend, sums)), []
    totals = joined(metrics, totals, on_host(backend, sums))
    to_host = get_backend("numpy").to_host
    (J_sum, weight), *of_metrics = [[to_host(x).tolist() for x in of_one] for of_one in totals]
    if not weight > 0:
        raise ValueError(f"{examples.name}: all weights are zero; give at least one example a weight above zero")
    values = {metric.name: metric.value(*of_one) for metric, of_one in zip(metrics, of_metrics, strict=True)}
    return {"loss": J_sum / weight, **values}


def fresh(metric: Metric) -> Metric:
    """A copy of a user's metric, so that what it stores does not outlive a measurement; bpcore's own store nothing."""
    if is_ours(type(metric)):
        return metric
    with suppress(Exception):  # it holds what cannot be copied
        return copy.deepcopy(metric)
    return metric


def terms(network: Network, loss: Loss, metrics: Sequence[Metric], t: Array, y: Any, weights: Any) -> list[Any]:
    """(J Σ w, Σ w), then the terms of each metric, for outputs t of one batch: float64, where the device has it.

    Where the labels have the outputs' shape, both are float64: the square of 1e20 would be infinite in float32. Weights are
    divided by the largest of the batch, so that those of 1e30 do not make J infinite.
    """
    backend, xp = network.backend, network.backend.xp
    of_network = network.place(y, name="y")
    exact = is_floating(of_network) and "float64" in backend.dtypes
    y = backend.asarray(y, "float64", name="y") if exact else of_network
    if tuple(t.shape) == tuple(y.shape):
        of_network, t = y, wide(t)
    scale: Any = 1.0
    w = full = network.place_weights(weights)
    if full is not None:
        full = full if host_data(weights) is None or "float64" not in backend.dtypes else backend.asarray(weights, "float64")
        largest = xp.max(full)
        scale = xp.where(largest > 0, largest, xp.ones_like(largest))
        w = xp.astype(full / scale, t.dtype)
        scale = wide(scale)
    J, _ = run(loss, EMPTY, (t, of_network, w), Mode())
    expect_scalar(loss, J)
    weight = loss.total_weight(of_network, w)
    weight = (weight if isinstance(weight, (int, float)) else wide(weight)) * scale
    result: list[Any] = [(wide(J) * weight, weight)]
    if metrics:
        full = backend.zeros(loss.examples(of_network), t.dtype) + 1 if full is None else full
        result += [expect_terms(metric, metric.terms(t, y, full)) for metric in metrics]
    return result


def joined(metrics: Sequence[Metric], old: list[Any], new: list[Any]) -> list[Any]:
    """The terms of two sets of batches together; either may be empty."""
    if not old or not new:
        return old or new
    (J_old, weight_old), (J_new, weight_new) = old[0], new[0]
    of_metrics = (metric.join(a, b) for metric, a, b in zip(metrics, old[1:], new[1:], strict=True))
    return [(J_old + J_new, weight_old + weight_new), *of_metrics]


def on_host(backend: Backend, sums: list[Any]) -> list[Any]:
    """The terms as float64 of NumPy."""
    host = get_backend("numpy")
    return [
        tuple(host.asarray(x if isinstance(x, (int, float)) else backend.to_host(x), "float64") for x in of_one)
        for of_one in sums
    ]
