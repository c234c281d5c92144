"""The training loop: steps, epochs, data, measurements, callbacks, and the same on every backend."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from optimizer_cases import FULLEST
from runs import CLASSES, FEATURES, ROWS, Call, assert_same, become, examples, records, trainer

import bpcore as bp
from bpcore.training.metrics import METRICS


class Spy(bp.Module):
    """The identity, which keeps what it saw in training, on the host."""

    def __init__(self):
        self.seen = []

    def forward(self, theta, z, mode):
        if mode.training:
            self.seen.append(bp.backend_of(z).to_host(z).copy())
        return z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v if need_dz else None


class Shift(bp.Module):
    """u = z + b, b a number that is 0 to begin with."""

    def __init__(self):
        self.parameters = {"b": bp.Parameter((1,), bp.initializers.Zeros())}

    def forward(self, theta, z, mode):
        return z + theta.b, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.b[...] = bp.backend_of(v).xp.sum(v)
        return v if need_dz else None


class Fresh:
    """Batches that can be read again and again, of which only the number is not known."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def batches(size: int, **named) -> list[tuple]:
    arrays = examples(**named)
    return [tuple(x[i : i + size] for x in arrays) for i in range(0, len(arrays[0]), size)]


# fit, step, evaluate


def test_epochs_is_the_total():
    at_once, bit_by_bit = trainer(dropout=0.3, metrics="accuracy"), trainer(dropout=0.3, metrics="accuracy")
    history = at_once.fit(examples(), examples(seed=1), epochs=6, batch_size=16)
    for epochs in (3, 3, 2, 6):
        bit_by_bit.fit(examples(), examples(seed=1), epochs=epochs, batch_size=16)
    assert history is at_once.history
    assert (len(history), at_once.epoch, at_once.steps, at_once.position) == (6, 6, 18, 0)
    assert history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert history["steps"] == [3, 6, 9, 12, 15, 18]
    assert_same(become(bit_by_bit), become(at_once))
    other_seed = trainer(dropout=0.3, seed=1)
    other_seed.fit(examples(), epochs=6, batch_size=16)
    assert np.any(other_seed.network.theta != at_once.network.theta)


def test_a_step_returns_the_loss_before_it():
    run = trainer()
    J = run.network.value_and_gradient(run.loss, *examples())[0]
    assert run.step(*examples()) == J > run.step(*examples())
    assert (run.steps, run.epoch, run.position, len(run.history)) == (2, 0, 0, 0)


def test_a_step_takes_lists():
    (X, y), one, other = examples(), trainer(), trainer()
    one.step(X.tolist(), y.tolist())
    other.step(X, y)
    assert_same(become(one), become(other))


def test_every_example_once_an_epoch_in_a_new_order():
    X, y = examples()
    X[:, 0] = np.arange(ROWS)
    orders = {tuple(range(ROWS))}
    for seed in (0, 1):
        spy = Spy()
        trainer(bp.Sequential(spy, bp.Linear(FEATURES, CLASSES)), seed=seed).fit((X, y), epochs=2, batch_size=16)
        assert [len(z) for z in spy.seen] == [16, 16, 8] * 2
        orders.update(tuple(np.concatenate(spy.seen[i : i + 3])[:, 0]) for i in (0, 3))
    assert len(orders) == 5
    assert all(sorted(order) == list(range(ROWS)) for order in orders)


