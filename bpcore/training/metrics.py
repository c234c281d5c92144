"""The metrics of regression and of classification, and the choice of them by name."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from typing import Any

from bpcore.arguments import show, whole
from bpcore.array import Array, device, is_floating, kind, namespace
from bpcore.functional.activations import sigmoid
from bpcore.functional.losses import logistic_per_example, total
from bpcore.functional.softmax import log_softmax, softmax
from bpcore.modules import CrossEntropy, Huber, LogisticLoss, Loss, SquaredError
from bpcore.training.metric import Metric, mean_of_outputs, sum_of_examples, wide

__all__ = ["MAE", "MSE", "R2", "RMSE", "Accuracy", "LogLoss", "TopK"]


def listed(x: Any) -> list[Any]:
    """A number as a list."""
    return x if isinstance(x, list) else [x]


class OfLoss(Metric):
    """Base of the metrics for which the loss decides what outputs and labels mean."""

    loss: Loss | None = None

    def for_loss(self, loss: Loss) -> Metric:
        other = copy.copy(self)
        other.loss = loss
        return other


class OfNumbers(OfLoss):
    """Base of the metrics of regression. y: numbers of t's shape; nothing is broadcast.

    h(x) is t; with a loss that takes logits, such as LogisticLoss or CrossEntropy, the probabilities of its labels.
    """

    def numbers(self, t: Array, y: Array) -> tuple[Array, Array]:
        """h(x) and y in float64, or an error unless they have one shape."""
        self.expect(tuple(t.shape) == tuple(y.shape), t, y)
        t = self.values(wide(t))
        return t, namespace(t).astype(y, t.dtype, copy=False)

    def values(self, t: Array) -> Array:
        """h(x) of outputs t: what the loss says they stand for. The host does not look for NaN, as `loss.probabilities` does."""
        meant = Loss.probabilities if self.loss is None else type(self.loss).probabilities
        if meant is LogisticLoss.probabilities:
            return sigmoid(t)
        if meant is CrossEntropy.probabilities:
            return softmax(t, -1)
        return t if self.loss is None or meant is Loss.probabilities else wide(self.loss.probabilities(t))


class MSE(OfNumbers):
    """The mean of (y - h(x))², without the ½ of the loss, over examples and outputs; of probabilities, the Brier score.

    (8.1)
    """

    name = "mse"
    higher = False

    def scores(self, t: Array, y: Array) -> Array:
        t, y = self.numbers(t, y)
        return mean_of_outputs((t - y) * (t - y))


class RMSE(OfNumbers):
    """The square root of the MSE of each output, in the labels' unit; the mean over the outputs."""

    name = "rmse"
    higher = False

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        t, y = self.numbers(t, y)
        return sum_of_examples((t - y) * (t - y), w), namespace(w).sum(wide(w))

    def value(self, *sums: Any) -> float:
        roots = [math.sqrt(s / sums[1]) for s in listed(sums[0])]
        return sum(roots) / len(roots)


class MAE(OfNumbers):
    """The mean of |y - h(x)| over examples and outputs."""

    name = "mae"
    higher = False

    def scores(self, t: Array, y: Array) -> Array:
        t, y = self.numbers(t, y)
        return mean_of_outputs(namespace(t).abs(t - y))


