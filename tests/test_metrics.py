"""Metrics against scikit-learn, far from zero, and where they do not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from runs import CLASSES, ROWS, Shift, trainer, unchanged

import bpcore as bp
from bpcore.functional.losses import weighted_mean
from bpcore.training.metrics import METRICS


def regression_outputs(columns: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    y = generator.standard_normal((ROWS, columns)) + 5
    return y + 0.5 * generator.standard_normal((ROWS, columns)), y


def logits(k: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    return generator.standard_normal((ROWS, k)), generator.integers(0, k, ROWS)


def probabilities(t: np.ndarray) -> np.ndarray:
    e = np.exp(t)
    return e / np.sum(e, axis=1, keepdims=True)


def one_logit() -> tuple[np.ndarray, np.ndarray]:
    t, y = logits(2)
    return t[:, :1], y[:, None]


def several_labels(k: int) -> tuple[np.ndarray, np.ndarray]:
    """k outputs, and a label 0 or 1 for each of them."""
    generator = np.random.default_rng(5)
    return 2 * generator.standard_normal((ROWS, k)), generator.integers(0, 2, (ROWS, k))


def of_each(w: np.ndarray | None, k: int) -> np.ndarray | None:
    """Weights of examples as those of their k outputs."""
    return None if w is None else np.repeat(w, k)


def sigmoid(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-t[:, 0]))


# metric, outputs and labels, what scikit-learn gives for them
SKLEARN = {
    "accuracy": ("accuracy", logits(), lambda m, t, y, w: m.accuracy_score(y, np.argmax(t, 1), sample_weight=w)),
    "accuracy, rows": (
        "accuracy",
        (logits()[0], np.eye(CLASSES)[logits()[1]]),
        lambda m, t, y, w: m.accuracy_score(np.argmax(y, 1), np.argmax(t, 1), sample_weight=w),
    ),
    "accuracy, one logit": (
        "accuracy",
        one_logit(),
        lambda m, t, y, w: m.accuracy_score(y[:, 0], t[:, 0] > 0, sample_weight=w),
    ),
    "accuracy, one axis": (
        "accuracy",
        (one_logit()[0][:, 0], one_logit()[1][:, 0].astype(float)),
        lambda m, t, y, w: m.accuracy_score(y, t > 0, sample_weight=w),
    ),
    **{
        f"top {k}": (
            bp.TopK(k),
            logits(7),
            lambda m, t, y, w, k=k: m.top_k_accuracy_score(y, t, k=k, labels=range(7), sample_weight=w),
        )
        for k in (1, 3, 6)
    },
    **{
        f"accuracy, {k} labels an example": (
            "accuracy",
            several_labels(k),
            lambda m, t, y, w: m.accuracy_score(y, t > 0, sample_weight=w),  # all labels of an example must be right
        )
        for k in (1, 3, ROWS)
    },
    "accuracy, true or false": (
        "accuracy",
        (several_labels(3)[0], several_labels(3)[1] > 0),
        lambda m, t, y, w: m.accuracy_score(y, t > 0, sample_weight=w),
    ),
    "accuracy, as many classes as examples": (
        "accuracy",
        logits(ROWS),
        lambda m, t, y, w: m.accuracy_score(y, np.argmax(t, 1), sample_weight=w),
    ),
    **{
        f"log loss, {k} labels an example": (
            "log_loss",
            several_labels(k),  # summed over them, as the loss is
            lambda m, t, y, w, k=k: k * m.log_loss(y.ravel(), 1 / (1 + np.exp(-t.ravel())), sample_weight=of_each(w, k)),
        )
        for k in (1, 3, ROWS)
    },
    "log loss, as many classes as examples": (
        "log_loss",
        logits(ROWS),
        lambda m, t, y, w: m.log_loss(y, probabilities(t), labels=range(ROWS), sample_weight=w),
    ),
    "log loss": ("log_loss", logits(), lambda m, t, y, w: m.log_loss(y, probabilities(t), sample_weight=w)),
    "log loss, one logit": ("log_loss", one_logit(), lambda m, t, y, w: m.log_loss(y[:, 0], sigmoid(t), sample_weight=w)),
    **{
        f"{name}, {columns} outputs": (
            name,
            regression_outputs(columns),
            lambda m, t, y, w, score=score: getattr(m, score)(y, t, sample_weight=w),
        )
        for name, score in (
            ("mse", "mean_squared_error"),
            ("mae", "mean_absolute_error"),
            ("rmse", "root_mean_squared_error"),
            ("r2", "r2_score"),
        )
        for columns in (1, 3)
    },
    "r2, pooled": (
        bp.R2("variance_weighted"),
        regression_outputs(3),
        lambda m, t, y, w: m.r2_score(y, t, sample_weight=w, multioutput="variance_weighted"),
    ),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", SKLEARN)
def test_metrics_equal_sklearn(name, weighted, backend):
    """Over batches that do not divide the examples; the network passes its input through."""
    metrics = pytest.importorskip("sklearn.metrics")
    metric, (t, y), expected = SKLEARN[name]
    w = np.random.default_rng(8).uniform(0, 2, ROWS) if weighted else None
    loss = bp.SquaredError() if y.dtype.kind == "f" else bp.CrossEntropy()
    if t.shape == y.shape and (y.dtype.kind != "f" or t.ndim == 1):
        loss = bp.LogisticLoss()
    run = trainer(Shift(), backend=backend.backend, loss=loss, metrics=[metric])
    given = tuple(backend.asarray(x) for x in ((t, y) if w is None else (t, y, w)))
    figures = run.evaluate(given, batch_size=7)
    assert list(figures) == ["loss", run.metrics[0].name]
    assert figures[run.metrics[0].name] == pytest.approx(expected(metrics, t, y, w), rel=1e-10)


def test_every_metric_is_held_against_sklearn():
    assert set(METRICS) < {name.partition(",")[0].replace(" ", "_") for name in SKLEARN}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [7, 8, ROWS])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_r2_of_labels_far_from_zero(weighted, size, seed, backend):
    """y = 1e8 + N(0, 1): Σ y² - n ȳ² would have no digit left. A batch of weight zero counts for nothing."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    y = 1e8 + generator.standard_normal((ROWS, 1))
    t, w = y + 0.5 * generator.standard_normal((ROWS, 1)), generator.uniform(0, 2, ROWS)
    w[:8], w[24:32] = 0.0, 0.0
    run = trainer(Shift(), backend=backend.backend, loss=bp.SquaredError(), metrics="r2")
    given = (t, y, w) if weighted else (t, y)
    expected = metrics.r2_score(y, t, sample_weight=w if weighted else None)
    assert 0.3 < expected < 0.95
    assert run.evaluate(given, batch_size=size)["r2"] == pytest.approx(expected, rel=1e-6)
    batches = [tuple(backend.asarray(x[i : i + size]) for x in given) for i in range(0, ROWS, size)]
    assert run.evaluate(batches)["r2"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "t", "y", "loss"),
    [
        *((name, (CLASSES, CLASSES), np.arange(CLASSES), bp.CrossEntropy()) for name in ("mse", "rmse", "mae", "r2")),
        *((name, (4, CLASSES), np.arange(4) % CLASSES, bp.CrossEntropy()) for name in ("mse", "rmse", "mae", "r2")),
    ],
)
def test_a_metric_that_does_not_fit(metric, t, y, loss, backend):
    """Class indices (n,) against outputs (n, n) would broadcast to a number that means nothing."""
    run = trainer(Shift(), backend=backend.backend, loss=loss, metrics=metric)
    got = rf"outputs \(2, {t[1]}\) and labels \(2,\) of \S*int64"  # two rows are looked at first
    with pytest.raises(ValueError, match=f"metric {metric} does not fit {got}; choose another metric or reshape the labels"):
        run.evaluate((np.ones(t), y))


