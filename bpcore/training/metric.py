"""The contract of a metric, and the sums that metrics are made of."""

from __future__ import annotations

from typing import Any

from bpcore.arguments import given, show
from bpcore.array import Array, namespace
from bpcore.backend import backend_of
from bpcore.library import is_array
from bpcore.modules import Loss

__all__ = ["Metric"]


class Metric:
    """A number measured over a data set, in evaluation mode. To write one, subclass this.

    name: the history's columns are training_<name> and test_<name>.

    A metric that is a mean over examples defines `scores`. Any other metric defines `terms`, the sums of one batch; `value`,
    which computes the metric from the sums of all batches; and `join`, if the terms of two batches do not simply add. Sums are
    float64, where the device has it. An example of weight 0 has no influence. Each measurement uses a copy of the metric.

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
    higher: bool | None = None  # whether larger is better; None if it is not known

    def __repr__(self) -> str:
        return f"{type(self).__name__}({given(self)})"

    def for_loss(self, loss: Loss) -> Metric:
        """This metric for outputs and labels of `loss`: itself, unless the loss decides what a label means."""
        return self

    def check_labels(self, y: Any, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the values of y, a NumPy array, suit the metric. shape: of the outputs of some examples."""

    def terms(self, t: Array, y: Array, w: Array) -> tuple[Array, ...]:
        """The sums of one batch: Σ w s and Σ w for scores s. w: the weight of each example, 1 by default.

        A term is a scalar array, or a vector with an entry for each output.
        """
        scores = self.scores(t, y)
        if not is_array(scores):
            raise TypeError(f"metric {self.name}: scores must be an array with a number for each example, got {show(scores)}")
        if tuple(scores.shape) != tuple(w.shape):
            got = f"{tuple(scores.shape)} for outputs {tuple(t.shape)}"
            raise ValueError(f"metric {self.name}: scores must have shape {tuple(w.shape)}, one an example, got {got}")
        return sum_of_examples(scores, w), namespace(w).sum(wide(w))

    def join(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        """The terms of two sets of batches together: by default their sums."""
        return tuple(a + b for a, b in zip(old, new, strict=True))

    def scores(self, t: Array, y: Array) -> Array:
        """The score of each example, of t's dtype, shaped like t without its last axis (like t where it has one axis)."""
        raise TypeError(f"{type(self).__name__} must define scores(self, t, y)")

    def value(self, *sums: Any) -> float:
        """The metric, from the terms of all batches: by default the mean score Σ w s / Σ w. A vector comes as a list."""
        return float(sums[0] / sums[1])

    def expect(self, fits: bool, t: Array, y: Array) -> None:
        """Raise a ValueError that names the metric and both shapes, unless `fits`. For `scores` and `terms`, to check shapes."""
        if not fits:
            got = f"outputs {tuple(t.shape)} and labels {tuple(y.shape)} of {y.dtype}"
            raise ValueError(f"metric {self.name} does not fit {got}; choose another metric or reshape the labels")


def expect_terms(metric: Metric, terms: Any) -> Any:
    """terms, or a TypeError unless they are a tuple of arrays."""
    if not isinstance(terms, (tuple, list)) or not all(is_array(x) or isinstance(x, (int, float)) for x in terms):
        raise TypeError(f"metric {metric.name}: terms must be a tuple of arrays, e.g. (sum,), got {show(terms)}")
    return terms


def wide(x: Array) -> Array:
    """x in float64; as it is on a device without float64."""
    backend = backend_of(x)
    return backend.xp.astype(x, backend.xp.float64, copy=False) if "float64" in backend.dtypes else x


def sum_of_examples(s: Array, w: Array) -> Array:
    """Σ w s over the examples, in float64, for each output where s has an axis of outputs. Where w is 0, s may be NaN."""
    xp, s, w = namespace(s), wide(s), wide(w)
    axes = tuple(range(w.ndim))
    if s.ndim > w.ndim:
        w = xp.expand_dims(w, axis=-1)
    return xp.sum(xp.where(w > 0, s, xp.zeros_like(s)) * w, axis=axes)


def mean_of_outputs(s: Array) -> Array:
    """The mean over the outputs of each example."""
    mean: Array = s if s.ndim <= 1 else namespace(s).mean(s, axis=-1)
    return mean
