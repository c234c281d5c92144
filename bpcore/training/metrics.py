"""Metrics: sums over batches on the device, combined on the host at the end."""

from __future__ import annotations

import math
from typing import Any

from bpcore.arguments import show, whole
from bpcore.array import Array, is_floating, namespace
from bpcore.functional.losses import logistic_per_example, total
from bpcore.functional.softmax import log_softmax

__all__ = ["MAE", "MSE", "R2", "RMSE", "Accuracy", "LogLoss", "Metric", "TopK"]


class Metric:
    """A number measured over a data set, in evaluation mode. To write one, subclass this.

    name: the history's columns are training_<name> and test_<name>.

    A metric that is a mean over examples defines `scores`. Any other metric defines `terms`, the sums of one batch; `value`,
    which computes the metric from the sums of all batches; and `join`, if the terms of two batches do not simply add.

    t: the network's outputs (n, ...). y: the labels, as the loss takes them: class indices, probability rows, or numbers of t's
    shape. Both are arrays on the network's device. Only `value` gets Python numbers; the other methods must not look at values,
    since the host would wait for the device: no float(), no `if` on an array.

    >>> class Within(bp.Metric):
    ...     name = "within"
    ...     def scores(self, t, y):
    ...         xp = bp.backend_of(t).xp
    ...         return xp.astype(xp.max(xp.abs(t - y), axis=-1) < 0.5, t.dtype)
    >>> trainer = bp.Trainer(bp.Network(bp.Linear(2, 1)), bp.SquaredError(), bp.SGD(), metrics=[Within()])
    >>> trainer.evaluate((np.zeros((4, 2)), np.asarray([[0.1], [0.2], [0.7], [0.3]])))["within"]
    0.75
    """

    name = ""

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        """The sums of one batch, scalar arrays: Σ w s and Σ w for scores s. w: the weight of each example, 1 by default."""
        xp = namespace(t)
        return xp.sum(self.scores(t, y) * w), xp.sum(w)

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """The terms of two sets of batches together: by default their sums."""
        return tuple(a + b for a, b in zip(old, new, strict=True))

    def scores(self, t: Array, y: Array) -> Array:
        """The score of each example, of t's dtype, shaped like t without its last axis (like t where it has one axis)."""
        raise TypeError(f"{type(self).__name__} must define scores(self, t, y)")

    def value(self, *sums: float) -> float:
        """The metric, from the terms of all batches as Python numbers: by default the mean score Σ w s / Σ w."""
        return sums[0] / sums[1]

    def expect(self, fits: bool, t: Array, y: Array) -> None:
        """Raise a ValueError that names the metric and both shapes, unless `fits`. For `scores` and `terms`, to check shapes."""
        if not fits:
            got = f"outputs {tuple(t.shape)} and labels {tuple(y.shape)} of {y.dtype}"
            raise ValueError(f"metric {self.name} does not fit {got}; choose another metric or reshape the labels")


def classes(y: Array) -> Array:
    """Class indices: y itself, or the index of the largest entry of each probability row."""
    indices: Array = namespace(y).argmax(y, axis=-1) if is_floating(y) else y
    return indices


def of_logits(t: Array, y: Array) -> bool:
    """Whether y has a label 0 or 1 for each logit in t, as LogisticLoss takes them; otherwise a label is one of k classes."""
    return tuple(t.shape) == tuple(y.shape) and (t.ndim == 1 or t.shape[-1] == 1 or not is_floating(y))


class Accuracy(Metric):
    """The fraction of examples whose class has the largest logit; for labels 0 and 1, the fraction where t > 0 agrees with y."""

    name = "accuracy"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if of_logits(t, y):
            return mean_of_outputs(xp.astype((t > 0) == (y > 0.5 if is_floating(y) else xp.astype(y, xp.bool)), t.dtype))
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        scores: Array = xp.astype(xp.argmax(t, axis=-1) == xp.astype(classes(y), xp.int64), t.dtype)
        return scores


class TopK(Metric):
    """The fraction of examples whose class is among the k largest logits, ties included."""

    def __init__(self, k: int = 5):
        self.k = whole("k", k)
        self.name = f"top_{self.k}"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        rows = xp.reshape(t, (-1, t.shape[-1]))
        index = xp.reshape(xp.astype(classes(y), xp.int64), (-1, 1))
        logit = xp.take_along_axis(rows, index, axis=-1)  # of the example's own class
        larger = xp.sum(xp.astype(rows > logit, t.dtype), axis=-1)
        scores: Array = xp.reshape(xp.astype(larger < self.k, t.dtype), t.shape[:-1])
        return scores


class MSE(Metric):
    """The mean of (y - h(x))², without the ½ of the loss, over examples and outputs.

    (8.1)
    """

    name = "mse"

    def scores(self, t: Array, y: Array) -> Array:
        self.expect(t.shape == y.shape, t, y)
        return mean_of_outputs((t - y) * (t - y))


class RMSE(MSE):
    """The square root of MSE, in the labels' unit."""

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
        weight = total(w)  # at least the smallest normal number: the weights of a batch may all be zero
        residual = xp.sum(mean_of_outputs((t - y) * (t - y)) * w)
        mean = xp.sum(mean_of_outputs(y) * w) / weight
        spread = xp.sum(mean_of_outputs((y - mean) * (y - mean)) * w)
        return residual, weight, mean, spread

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """Combine means and spreads of two sets of batches; Σ y² - (Σ y)² / n would lose digits.

        Chan et al., 1979
        """
        (residual_a, a, mean_a, spread_a), (residual_b, b, mean_b, spread_b) = old, new
        weight, apart = a + b, mean_b - mean_a
        spread = spread_a + spread_b + apart * apart * (a * b / weight)
        return residual_a + residual_b, weight, mean_a + apart * (b / weight), spread

    def value(self, *sums: float) -> float:
        residual, _, _, spread = sums
        return 1 - residual / spread if spread > 0 else math.nan


class LogLoss(Metric):
    """The mean of -log φ_y from logits, φ = softmax(t); for labels 0 and 1, the logistic loss."""

    name = "log_loss"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if of_logits(t, y):
            return logistic_per_example(t, xp.astype(y, t.dtype))
        self.expect(t.ndim > 0 and t.shape[:-1] == classes(y).shape, t, y)
        log_phi: Array = log_softmax(t, -1)
        if is_floating(y):
            expected: Array = xp.sum(y * log_phi, axis=-1)
            return -expected
        log_phi_y: Array = xp.take_along_axis(log_phi, xp.expand_dims(xp.astype(y, xp.int64), axis=-1), axis=-1)
        return -log_phi_y[..., 0]


def mean_of_outputs(s: Array) -> Array:
    """The mean over the outputs of each example."""
    mean: Array = s if s.ndim <= 1 else namespace(s).mean(s, axis=-1)
    return mean


METRICS = {metric.name: metric for metric in (Accuracy, MSE, RMSE, MAE, R2, LogLoss)}


def metric(chosen: Any) -> Metric:
    """The metric with the name `chosen`, or `chosen` itself if it is a Metric."""
    if isinstance(chosen, Metric):
        return chosen
    if isinstance(chosen, str) and chosen in METRICS:
        return METRICS[chosen]()
    raise ValueError(f"a metric must be one of {', '.join(METRICS)}, or an object such as bp.TopK(5); got {show(chosen)}")