class R2(OfNumbers):
    """1 - Σ w (y - h(x))² / Σ w (y - ȳ)² of each output, ȳ the mean of its labels; then the mean over the outputs.

    multioutput: as in scikit-learn, "uniform_average", or "variance_weighted": the mean weighted by Σ w (y - ȳ)², so that the
    sums of all outputs are pooled; the name is then r2_variance_weighted. An output whose labels are constant has no R²: it is
    NaN, and so is a mean with it, where scikit-learn says 1 or 0; "variance_weighted" leaves such an output out, as scikit-learn
    does, and is NaN if all are constant.
    """

    higher = True

    def __init__(self, multioutput: str = "uniform_average"):
        if not isinstance(multioutput, str) or multioutput not in ("uniform_average", "variance_weighted"):
            raise ValueError(f"R2's multioutput must be 'uniform_average' or 'variance_weighted', got {show(multioutput)}")
        self.multioutput = multioutput
        self.name = "r2" if multioutput == "uniform_average" else f"r2_{multioutput}"

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        t, y = self.numbers(t, y)
        xp = namespace(t)
        weight = total(wide(w))  # at least the smallest normal number: the weights of a batch may all be zero
        residual = sum_of_examples((t - y) * (t - y), w)
        mean = sum_of_examples(y, w) / weight
        spread = sum_of_examples((y - mean) * (y - mean), w)
        counts = w > 0 if y.ndim == w.ndim else xp.expand_dims(w > 0, axis=-1)
        axes = tuple(range(w.ndim))
        low = xp.min(xp.where(counts, y, xp.full_like(y, math.inf)), axis=axes)
        high = xp.max(xp.where(counts, y, xp.full_like(y, -math.inf)), axis=axes)
        return residual, weight, mean, spread, low, high

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """Combine means and spreads of two sets of batches; Σ y² - (Σ y)² / n would lose digits.

        Chan et al., 1979
        """
        (residual_a, a, mean_a, spread_a, low_a, high_a), (residual_b, b, mean_b, spread_b, low_b, high_b) = old, new
        xp = namespace(mean_a)
        weight, apart = a + b, mean_b - mean_a
        spread = spread_a + spread_b + apart * apart * (a * (b / weight))
        mean = mean_a + apart * (b / weight)
        return residual_a + residual_b, weight, mean, spread, xp.minimum(low_a, low_b), xp.maximum(high_a, high_b)

    def value(self, *sums: Any) -> float:
        residual, _, _, spread, low, high = map(listed, sums)
        # rounding may leave a spread to constant labels: their extremes tell
        varies = [s > 0 and a < b for s, a, b in zip(spread, low, high, strict=True)]
        if self.multioutput == "uniform_average":
            return sum(1 - r / s if v else math.nan for r, s, v in zip(residual, spread, varies, strict=True)) / len(spread)
        pooled = sum(s for s, v in zip(spread, varies, strict=True) if v)
        return 1 - sum(r for r, v in zip(residual, varies, strict=True) if v) / pooled if pooled > 0 else math.nan


class OfClasses(OfLoss):
    """Base of the metrics of classification. t: logits. y: class indices or probability rows, or a label 0 or 1 for each logit.

    With LogisticLoss, each logit has a label; with CrossEntropy, labels are of classes. With another loss, y of t's shape has
    labels of the logits if there is one logit an example, or if y is not floating.
    """

    def each_logit(self, t: Array, y: Array) -> bool:
        """Whether y has a label for each logit in t; otherwise a label is one of k classes. An error if y does not fit."""
        same = tuple(t.shape) == tuple(y.shape)
        if isinstance(self.loss, (LogisticLoss, CrossEntropy, SquaredError, Huber)):
            each = isinstance(self.loss, LogisticLoss)
        else:
            each = same and (t.ndim == 1 or t.shape[-1] == 1 or not is_floating(y))
        rows = same and t.ndim > 1 and t.shape[-1] > 1
        self.expect(same if each else rows or (t.ndim > 0 and tuple(t.shape[:-1]) == tuple(y.shape) and not is_floating(y)), t, y)
        return each

    def check_labels(self, y: Any, shape: tuple[int, ...]) -> None:
        if isinstance(self.loss, (LogisticLoss, CrossEntropy)) or not y.size:  # the loss checks them
            return
        one = len(shape) == 1 or shape[-1] == 1
        numbers = isinstance(self.loss, (SquaredError, Huber))
        if y.ndim < len(shape):
            fits = not numbers and y.dtype.kind != "f"
        elif one or (y.dtype.kind != "f" and not numbers):
            fits = not numbers and bool(abs(y.astype(float)).max() <= 1)
        else:
            fits = bool(y.min() >= 0 and abs(y.sum(axis=-1) - 1).max() <= 1e-3)
        if not fits:
            raise ValueError(
                f"metric {self.name} needs labels of classes, got values from {y.min()} to {y.max()} of {y.dtype} with "
                f"{type(self.loss).__name__}; choose a metric of numbers, such as mse, or a loss of classes, such as CrossEntropy"
            )


def index_of(y: Array, t: Array) -> Array:
    """Class indices, int64: y itself, or the index of the largest entry of each row, for logits t."""
    xp = namespace(y)
    return xp.astype(xp.argmax(y, axis=-1) if y.ndim == t.ndim else y, xp.int64)


def positive(y: Array) -> Array:
    """Whether the label of a logit is 1: booleans."""
    return y > 0.5 if is_floating(y) else y if kind(y) == "bool" else y > 0


