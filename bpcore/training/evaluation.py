"""Measure the loss and the metrics over a data set; check that data fit a network and a loss."""

from __future__ import annotations

from typing import Any

from bpcore.array import Array, kind
from bpcore.backend import backend_of
from bpcore.context import quiet
from bpcore.library import host_data
from bpcore.module import EMPTY, Mode
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.training.data import Arrays, Batches
from bpcore.training.metrics import Metric


@quiet
def check_data(network: Network, loss: Loss, examples: Arrays | Batches) -> None:
    """Raise unless values are finite, shapes fit the network and the loss, and labels and ids are in range.

    `fit` calls this once, before it starts. Arrays are checked as a whole; of an iterable of batches the first is checked here,
    and the others when they are read.
    """
    examples.check()
    inputs, y, weights = examples.first()
    labels = examples.y if isinstance(examples, Arrays) else y
    weights = network.place_weights(weights)
    network.forward(loss, network.inputs(inputs), network.place(y), weights, Mode(look=True), backend_of(labels).to_host(labels))
    if isinstance(examples, Arrays):
        for row in extremes(examples.inputs):
            network(tuple(x[row : row + 1, ...] for x in examples.inputs))  # an id out of an embedding's range is an error


def extremes(inputs: tuple[Array, ...]) -> list[int]:
    """The indices of the rows with the smallest and the largest value of each integer input."""
    hosts = [backend_of(x).to_host(x) for x in inputs if kind(x) == "integral" and 0 not in x.shape]
    return [int(at) // (x.size // x.shape[0]) for x in hosts for at in (x.argmin(), x.argmax())]


@quiet
def measure(network: Network, loss: Loss, metrics: list[Metric], examples: Arrays | Batches, batch_size: int) -> dict[str, float]:
    """The loss J and the metrics over all examples, by name. The host waits for the device once, at the end."""
    backend = network.backend
    totals: list[Any] = []  # the sums of the loss, then those of each metric
    for inputs, y, weights in examples.in_order(batch_size):
        labels = host_data(y) if isinstance(examples, Batches) else None  # labels in arrays are checked already
        y, weights = network.place(y), network.place_weights(weights)
        t = network(inputs, mode=Mode(look=not backend.asynchronous, saving=False))
        if labels is not None:
            loss.expect(EMPTY, t, y, weights)
            loss.check_labels(labels, t.shape[-1] if t.ndim else 1)
        J, _ = loss.forward(EMPTY, t, y, weights, mode=Mode())
        weight = loss.total_weight(y, weights)
        sums: list[Any] = [(J * weight, weight)]
        if metrics:
            w = backend.zeros(loss.examples(y), t.dtype) + 1 if weights is None else weights
            sums += [metric.terms(t, y, w) for metric in metrics]
        if totals:
            joined = (metric.join(old, new) for metric, old, new in zip(metrics, totals[1:], sums[1:], strict=True))
            sums = [(totals[0][0] + sums[0][0], totals[0][1] + weight), *joined]
        totals = sums
    (J_sum, total), *of_metrics = [
        [float(x if isinstance(x, (int, float)) else backend.to_host(x)) for x in terms] for terms in totals
    ]
    if not total > 0:
        raise ValueError(f"{examples.name}: all weights are zero; give at least one example a weight above zero")
    values = {metric.name: metric.value(*terms) for metric, terms in zip(metrics, of_metrics, strict=True)}
    return {"loss": J_sum / total, **values}