def test_metrics_at_their_edges():
    """A constant has no R²; of equal logits the last comes first in top k, as in scikit-learn; one class is all."""
    run = trainer(Shift(), loss=bp.SquaredError(), metrics=["r2"])
    assert math.isnan(run.evaluate((np.zeros((4, 1)), np.ones((4, 1))))["r2"])
    run = trainer(Shift(), metrics=[bp.TopK(1), bp.TopK(99)])
    assert run.evaluate((np.zeros((4, 3)), np.asarray([0, 1, 2, 2])))["top_1"] == 0.5
    assert run.evaluate((np.zeros((4, 1)), np.zeros(4, "int64")), 3) == pytest.approx({"loss": 0, "top_1": 1, "top_99": 1})


@pytest.mark.parametrize("given", ["speed", "top_5", None, 3])
def test_an_unknown_metric(given):
    with pytest.raises(ValueError, match=r"a metric must be one of accuracy, mse, .*bp.TopK\(5\); got"):
        trainer(metrics=[given])


# the edges


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, 0.0])
@pytest.mark.parametrize("n", [3, 6, 7, 10])
def test_constant_labels_have_no_r2(value, n):
    """Rounding leaves them a spread: the mean of 0.1 is not 0.1."""
    y = np.full((n, 2), value)
    for metric in (bp.R2(), bp.R2("variance_weighted")):
        run = trainer(Shift(), loss=bp.SquaredError(), metrics=[metric])
        assert math.isnan(run.evaluate((y + 0.01, y), 4)[metric.name])
    y[:, 1] = np.arange(n)  # one output that varies
    t = y + 0.01
    run = trainer(Shift(), loss=bp.SquaredError(), metrics=[bp.R2(), bp.R2("variance_weighted")])
    figures = run.evaluate((t, y), 4)
    assert math.isnan(figures["r2"])
    expected = pytest.importorskip("sklearn.metrics").r2_score(y[:, 1], t[:, 1])
    assert figures["r2_variance_weighted"] == pytest.approx(expected, rel=1e-10)


