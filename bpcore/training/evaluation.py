"""Loss and metrics over a data set, and whether data fit a network and a loss."""

from __future__ import annotations

from typing import Any

from bpcore.backend import backend_of
from bpcore.module import EMPTY, Mode
from bpcore.modules import Loss
from bpcore.network import Network
from bpcore.training.data import Arrays, Batches
from bpcore.training.metrics import Metric


def check_data(network: Network, loss: Loss, given: Arrays | Batches) -> int:
    """The door of `fit`: raise unless values are finite, shapes fit the network and the loss, and labels are in range.

    Returns the number of outputs.
    """
    given.check()
    inputs, y, weights = next(iter(given.in_order(2)))
    u = network(inputs)
    loss.expect(EMPTY, u, network.place(y), None if weights is None else network.place(weights))
    n_outputs = u.shape[-1] if u.ndim else 1
    check_labels(loss, given.y if isinstance(given, Arrays) else y, n_outputs)
    return n_outputs


def check_labels(loss: Loss, y: Any, n_outputs: int) -> None:
    """Raise unless y, wherever it lies, holds labels of the loss for n_outputs outputs."""
    loss.check_labels(backend_of(y).to_host(y), n_outputs)


def evaluate(network: Network, loss: Loss, metrics: list[Metric], given: Arrays | Batches, batch_size: int) -> dict[str, float]:
    """The loss and the metrics by name. The device is waited for once, at the end."""
    backend, totals = network.backend, None
    for inputs, y, weights in given.in_order(batch_size):
        y, weights = network.place(y), None if weights is None else network.place(weights)
        t = network(inputs)
        J, _ = loss.forward(EMPTY, t, y, weights, mode=Mode())
        share = loss.total_weight(y, weights)
        sums = [J * share, share]
        if metrics:
            w = backend.zeros(loss.examples(y), t.dtype) + 1 if weights is None else weights
            sums.extend(term for metric in metrics for term in metric.terms(t, y, w))
        totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
    numbers = [float(x if isinstance(x, (int, float)) else backend.to_host(x)) for x in totals or ()]
    if not numbers[1] > 0:
        raise ValueError(f"{given.name}: all weights are zero; give at least one example a weight above zero")
    figures = {"loss": numbers[0] / numbers[1]}
    start = 2
    for metric in metrics:
        figures[metric.name] = metric.value(*numbers[start : start + metric.n_terms])
        start += metric.n_terms
    return figures
