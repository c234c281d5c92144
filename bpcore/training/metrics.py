"""Metrics: sums over batches on the device, put together on the host.

`terms(t, y, w)` gives scalars of one batch, t the network's outputs, w one weight an example; `join` puts batches
together, and `value` makes the number of the totals. Labels y of class index or probability rows, or of t's shape for regression.
"""

from __future__ import annotations

import math
from typing import Any

from bpcore.backend import is_floating, namespace
from bpcore.functional.activations import log_softmax
from bpcore.functional.losses import per_example, total
from bpcore.module import Array


class Metric:
    """What metrics share. `name` is the history's column."""

    name = ""

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        """The sums of one batch: by default Σ w s and Σ w, s being the score of each example."""
        xp = namespace(t)
        return xp.sum(self.scores(t, y) * w), xp.sum(w)

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """The terms of two sets of batches as those of both."""
        return tuple(a + b for a, b in zip(old, new, strict=True))

    def expect(self, right: bool, t: Array, y: Array) -> None:
        """A ValueError unless outputs and labels are shaped as this metric needs them."""
        if not right:
            got = f"outputs {tuple(t.shape)} and labels {tuple(y.shape)} of {y.dtype}"
            raise ValueError(f"metric {self.name} does not fit {got}; choose another metric or reshape the labels")

    def scores(self, t: Array, y: Array) -> Array:
        """One number an example."""
        raise TypeError(f"{type(self).__name__} must define scores(self, t, y)")

    def value(self, *sums: float) -> float:
        """The metric, from the totals."""
        return sums[0] / sums[1]


def classes(y: Array) -> Array:
    """Class indices: y itself, or the largest of each probability row."""
    return namespace(y).argmax(y, axis=-1) if is_floating(y) else y


def of_logits(t: Array, y: Array) -> bool:
    """Whether t are logits with a label 0 or 1 each, as LogisticLoss takes them, rather than one of k classes."""
    return tuple(t.shape) == tuple(y.shape) and (t.ndim == 1 or t.shape[-1] == 1 or not is_floating(y))


class Accuracy(Metric):
    """The part of the examples whose class is right: the largest logit. For logits with labels 0 and 1, t > 0."""

    name = "accuracy"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if of_logits(t, y):
            return mean_of_outputs(xp.astype((t > 0) == (y > 0.5 if is_floating(y) else xp.astype(y, xp.bool)), t.dtype))
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        return xp.astype(xp.argmax(t, axis=-1) == xp.astype(classes(y), xp.int64), t.dtype)


class TopK(Metric):
    """The part of the examples whose class is among the k largest logits; a tie counts for the example."""

    def __init__(self, k: int = 5):
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number from 1 up, got {k!r}")
        self.k, self.name = k, f"top_{k}"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        rows = xp.reshape(t, (-1, t.shape[-1]))
        index = xp.reshape(xp.astype(classes(y), xp.int64), (-1, 1))
        own = xp.take_along_axis(rows, index, axis=-1)  # the logit of the right class
        larger = xp.sum(xp.astype(rows > own, t.dtype), axis=-1)
        return xp.reshape(xp.astype(larger < self.k, t.dtype), t.shape[:-1])


class MSE(Metric):
    """The mean of (y - h(x))², without the ½ of the loss, over examples and outputs.        (8.1)"""

    name = "mse"

    def scores(self, t: Array, y: Array) -> Array:
        self.expect(t.shape == y.shape, t, y)
        return mean_of_outputs((t - y) * (t - y))


class RMSE(MSE):
    """The root of MSE, in the labels' unit."""

    name = "rmse"

    def value(self, *sums: float) -> float:
        return math.sqrt(sums[0] / sums[1])


class MAE(Metric):
    """The mean of |y - h(x)| over examples and outputs."""

    name = "mae"

    def scores(self, t: Array, y: Array) -> Array:
        self.expect(t.shape == y.shape, t, y)
        return mean_of_outputs(namespace(t).abs(t - y))


class R2(Metric):
    """1 - Σ w (y - h(x))² / Σ w (y - ȳ)², ȳ the mean over all examples and outputs; NaN where the labels are constant."""

    name = "r2"

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        self.expect(t.shape == y.shape, t, y)
        xp = namespace(t)
        t, y, w = (xp.astype(x, xp.float64) for x in (t, y, w))
        weight = total(w)  # above zero: a batch may have none
        residual = xp.sum(mean_of_outputs((t - y) * (t - y)) * w)
        mean = xp.sum(mean_of_outputs(y) * w) / weight
        spread = xp.sum(mean_of_outputs((y - mean) * (y - mean)) * w)
        return residual, weight, mean, spread

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """Means and spreads of two sets together; Σ y² - (Σ y)² / n would lose the digits.        Chan et al., 1979"""
        (residual_a, a, mean_a, spread_a), (residual_b, b, mean_b, spread_b) = old, new
        weight, apart = a + b, mean_b - mean_a
        spread = spread_a + spread_b + apart * apart * (a * b / weight)
        return residual_a + residual_b, weight, mean_a + apart * (b / weight), spread

    def value(self, *sums: float) -> float:
        residual, _, _, spread = sums
        return 1 - residual / spread if spread > 0 else math.nan


class LogLoss(Metric):
    """The mean of -log φ_y from logits, φ = softmax(t); for logits with labels 0 and 1, the logistic loss."""

    name = "log_loss"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if of_logits(t, y):
            y = xp.astype(y, t.dtype)
            return per_example(xp.maximum(t, xp.zeros_like(t)) - y * t + xp.log1p(xp.exp(-xp.abs(t))))
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        log_phi = log_softmax(t, -1)
        if is_floating(y):
            return -xp.sum(y * log_phi, axis=-1)
        own = xp.take_along_axis(log_phi, xp.expand_dims(xp.astype(y, xp.int64), axis=-1), axis=-1)
        return -xp.reshape(own, y.shape)


def mean_of_outputs(s: Array) -> Array:
    """The mean over the outputs of each example."""
    return s if s.ndim <= 1 else namespace(s).mean(s, axis=-1)


METRICS = {metric.name: metric for metric in (Accuracy, MSE, RMSE, MAE, R2, LogLoss)}


def metric(given: Any) -> Metric:
    """A metric, from itself or from its name."""
    if isinstance(given, Metric):
        return given
    if given in METRICS:
        return METRICS[given]()
    raise ValueError(f"a metric must be one of {', '.join(METRICS)}, or an object such as bp.TopK(5); got {given!r}")