class Accuracy(OfClasses):
    """The fraction of examples whose class has the largest logit, the first of equal ones.

    For labels 0 and 1 of each logit, the fraction where t > 0 agrees with y; of several labels of an example all must agree, as
    in scikit-learn's accuracy_score. An example with a NaN logit counts as wrong.
    """

    name = "accuracy"
    higher = True

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if self.each_logit(t, y):
            right = ((t > 0) == positive(y)) & (t == t)  # not NaN
            return xp.astype(right if t.ndim <= 1 else xp.all(right, axis=-1), t.dtype)
        right = (xp.argmax(t, axis=-1) == index_of(y, t)) & xp.all(t == t, axis=-1)  # no NaN
        return xp.astype(right, t.dtype)


class TopK(OfClasses):
    """The fraction of examples whose class is among the k largest logits.

    Of equal logits, those of higher classes come first, as in scikit-learn's top_k_accuracy_score. A NaN logit counts as larger
    than others, and an example whose own logit is NaN counts as wrong.
    """

    higher = True

    def __init__(self, k: int = 5):
        self.k = whole("k", k)
        self.name = f"top_{self.k}"

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        self.expect(not self.each_logit(t, y), t, y)
        rows = xp.reshape(t, (-1, t.shape[-1]))
        index = xp.reshape(index_of(y, t), (-1, 1))
        logit = xp.take_along_axis(rows, index, axis=-1)  # of the example's own class
        later = xp.expand_dims(xp.arange(rows.shape[1], dtype=xp.int64, device=device(t)), axis=0) > index
        ahead = ~(rows <= logit) | ((rows == logit) & later)
        among = (xp.sum(xp.astype(ahead, xp.int64), axis=-1) < self.k) & (logit == logit)[:, 0]  # not NaN
        scores: Array = xp.reshape(xp.astype(among, t.dtype), tuple(t.shape[:-1]))
        return scores


class LogLoss(OfClasses):
    """The mean of -log φ_y from logits, φ = softmax(t); for labels 0 and 1 of each logit, the logistic loss, summed over them.

    Logits need no clipping: a finite logit has a finite loss.
    """

    name = "log_loss"
    higher = False

    def check_labels(self, y: Any, shape: tuple[int, ...]) -> None:
        if isinstance(self.loss, (SquaredError, Huber)):
            raise ValueError(f"metric log_loss needs logits, and {type(self.loss).__name__}'s outputs are none; choose another")
        super().check_labels(y, shape)

    def scores(self, t: Array, y: Array) -> Array:
        xp = namespace(t)
        if self.each_logit(t, y):
            return logistic_per_example(t, xp.astype(y, t.dtype))
        log_phi: Array = log_softmax(t, -1)
        if y.ndim == t.ndim:
            y = xp.astype(y, t.dtype)
            expected: Array = xp.sum(xp.where(y == 0, xp.zeros_like(y), y * log_phi), axis=-1)
            return -expected
        log_phi_y: Array = xp.take_along_axis(log_phi, xp.expand_dims(xp.astype(y, xp.int64), axis=-1), axis=-1)
        return -log_phi_y[..., 0]


METRICS = {"accuracy": Accuracy, "mse": MSE, "rmse": RMSE, "mae": MAE, "r2": R2, "log_loss": LogLoss}


def metric(chosen: Any) -> Metric:
    """The metric with the name `chosen`, or `chosen` itself if it is a Metric."""
    if isinstance(chosen, Metric):
        return chosen
    if isinstance(chosen, str) and chosen in METRICS:
        return METRICS[chosen]()
    raise ValueError(f"a metric must be one of {', '.join(METRICS)}, or an object such as bp.TopK(5); got {show(chosen)}")


def chosen_metrics(chosen: Any) -> list[Metric]:
    """The metrics: names and objects, or one of them, or None. ValueError unless each has a name of its own, a column's."""
    if not isinstance(chosen, Iterable) or isinstance(chosen, str):
        chosen = () if chosen is None else (chosen,)
    metrics = [metric(one) for one in chosen]
    names = ["loss"]
    for one in metrics:
        if not isinstance(one.name, str) or not re.fullmatch(r"[\w.@%+-]+", one.name):
            raise ValueError(f"{type(one).__name__}'s name must be a word, for the history's columns, got {show(one.name)}")
        if one.name in names:
            raise ValueError(f"metrics must have different names, none of them loss; got {show(one.name)} again; rename one")
        names.append(one.name)
    return metrics