def test_a_nan_logit_is_never_right():
    t, y = np.full((4, 3), np.nan), np.asarray([0, 1, 2, 1])
    w = np.ones(4)
    for metric in (bp.TopK(1), bp.TopK(9), bp.Accuracy()):
        assert metric.value(*map(float, metric.terms(t, y, w))) == 0
    labels = np.zeros((4, 3), "int64")
    assert bp.Accuracy().value(*map(float, bp.Accuracy().terms(t, labels, w))) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e20, 1e-20])
@pytest.mark.parametrize("weight", [1e-30, 1.0, 1e30])
def test_huge_and_tiny_numbers(weight, scale, dtype, backend):
    """Their squares are not numbers of float32; an example of weight 0 has no influence; and batches do not matter."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    y = (generator.standard_normal((ROWS, 2)) * scale).astype(dtype).astype("float64")
    t = (y + 0.3 * scale * generator.standard_normal(y.shape)).astype(dtype).astype("float64")
    w = generator.uniform(0, 2, ROWS)
    w[::3] = 0
    names = {"mse": "mean_squared_error", "mae": "mean_absolute_error", "rmse": "root_mean_squared_error", "r2": "r2_score"}
    run = trainer(Shift(), backend=backend.backend, dtype=dtype, loss=bp.SquaredError(), metrics=names)
    for size in (1, 7, ROWS):
        figures = run.evaluate((t, y, w * weight), size)
        for name, score in names.items():
            expected = getattr(metrics, score)(y, t, sample_weight=w)
            assert figures[name] == pytest.approx(expected, rel=1e-9)
        assert figures["loss"] == pytest.approx(figures["mse"], rel=1e-9)  # ½ · 2 outputs


class Focal(bp.LogisticLoss):
    """Logits of another meaning: half of those of LogisticLoss."""

    def probabilities(self, t):
        return super().probabilities(2 * t)


@pytest.mark.parametrize("size", [7, ROWS])
@pytest.mark.parametrize("loss", [bp.LogisticLoss(), bp.CrossEntropy(0.1), Focal()], ids=lambda loss: type(loss).__name__)
def test_numbers_against_logits_are_probabilities(loss, size, backend):
    """The MSE of probabilities is the Brier score."""
    metrics = pytest.importorskip("sklearn.metrics")
    names = {
        "mse": "mean_squared_error",
        "mae": "mean_absolute_error",
        "rmse": "root_mean_squared_error",
        "r2": "r2_score",
    }
    t, labels = logits()
    y = np.eye(CLASSES)[labels]
    run = trainer(Shift(), backend=backend.backend, dtype="float64", loss=loss, metrics=names)
    phi = backend.to_host(run.probabilities(t))
    w = np.random.default_rng(5).uniform(0, 2, ROWS)
    figures = run.evaluate((t, y, w), size)
    for name, score in names.items():
        expected = getattr(metrics, score)(y, phi, sample_weight=w)
        assert figures[name] == pytest.approx(expected, rel=1e-9)


def test_the_sums_of_many_batches(monkeypatch, backend):
    """The host takes them now and then, and joins them."""
    y = np.arange(60.0)[:, None] + 1e8
    run = trainer(Shift(), backend=backend.backend, loss=bp.SquaredError(), metrics=["r2", "mae"])
    expected = run.evaluate((y + 0.5, y))
    monkeypatch.setattr("bpcore.training.evaluation.LOOK_EVERY", 4)
    assert run.evaluate((y + 0.5, y), 1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [bp.SquaredError(), bp.Huber()], ids=repr)
def test_classes_are_no_numbers(loss):
    """Accuracy of a regression target is an error before the first step; rows of probabilities are classes."""
    X = np.random.default_rng(0).standard_normal((ROWS, 5))
    for outputs, y in ((1, X[:, :1]), (3, X[:, :3]), (1, X[:, :1] > 0)):
        for name in ("accuracy", "log_loss"):
            run = trainer(bp.Linear(5, outputs), loss=loss, metrics=name)
            with unchanged(run), pytest.raises(ValueError, match=f"metric {name} needs (labels of classes|logits)"):
                run.fit((X, y), epochs=1)
    rows = np.eye(3)[np.arange(ROWS) % 3]
    assert 0 <= trainer(bp.Linear(5, 3), loss=loss, metrics="accuracy").evaluate((X, rows))["accuracy"] <= 1


def test_labels_of_several_logits_may_be_floats():
    """With LogisticLoss they are labels, not probability rows, whose largest entry would be a class."""
    t, y = several_labels(3)
    run = trainer(Shift(), loss=bp.LogisticLoss(), metrics=["accuracy", "log_loss"])
    assert run.evaluate((t, y.astype(float))) == run.evaluate((t, y))


@pytest.mark.parametrize("names", [("mse", "mse"), ("loss",), ("",), ("a,b",), ("two words",)])
def test_names_of_metrics(names):
    """Each is a column of the history."""
    given = [bp.MSE() for _ in names]
    for metric, name in zip(given, names, strict=True):
        metric.name = name
    with pytest.raises(ValueError, match="name"):
        trainer(metrics=given)


def test_softmax_before_cross_entropy_warns():
    ends = (bp.Softmax(), bp.Sequential(bp.Softmax(), bp.Identity()), bp.Recompute(bp.Sigmoid()))
    for end in ends:
        with pytest.warns(UserWarning, match="the network ends in S.* takes logits"):
            run = trainer(bp.Sequential(bp.Linear(5, CLASSES), end))
    with pytest.warns(UserWarning, match="takes logits"):
        run.network.value_and_gradient(bp.CrossEntropy(), np.zeros((2, 5)), np.zeros(2, "int64"))
    trainer(bp.Sequential(bp.Linear(5, CLASSES), bp.Residual(bp.Softmax())))  # no probabilities
    trainer(bp.Sequential(bp.Linear(5, CLASSES), bp.LogSoftmax()))  # the loss is the same


class Gathering(bp.Metric):
    """It stores what it needs, which is no sum: the median of |t - y|."""

    name = "median"

    def __init__(self):
        self.errors = []

    def terms(self, t, y, w):
        self.errors.append(np.abs(t - y))
        return (w.sum(),)

    def value(self, n):
        return float(np.median(np.concatenate(self.errors)))


def test_what_a_metric_stores_does_not_outlive_a_measurement():
    r = np.random.default_rng(0)
    train, test = ((X, X[:, :1]) for X in (r.normal(size=(40, 3)), r.normal(size=(10, 3))))
    run = bp.Trainer(bp.Network(bp.Linear(3, 1), "numpy", "float64"), bp.SquaredError(), bp.SGD(0.1), metrics=[Gathering()])
    run.fit(train, test, epochs=2, batch_size=8)
    for (X, y), column in ((train, "training_median"), (test, "test_median")):
        expected = np.median(np.abs(run.network(X) - y))
        assert run.history[-1][column] == pytest.approx(expected)
        assert run.evaluate((X, y))["median"] == pytest.approx(expected)


def test_a_loss_per_output_is_no_loss_per_example():
    for shape in ((4, 1), (4, 3)):
        with pytest.raises(ValueError, match=r"one number for each example, got ℓ of shape .* weights of shape \(4,\); sum ℓ"):
            weighted_mean(np.ones(shape), np.ones(4))