LOSSES = {
    "cross-entropy": (bp.CrossEntropy(), lambda X, y: y),
    "logistic": (bp.LogisticLoss(), lambda X, y: np.eye(CLASSES)[y]),
    "squared": (bp.SquaredError(), lambda X, y: X[:, :CLASSES] + y[:, None]),
    "huber": (bp.Huber(0.5), lambda X, y: X[:, :CLASSES] + y[:, None]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_count_examples(name):
    """Weight 2 is the example twice, weight 0 is none."""
    loss, labels = LOSSES[name]
    X, y = examples()
    y, weights = labels(X, y), np.arange(ROWS) % 3
    rows = np.repeat(np.arange(ROWS), weights)
    one, other, plain = (trainer(loss=loss, clip_norm=0.1) for _ in range(3))
    for _ in range(5):
        J = one.step(X, y, weights.astype(float))
        np.testing.assert_allclose(J, other.step(X[rows], y[rows]), rtol=1e-12)
        assert plain.step(X, y) != pytest.approx(J, rel=1e-6)
    np.testing.assert_allclose(one.network.theta, other.network.theta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("accumulate", [2, 3, 7, ROWS, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_accumulate(name, accumulate, weighted, backend):
    """In micro-batches J and ∇J are those of the whole batch."""
    loss, labels = LOSSES[name]
    X, y, *weights = examples(weights=weighted)
    if weighted:
        weights[0][: ROWS // 2] = 0  # micro-batches of weight zero
    data = [backend.asarray(x) for x in (X, labels(X, y), *weights)]
    runs = [
        trainer(backend=backend.backend, loss=loss, optimizer=bp.SGD(0.1, momentum=0.9), accumulate=k) for k in (accumulate, 1)
    ]
    for _ in range(5):
        Js = [run.step(*data) for run in runs]
        np.testing.assert_allclose(*map(backend.to_host, Js), rtol=1e-12)
    theta, expected = (backend.to_host(run.network.theta) for run in runs)
    np.testing.assert_allclose(theta, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_of_weight_zero_changes_nothing(accumulate):
    run = trainer(optimizer=bp.SGD(0.1), accumulate=accumulate)
    before = run.network.theta.copy()
    assert run.step(*examples(), np.zeros(ROWS)) == 0
    np.testing.assert_array_equal(run.network.theta, before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_draws_other_masks_in_each_step_and_micro_batch(accumulate):
    spy = Spy()
    run = trainer(bp.Sequential(bp.Dropout(0.5), spy, bp.Linear(FEATURES, CLASSES)), accumulate=accumulate)
    for _ in range(2):
        run.step(np.ones((8, FEATURES)), np.zeros(8, "int64"))
    masks = {z.tobytes() for z in spy.seen}
    assert len(spy.seen) == len(masks) == 2 * accumulate


# kinds of data


def test_memmaps(tmp_path):
    arrays = [x.astype("float32") if x.dtype.kind == "f" else x for x in examples(weights=True)]
    on_disk = []
    for i, x in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", x)
        on_disk.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
        assert type(on_disk[-1]) is np.memmap
    one, other = (trainer(dtype="float32", metrics=["accuracy"]) for _ in range(2))
    one.fit(tuple(on_disk), tuple(on_disk[:2]), epochs=3, batch_size=16, training_sample=20)
    other.fit(tuple(arrays), tuple(arrays[:2]), epochs=3, batch_size=16, training_sample=20)
    assert_same(become(one), become(other))


@pytest.mark.parametrize("iterable", [list, Fresh], ids=["list", "iterable"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_iterables_of_batches(iterable, weighted):
    """In their own order, measured over all of them together."""
    given = batches(16, weights=weighted)
    one, by_hand = trainer(dropout=0.2, metrics=["accuracy"]), trainer(dropout=0.2, metrics=["accuracy"])
    one.fit(iterable(given), iterable(given[:2]), epochs=2)
    for batch in given * 2:
        by_hand.step(*batch)
    np.testing.assert_array_equal(one.network.theta, by_hand.network.theta)
    measured = by_hand.evaluate(examples(weights=weighted))
    assert [one.history[-1][f"training_{name}"] for name in measured] == pytest.approx(list(measured.values()), rel=1e-12)
    held_out = by_hand.evaluate(tuple(x[:32] for x in examples(weights=weighted)))
    assert one.history[-1]["test_loss"] == pytest.approx(held_out["loss"], rel=1e-12)


def test_several_inputs():
    """X is a tuple; here the sum of two branches, of which the second sees nothing new."""
    X, y = examples()
    two = bp.Circuit(
        ("a", "b"), {"p": (bp.Linear(FEATURES, CLASSES), "a"), "q": (bp.Linear(1, CLASSES), "b"), "s": (bp.Add(), "p", "q")}, "s"
    )
    run = trainer(two, metrics="accuracy", accumulate=2)
    b = np.full((ROWS, 1), 0.5)
    run.fit(((X, b), y), ((X, b), y), epochs=40, batch_size=16, training_sample=30)
    assert run.steps == 120
    assert run.history[-1]["test_accuracy"] > 0.9
    assert run.evaluate([((X, b), y)])["loss"] == run.history[-1]["test_loss"]
    with pytest.raises(ValueError, match=r"expected X, y and weights of one length, got \[40, 39, 40\] rows"):
        run.fit(((X, b[1:]), y), epochs=41)


def test_arrays_of_the_device(backend):
    """The data may lie on the host or on the device; it is read, and not written to."""
    host = examples(weights=True)
    on_device = tuple(backend.asarray(x) for x in host)
    runs = [trainer(backend=backend.backend, dropout=0.2, metrics=["accuracy"]) for _ in range(2)]
    for run, given in zip(runs, (host, on_device), strict=True):
        run.fit(given, given[:2], epochs=2, batch_size=16, training_sample=20)
    assert_same(become(runs[1]), become(runs[0]))
    for x, before in zip(on_device, host, strict=True):
        np.testing.assert_array_equal(backend.to_host(x), before)


# measurements


def cross_entropies(theta: dict[str, np.ndarray], X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ℓ of each example, by hand, in evaluation mode."""
    last = max(int(path.partition(".")[0]) for path in theta)
    t = np.maximum(X @ theta["0.W"] + theta["0.b"], 0) @ theta[f"{last}.W"] + theta[f"{last}.b"]
    return np.log(np.sum(np.exp(t), axis=1)) - t[np.arange(len(y)), y]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_history_is_measured_with_one_theta_in_evaluation_mode(dropout):
    """Training loss and test loss at each epoch's end, and their gap (8.1), with dropout and weights."""
    train, test, thetas = examples(weights=True), examples(31, seed=1), []

    class Keep(bp.Callback):
        def on_epoch(self, trainer, record):
            thetas.append({path: array.copy() for path, array in trainer.network.parameters().items()})

    run = trainer(dropout=dropout, callbacks=[Keep()])
    run.fit(train, test, epochs=3, batch_size=16)
    for record, theta in zip(run.history, thetas, strict=True):
        training = np.average(cross_entropies(theta, *train[:2]), weights=train[2])
        held_out = np.mean(cross_entropies(theta, *test))
        assert record["training_loss"] == pytest.approx(training, rel=1e-12)
        assert record["test_loss"] == pytest.approx(held_out, rel=1e-12)
        assert record["gap"] == pytest.approx(held_out - training, rel=1e-9)
        assert record["seconds"] >= 0
    assert run.evaluate(test, batch_size=7) == pytest.approx({"loss": run.history[-1]["test_loss"]}, rel=1e-12)
    assert list(run.history[0]) == ["epoch", "steps", "lr", "training_loss", "test_loss", "gap", "seconds"]


def test_training_sample():
    """So many rows, the same each time: each example's loss is a power of two, so that the mean tells which were drawn."""

    def drawn(seed: int, size: int) -> list[int]:
        module = bp.Linear(1, 1, initializer=bp.initializers.Zeros())
        run = trainer(module, loss=bp.SquaredError(), optimizer=bp.SGD(0.0), seed=seed)
        run.fit((np.zeros((ROWS, 1)), np.sqrt(2.0 ** (1 + np.arange(ROWS)))[:, None]), epochs=3, training_sample=size)
        losses = run.history["training_loss"]
        assert losses[0] == losses[1] == losses[2]
        total = round(losses[0] * min(size, ROWS))
        return [row for row in range(ROWS) if total >> row & 1]

    assert len(drawn(0, 10)) == 10
    assert drawn(0, 10) == drawn(0, 10) != drawn(1, 10)
    assert drawn(0, ROWS) == drawn(0, 1000) == list(range(ROWS))


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
            lambda m, t, y, w, k=k: m.accuracy_score(y.ravel(), t.ravel() > 0, sample_weight=of_each(w, k)),
        )
        for k in (1, 3, ROWS)
    },
    "accuracy, true or false": (
        "accuracy",
        (several_labels(3)[0], several_labels(3)[1] > 0),
        lambda m, t, y, w: m.accuracy_score(y.ravel(), t.ravel() > 0, sample_weight=of_each(w, 3)),
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
        if columns == 1 or name in ("mse", "mae")
    },
    "rmse, 3 outputs": ("rmse", regression_outputs(3), lambda m, t, y, w: np.sqrt(m.mean_squared_error(y, t, sample_weight=w))),
    "r2, 3 outputs": (
        "r2",
        regression_outputs(3),
        lambda m, t, y, w: m.r2_score(y.ravel(), t.ravel(), sample_weight=None if w is None else np.repeat(w, 3)),
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
    got = rf"outputs \({t[0]}, {t[1]}\) and labels \({t[0]},\) of \S*int64"
    with pytest.raises(ValueError, match=f"metric {metric} does not fit {got}; choose another metric or reshape the labels"):
        run.evaluate((np.ones(t), y))


def test_metrics_at_their_edges():
    """A constant has no R²; a tie counts for the example; one class is all."""
    run = trainer(Shift(), loss=bp.SquaredError(), metrics=["r2"])
    assert math.isnan(run.evaluate((np.zeros((4, 1)), np.ones((4, 1))))["r2"])
    run = trainer(Shift(), metrics=[bp.TopK(1), bp.TopK(99)])
    assert run.evaluate((np.zeros((4, 3)), np.asarray([0, 1, 2, 2])))["top_1"] == 1
    assert run.evaluate((np.zeros((4, 1)), np.zeros(4, "int64")), 3) == pytest.approx({"loss": 0, "top_1": 1, "top_99": 1})


@pytest.mark.parametrize("given", ["speed", "top_5", None, 3])
def test_an_unknown_metric(given):
    with pytest.raises(ValueError, match=r"a metric must be one of accuracy, mse, .*bp.TopK\(5\); got"):
        trainer(metrics=[given])


def test_history_is_a_table():
    run = trainer()
    assert str(run.history) == ""
    run.fit(examples(), epochs=2)
    run.fit(examples(), examples(seed=1), epochs=3)
    assert run.history["test_loss"][:2] == [None, None]
    assert run.history[-1]["test_loss"] == run.history["test_loss"][2]
    header, *lines = str(run.history).splitlines()
    assert header.split() == ["epoch", "steps", "lr", "training_loss", "seconds", "test_loss", "gap"]
    assert len({len(line) for line in (header, *lines)}) == 1
    with pytest.raises(KeyError, match="there is no 'loss', only epoch, steps"):
        run.history["loss"]


# callbacks


def test_progress_is_silent_where_nobody_looks(capfd):
    trainer(callbacks=[bp.Progress(every=1)]).fit(examples(), epochs=2, batch_size=16)
    assert tuple(capfd.readouterr()) == ("", "")
    trainer(callbacks=[bp.Progress(lines=True)]).fit(examples(), examples(seed=1), epochs=2, batch_size=16)
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split()[:3] for line in out.splitlines()] == [["epoch", f"{i}/2", "training_loss"] for i in (1, 2)]


def test_progress_on_a_terminal(monkeypatch, capfd):
    """A bar for each epoch, with the loss, gone when the epoch is over; then a line."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer(callbacks=[bp.Progress(every=1)]).fit(examples(), epochs=2, batch_size=8)
    out, err = capfd.readouterr()
    assert "epoch 1/2" in err
    assert "5/5" in err
    assert "loss=" in err
    assert out.count("training_loss") == 2


def scripted(monkeypatch, losses: list[float], **options) -> bp.Trainer:
    """A trainer whose test loss is as told, epoch by epoch."""
    run = trainer(**options)
    told = iter(losses)

    def evaluate(given, batch_size=0):
        return {"loss": next(told) if given.name == "validation" else 0.0}

    monkeypatch.setattr(run, "evaluate", evaluate)
    return run


@pytest.mark.parametrize(
    ("losses", "options", "epochs", "best"),
    [
        ([5, 4, 3, 3.5, 3.2, 9, 9, 9], {"patience": 2}, 5, 3),
        ([5, 4, 3, 3.5, 2, 9, 9, 9], {"patience": 3}, 8, 5),
        ([5, 4.8, 4.6, 4.4], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ([1, 2, 3, 2, 2], {"patience": 2, "higher": True}, 5, 3),
        ([math.nan, 2, math.nan, math.nan], {"patience": 2}, 4, 2),
    ],
)
def test_early_stopping_goes_back_to_the_best(monkeypatch, losses, options, epochs, best):
    thetas, stopping = [], bp.EarlyStopping(**options)

    class Keep(bp.Callback):
        def on_epoch(self, trainer, record):
            thetas.append(trainer.network.theta.copy())

    run = scripted(monkeypatch, losses, callbacks=[Keep(), stopping])
    run.fit(examples(), examples(seed=1), epochs=20, batch_size=16)
    assert len(run.history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best, losses[best - 1])
    assert run.finished == f"no better test_loss than {losses[best - 1]:.6g} of epoch {best} in {options['patience']} epochs"
    np.testing.assert_array_equal(run.network.theta, thetas[best - 1])
    assert np.any(thetas[-1] != thetas[best - 1])
    run.fit(examples(), examples(seed=1), epochs=50)
    assert len(run.history) == epochs


def steps_in(path: object) -> tuple[int, int]:
    run = trainer(callbacks=[bp.Checkpoint(path)])
    run.resume(path)
    return run.steps, run.epoch


class Saved(bp.Callback):
    """Notes (steps, epoch) of what lies at a path, after each step and each epoch, when it is new."""

    last = True

    def __init__(self, path):
        self.path, self.saves, self.before = path, [], None

    def on_step(self, trainer, J):
        with contextlib.suppress(FileNotFoundError):
            now = self.path.stat().st_mtime_ns, self.path.stat().st_ino
            if now != self.before:
                self.before = now
                self.saves.append((trainer.steps, trainer.epoch))

    def on_epoch(self, trainer, record):
        self.on_step(trainer, None)


@pytest.mark.parametrize(
    ("options", "saves"),
    [
        ({}, [(5, 1), (10, 2), (15, 3), (20, 4)]),
        ({"every": 4}, [(4, 0), (8, 1), (12, 2), (16, 3), (20, 3)]),
        ({"best": "test_loss"}, [(5, 1), (15, 3)]),
        ({"best": "test_loss", "higher": True}, [(5, 1), (10, 2)]),
        ({"best": "test_loss", "every": 8}, [(5, 1), (8, 1), (15, 3), (16, 3)]),
    ],
)
def test_checkpoints_are_saved(tmp_path, monkeypatch, options, saves):
    path = tmp_path / "run.safetensors"
    saved = Saved(path)
    run = scripted(monkeypatch, [3, 4, 2, 2.5], callbacks=[bp.Checkpoint(path, **options), saved])
    run.fit(examples(), examples(seed=1), epochs=4, batch_size=8)
    assert saved.saves == saves
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert bp.Network.load(path).n_parameters == run.network.n_parameters


def test_a_checkpoint_has_seen_early_stopping(tmp_path, monkeypatch):
    """Whatever the order in which callbacks are given: what is saved last is the best θ, and that it is over."""
    path = tmp_path / "run.safetensors"
    callbacks = [bp.Checkpoint(path, every=1000), bp.EarlyStopping(patience=1)]
    run = scripted(monkeypatch, [3, 2, 4], callbacks=callbacks)
    run.fit(examples(), examples(seed=1), epochs=20, batch_size=8)
    again = trainer(callbacks=callbacks)
    again.resume(path)
    np.testing.assert_array_equal(again.network.theta, run.network.theta)
    assert again.finished == run.finished is not None
    assert len(again.fit(examples(), examples(seed=1), epochs=20)) == 3


def test_history_logs(tmp_path):
    """Whole after each epoch: numbers as they are, empty where nothing was measured."""
    table, lines = tmp_path / "log.csv", tmp_path / "log.jsonl"
    run = trainer(callbacks=[bp.HistoryLog(table), bp.HistoryLog(str(lines))], metrics=["accuracy"])
    run.fit(examples(), epochs=2)
    run.fit(examples(), examples(seed=1), epochs=3)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == list(run.history)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == run.history.columns
    for row, record in zip(rows, run.history, strict=True):
        assert {name: float(cell) for name, cell in row.items() if cell} == record
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "log.jsonl"]
    with pytest.raises(ValueError, match=r"must end in .csv or .jsonl, got log.txt"):
        bp.HistoryLog("log.txt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_of_lines_is_json(value, tmp_path):
    """RFC 8259 has no word for NaN and infinities: null."""
    path, history = tmp_path / "log.jsonl", bp.History([{"epoch": 1, "training_loss": 0.5, "test_r2": value}])
    history.append({"epoch": 2, "training_loss": 0.25, "test_r2": 0.5})
    history.write(path)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines == [{"epoch": 1, "training_loss": 0.5, "test_r2": None}, {"epoch": 2, "training_loss": 0.25, "test_r2": 0.5}]
    run = trainer(Shift(), loss=bp.SquaredError(), metrics="r2", callbacks=bp.HistoryLog(path))  # R² of a constant is NaN
    run.fit((np.ones((4, 1)), np.ones((4, 1))), epochs=1)
    assert json.loads(path.read_text(), parse_constant=refuse)["training_r2"] is None


def test_learning_curve(tmp_path):
    """A panel for the loss and one for each metric measured on both; no pyplot. An epoch without test loss is a gap in it."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    run = trainer(metrics=["accuracy"], callbacks=[bp.LearningCurve(path, every=2)])
    run.fit(examples(), epochs=1)
    assert path.read_bytes().startswith(b"\x89PNG")
    run.fit(examples(), examples(seed=1), epochs=5)
    figure = bp.learning_curve(run.history)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        training, test = axes.get_lines()
        assert list(training.get_xdata()) == [1, 2, 3, 4, 5]
        assert list(training.get_ydata()) == run.history[f"training_{name}"]
        assert list(test.get_ydata())[1:] == run.history[f"test_{name}"][1:]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "test", "gap (8.1)"]
    with pytest.raises(ValueError, match="the history is empty"):
        bp.learning_curve(bp.History())
    with pytest.raises(ValueError, match="every must be a whole number from 1 up, got 0"):
        bp.LearningCurve(path, every=0)


def test_learning_curve_leaves_pyplot_alone(tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys, bpcore as bp; history = bp.History([{'epoch': 1, 'training_loss': 1.0}]); "
        f"bp.learning_curve(history, {str(tmp_path / 'curve.svg')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Ctrl-C


@pytest.mark.parametrize("at", [1, 4, 5, 7, 10])
def test_control_c_stops_after_the_step(at):
    """The work is kept, fit returns, and goes on; in the end nothing is different. Signals are handled as before."""

    def interrupt(trainer, J):
        if trainer.steps == at and not trainer.interrupted:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run, unbroken = trainer(dropout=0.2, callbacks=[Call(interrupt)]), trainer(dropout=0.2, callbacks=[Call(print_nothing)])
    history = run.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    assert (run.steps, run.interrupted, len(history)) == (at, True, at // 5 if at % 5 else (at - 1) // 5)
    assert signal.getsignal(signal.SIGINT) is before
    run.callbacks[0].what = print_nothing
    run.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    unbroken.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    assert not run.interrupted
    assert_same(become(run), become(unbroken))


def print_nothing(trainer, J):
    """Nothing."""


def test_a_second_control_c_stops_at_once():
    def twice(trainer, J):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = trainer(callbacks=[Call(twice)])
    with pytest.raises(KeyboardInterrupt):
        run.fit(examples(), epochs=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.steps == 1


def test_fit_in_a_thread():
    """Where signals cannot be handled."""
    run, failures = trainer(), []

    def work():
        try:
            run.fit(examples(), epochs=2)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert (failures, run.epoch) == ([], 2)


# one step on every backend


def waits(backend, array):
    raise AssertionError("a value leaves the device: the host waits")


@pytest.mark.parametrize("optimizer", FULLEST.values(), ids=FULLEST)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1, "accumulate": 3}], ids=["plain", "clipped and accumulated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_does_not_wait_for_the_device(optimizer, options, dtype, backend, monkeypatch):
    """With dropout and weights, and without: nothing leaves the device before J is looked at, from the first step on."""
    module = bp.MLP([FEATURES, 8, 8, CLASSES], dropout=0.2, normalization="layer_norm")
    schedule = bp.schedules.WarmUp(3, bp.schedules.Cosine(10))
    run = trainer(module, backend=backend.backend, optimizer=optimizer, dtype=dtype, schedule=schedule, **options)
    X, y, w = examples(weights=True)
    on_device = backend.asarray(X, dtype), backend.asarray(y), backend.asarray(w, dtype)
    before = backend.to_host(run.network.theta).copy()
    for given in (on_device, on_device[:2], on_device):
        with backend.guard(), monkeypatch.context() as patch:
            if backend.backend.asynchronous:
                patch.setattr(bp.Backend, "to_host", waits)
            J = run.step(*given)
        assert backend.backend.owns(J)
        assert J.shape == ()
        assert str(J.dtype).endswith(dtype)
    assert np.all(np.isfinite(backend.to_host(run.network.theta)))
    assert np.any(backend.to_host(run.network.theta) != before)


def curve(on, dropout: float = 0.3) -> tuple[bp.Trainer, list[np.ndarray], list[float]]:
    """100 float64 steps with dropout: the trainer, what its last layers saw, and J of each step."""
    spy, Js = Spy(), []
    module = bp.Sequential(bp.Linear(FEATURES, 16), bp.ReLU(), bp.Dropout(dropout), spy, bp.Linear(16, CLASSES))
    call = Call(lambda trainer, J: Js.append(float(trainer.network.backend.to_host(J))))
    run = trainer(module, backend=on, callbacks=[call], optimizer=bp.Adam(0.02), seed=7)
    run.fit(examples(weights=True), examples(seed=1), epochs=20, batch_size=8)
    return run, spy.seen, Js


def test_the_same_seed_is_the_same_run_on_every_backend(backend):
    """θ, order and masks to the bit; loss curves to 1e-5 (here 1e-10) over 100 steps."""
    module = bp.MLP([FEATURES, 8, CLASSES])
    for dtype in ("float32", "float64"):
        here, there = (bp.Network(module, backend=on, dtype=dtype, seed=3) for on in (backend.backend, "numpy"))
        np.testing.assert_array_equal(backend.to_host(here.theta), there.theta)
    (run, seen, Js), (expected, seen_there, Js_there) = curve(backend.backend), curve("numpy")
    assert len(Js) == 100
    assert statistics.mean(Js[-10:]) < 0.5 * Js[0]
    np.testing.assert_allclose(Js, Js_there, rtol=1e-10)
    for z, z_there in zip(seen, seen_there, strict=True):
        np.testing.assert_array_equal(z == 0, z_there == 0)  # ReLU's zeros and dropout's
        np.testing.assert_allclose(z, z_there, rtol=1e-8, atol=1e-12)
    for name in ("training_loss", "test_loss"):
        np.testing.assert_allclose(run.history[name], expected.history[name], rtol=1e-10)


def test_the_order_is_the_same_to_the_bit_on_every_backend(backend):
    orders = []
    X, y = examples()
    X[:, 0] = np.arange(ROWS)
    for on in (backend.backend, "numpy"):
        spy = Spy()
        trainer(bp.Sequential(spy, bp.Linear(FEATURES, CLASSES)), backend=on).fit((X, y), epochs=2, batch_size=7)
        orders.append(np.concatenate(spy.seen))
    np.testing.assert_array_equal(*orders)


def test_masks_are_the_same_to_the_bit_on_every_backend(backend):
    u = []
    for on in (backend.backend, bp.get_backend("numpy")):
        net = bp.Network(bp.Sequential(bp.Dropout(0.3), bp.Dropout(0.6)), backend=on, dtype="float64")
        ones = np.ones((33, 65))
        u.append(net.backend.to_host(net(ones, mode=bp.Mode(training=True, seed=5, step=6, micro=7))))
    np.testing.assert_array_equal(*u)
    assert 0.6 < np.mean(u[0] == 0) < 0.85


def test_an_mlp_trains_as_in_pytorch(torch):
    """20 steps of Adam with weights copied, clipping and a schedule, float64."""
    schedule = bp.schedules.Cosine(20)
    run = trainer(bp.MLP([FEATURES, 16, 8, CLASSES], "tanh"), optimizer=bp.AdamW(0.05, weight_decay=0.1), schedule=schedule)
    layers = [run.network.windows[str(i)] for i in (0, 2, 4)]
    pairs = [(torch.tensor(layer.W.T.copy()), torch.tensor(layer.b.copy())) for layer in layers]
    weights, biases = ([p[i].requires_grad_() for p in pairs] for i in (0, 1))
    oracle = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=0.05, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, T_max=20)
    X, y, w = examples(weights=True)
    for step in range(20):
        rows = np.random.default_rng(step).permutation(ROWS)[:16]
        h = torch.tensor(X[rows])
        for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
            h = torch.nn.functional.linear(h, W, b)
            h = torch.tanh(h) if i < 2 else h
        ell = torch.nn.functional.cross_entropy(h, torch.tensor(y[rows]), reduction="none")
        J = torch.sum(ell * torch.tensor(w[rows])) / w[rows].sum()
        oracle.zero_grad()
        J.backward()
        oracle.step()
        rates.step()
        assert run.step(X[rows], y[rows], w[rows]) == pytest.approx(J.item(), rel=1e-10)
    for layer, W, b in zip(layers, weights, biases, strict=True):
        np.testing.assert_allclose(layer.W, W.detach().numpy().T, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(layer.b, b.detach().numpy(), rtol=1e-10, atol=1e-12)


# long on one batch


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("optimizer", [bp.SGD(0.5, 0.9), bp.Adam(0.01)], ids=["SGD", "Adam"])
def test_2000_steps_on_one_batch_stay_fast(optimizer, activation):
    """No number in the gradient and in the moments is subnormal, and the last 100 steps take as long as the first.

    The first 100 of another run are taken in turn with them, so that whatever else the machine does slows both.
    """
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((64, 32)).astype("float32") * 4, np.arange(64) % 10
    late, early = (trainer(bp.MLP([32, 64, 64, 10], activation), dtype="float32", optimizer=optimizer) for _ in range(2))
    smallest = np.finfo("float32").smallest_normal
    for step in range(1900):
        late.step(X, y)
        if step % 50 == 49:
            for array in (late.network.value_and_gradient(late.loss, X, y)[1], *late.moments.values()):
                size = np.abs(array)
                assert not np.any((size > 0) & (size < smallest)), f"subnormal at step {step}"
    seconds = {late: [], early: []}
    for _ in range(100):
        for run, taken in seconds.items():
            start = time.perf_counter()
            run.step(X, y)
            taken.append(time.perf_counter() - start)
    assert statistics.median(seconds[late]) <= 1.5 * statistics.median(seconds[early])


def test_records_have_no_arrays():
    """The history is plain numbers: it goes to JSON as it is."""
    run = trainer(metrics=["accuracy", "log_loss"], schedule=lambda step: np.float32(0.5))
    run.fit(examples(), examples(seed=1), epochs=1)
    assert all(type(value) in (int, float) for record in records(run) for value in record.values())


def test_one_metric_and_one_callback_need_no_list():
    run = trainer(metrics=bp.TopK(2), callbacks=bp.Progress())
    assert ([m.name for m in run.metrics], len(run.callbacks)) == (["top_2"], 1)
    assert [m.name for m in trainer(metrics="accuracy").metrics] == ["accuracy"]
