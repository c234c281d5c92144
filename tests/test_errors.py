"""What a trainer refuses: one sentence that says what was expected, what came, and the repair; and nothing has changed."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from runs import CLASSES, FEATURES, ROWS, Call, assert_same, become, examples, trainer, unchanged

import bpcore as bp

X, Y = examples()
W = np.ones(ROWS)


def put(array: np.ndarray, value: float, *at: tuple[int, ...]) -> np.ndarray:
    """A copy with a value at these places."""
    array = array.astype(float)
    for place in at:
        array[place] = value
    return array


# name: (what fit is given as training data, error, what it says, the loss if it is not CrossEntropy)
SQUARED, LOGISTIC = bp.SquaredError(), bp.LogisticLoss()
T = X[:, :CLASSES]
DATA = {
    "NaN in X": (
        (put(X, math.nan, (3, 1), (5, 0)), Y),
        ValueError,
        r"train: X has 2 values that are NaN or infinite, .*\(3, 1\)",
    ),
    "inf in X": ((put(X, -math.inf, (39, 4)), Y), ValueError, r"train: X has 1 values .* the first at \(39, 4\); drop or fill"),
    "NaN in y": ((X, put(T, math.nan, (7, 2))), ValueError, r"train: y has 1 values .* the first at \(7, 2\)", SQUARED),
    "inf in the second input": (((X, put(X, math.inf, (1, 1))), Y), ValueError, r"train: X has 1 values .* \(1, 1\)"),
    "NaN in weights": ((X, Y, put(W, math.nan, 4)), ValueError, r"train: weights has 1 values .* the first at \(4,\)"),
    "negative weights": ((X, Y, -W), ValueError, "weights must be >= 0 and not all zero, got values from -1.0 to -1.0"),
    "weights of zero": ((X, Y, 0 * W), ValueError, "weights must be >= 0 and not all zero"),
    "weights of one column": ((X, Y, W[:, None]), ValueError, r"CrossEntropy expected weights of shape \(2,\)"),
    "labels too large": ((X, Y + 1), ValueError, "expected class indices 0 to 2 for 3 outputs, got values from 1 to 3; .*recode"),
    "labels too small": ((X, Y - 1), ValueError, "expected class indices 0 to 2 .* got values from -1 to 1"),
    "one label, far on": ((X, np.where(np.arange(ROWS) == 38, 9, Y)), ValueError, "got values from 0 to 9"),
    "float labels": (
        (X, Y.astype(float)),
        TypeError,
        r"class indices of an integer dtype, got y of .*float64; .*astype\('int64'\)",
    ),
    "labels of truth": ((X, Y > 0), TypeError, "class indices of an integer dtype, got y of dtype .*bool"),
    "labels in a column": ((X, Y[:, None]), ValueError, r"class indices of shape \(2,\).* got y of shape \(2, 1\)"),
    "rows that are no probabilities": ((X, np.ones((ROWS, CLASSES))), ValueError, "probability rows, >= 0 with sum 1"),
    "logistic labels": ((X, T), ValueError, "LogisticLoss expected labels 0 or 1, got values from", LOGISTIC),
    "(n, 1) against (n, 3)": ((X, T[:, :1]), ValueError, r"one shape, got \(2, 3\) and \(2, 1\); reshape", SQUARED),
    "(n,) against (n, 3)": ((X, T[:, 0]), ValueError, r"one shape, got \(2, 3\) and \(2,\); reshape", SQUARED),
    "integer labels": ((X, np.eye(CLASSES, dtype=int)[Y]), TypeError, "expected labels of dtype .*float64, got .*int64", SQUARED),
    "no examples": ((X[:0], Y[:0]), ValueError, "train is empty: X has 0 rows; give at least one example"),
    "no batches": ([], ValueError, "train is empty: it gave no batch"),
    "an empty batch": ([(X[:0], Y[:0])], ValueError, "train is empty: X has 0 rows"),
    "integer X": ((np.ones((ROWS, FEATURES), int), Y), TypeError, r"0: Linear expected floating numbers, got .*int64; .*astype"),
    "too few features": ((X[:, 1:], Y), ValueError, r"0: Linear expected features 5 in the last axis, got z of shape \(2, 4\); "),
    "features without an axis": ((X[:, 0], Y), ValueError, r"0: Linear expected features 5 .* \(2,\)"),
    "lengths": ((X, Y[1:]), ValueError, r"expected X, y and weights of one length, got \[40, 39\] rows; drop"),
    "lengths of weights": ((X, Y, W[1:]), ValueError, r"of one length, got \[40, 40, 39\] rows"),
    "a scalar": ((X, 1), ValueError, "train expected arrays with an axis of examples, got a scalar"),
    "text": ((X, Y.astype(str)), TypeError, "expected numbers, got an array of dtype <U"),
    "ragged": ((X, [[1], [1, 2]]), ValueError, "inhomogeneous shape"),
    "X alone": ((X,), TypeError, r"train expected a tuple \(X, y\) or \(X, y, weights\), got a tuple of 1"),
    "four arrays": ((X, Y, W, W), TypeError, "got a tuple of 4"),
    "an array": (X, TypeError, r"train expected a tuple \(X, y\) or \(X, y, weights\), got ndarray"),
    "a number": (3, TypeError, "or an iterable of such batches, got int"),
    "None": (None, TypeError, "or an iterable of such batches, got NoneType"),
    "a generator": (((X, Y) for _ in range(3)), TypeError, "train is an iterator, which can be read once.* pass a list"),
    "an iterator": (iter([(X, Y)]), TypeError, "train is an iterator, which can be read once"),
    "batches of another thing": ([(X, Y), X], TypeError, "got ndarray"),
    "NaN in the first batch": ([(put(X, math.nan, (0, 0)), Y)], ValueError, "train: X has 1 values that are NaN or infinite"),
    "weights in a batch": ([(X, Y, -W)], ValueError, "weights must be >= 0"),
}
LATER = ("batches of another thing",)  # seen only when the batch comes: the steps before it stay


@pytest.mark.parametrize("name", [name for name in DATA if name not in LATER])
def test_training_data(name):
    given, error, message, *loss = DATA[name]
    run = trainer(loss=loss[0] if loss else None)
    with unchanged(run), pytest.raises(error, match=message):
        run.fit(given, epochs=2, batch_size=8)


@pytest.mark.parametrize("name", [name for name in DATA if name not in (*LATER, "a generator", "an iterator", "None")])
def test_validation_data_at_the_same_door(name):
    """Before the first step, and by its own name; `evaluate` has the same door for what it can see."""
    given, error, message, *loss = DATA[name]
    good = (X, T) if loss and loss[0] is SQUARED else (X, (T > 0).astype(float)) if loss else (X, Y)
    run = trainer(loss=loss[0] if loss else None)
    with unchanged(run), pytest.raises(error, match=message.replace("train", "validation")):
        run.fit(good, given, epochs=2, batch_size=8)


@pytest.mark.parametrize("name", ["lengths", "no examples", "no batches", "X alone", "a number", "too few features", "integer X"])
def test_evaluate(name):
    given, error, message = DATA[name]
    run = trainer()
    message = message.replace("train", "data")
    with unchanged(run), pytest.raises(error, match=message):
        run.evaluate(given)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ((put(X, math.nan, (2, 2)), Y), ValueError, r"train: X has 1 values that are NaN or infinite, the first at \(2, 2\)"),
        ((X, Y + 1), ValueError, "expected class indices 0 to 2"),
        ((X, Y[1:]), ValueError, "of one length"),
        ((X[:, 1:], Y), ValueError, "0: Linear expected features 5"),
        ((X, Y, -W), ValueError, "weights must be >= 0"),
        (X, TypeError, "got ndarray"),
    ],
)
def test_a_bad_batch_further_on(bad, error, message):
    """Each batch of an iterable is looked at as it comes: θ is that of the steps before it."""
    run, until = trainer(), trainer()
    with pytest.raises(error, match=message):
        run.fit([(X, Y), (X, Y), bad], epochs=2)
    for _ in range(2):
        until.step(X, Y)
    assert (run.steps, run.position, len(run.history)) == (2, 2, 0)
    np.testing.assert_array_equal(run.network.theta, until.network.theta)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", value) for value in (0, -1, 1.5, "3", None, True)),
        *(("batch_size", value) for value in (0, -8, 2.5, None, True)),
        *(("training_sample", value) for value in (0, -1, 0.5)),
    ],
)
def test_numbers_of_fit(name, value):
    run = trainer()
    with unchanged(run), pytest.raises(ValueError, match=f"{name} must be a whole number from 1 up, got {value!r}"):
        run.fit((X, Y), **{"epochs": 1, name: value})


def net() -> bp.Network:
    return bp.Network(bp.MLP([FEATURES, 8, CLASSES]), dtype="float64")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: bp.Trainer(bp.MLP([2, 2]), bp.CrossEntropy(), bp.SGD()),
            TypeError,
            r"network must be a bpcore Network, got MLP",
        ),
        (lambda: bp.Trainer(net(), "mse", bp.SGD()), TypeError, "loss must be a bpcore Loss, got 'mse'"),
        (lambda: bp.Trainer(net(), bp.CrossEntropy, bp.SGD()), TypeError, "loss must be a bpcore Loss, got <class"),
        (lambda: bp.Trainer(net(), bp.CrossEntropy(), "adam"), TypeError, "optimizer must be a bpcore Optimizer, got 'adam'"),
        (lambda: trainer(clip_norm=0.0), ValueError, "clip_norm must be"),
        (lambda: trainer(clip_norm=-1.0), ValueError, "clip_norm must be"),
        (lambda: trainer(clip_norm=math.nan), ValueError, "clip_norm must be"),
        (lambda: trainer(accumulate=0), ValueError, "accumulate must be a whole number"),
        (lambda: trainer(accumulate=1.5), ValueError, "accumulate must be a whole number"),
        (lambda: trainer(seed=-1), ValueError, "seed must be a whole number"),
        (lambda: trainer(seed=0.5), ValueError, "seed must be a whole number"),
        (lambda: trainer(schedule=0.1), TypeError, "schedule must be a function of the step"),
        (lambda: trainer(callbacks=[print]), TypeError, "callbacks must be bpcore Callbacks, got <built-in function print>"),
        (lambda: trainer(metrics=[bp.MSE]), ValueError, "a metric must be one of"),
        (lambda: trainer(bp.ReLU()), ValueError, r"ReLU\(\) has no trained parameter; there is nothing to train"),
        (lambda: bp.Progress(every=0), ValueError, "every must be"),
        (lambda: bp.EarlyStopping(patience=0), ValueError, "patience must be"),
        (lambda: bp.Checkpoint("x", every=0), ValueError, "every must be"),
        (lambda: bp.TopK(0), ValueError, "k must be a whole number"),
        (lambda: bp.TopK(True), ValueError, "k must be a whole number"),
    ],
)
def test_bad_types_and_hyperparameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("monitor", [bp.EarlyStopping(), bp.Checkpoint("never-written", best="test_accuracy")], ids=repr)
def test_nothing_to_monitor(monitor):
    """At the end of the first epoch: what there is, and how to have it."""
    run = trainer(callbacks=[monitor])
    with pytest.raises(ValueError, match=r"there is no 'test_.*' to monitor, only .*training_loss.*; choose one"):
        run.fit((X, Y), epochs=1)


def test_a_network_that_was_moved():
    run = trainer()
    run.network.to("numpy")
    with pytest.raises(RuntimeError, match=r"the network was moved after the trainer was made; move first: Trainer\(net.to"):
        run.step(X, Y)


# mixed backends


@pytest.mark.parametrize("where", [0, 1, 2], ids=["X", "y", "weights"])
def test_arrays_of_another_backend(where, backend):
    """Never moved by accident: the error says how. Host data may go anywhere."""
    given = [X, Y, W]
    given[where] = backend.asarray(given[where])
    run = trainer(backend="array_api_strict:device2")
    calls = (lambda: run.step(*given), lambda: run.fit(tuple(given), epochs=1), lambda: run.evaluate(tuple(given)))
    for call in calls:
        if isinstance(given[where], np.ndarray):
            call()
            continue
        message = r"expected an array of backend 'array_api_strict:device2' .* got .*; move it first: bp.get_backend\('array"
        with unchanged(run), pytest.raises(TypeError, match=message):
            call()


# a loss that is not finite


class Explode(bp.Module):
    """z, and inf in its training step number `at`."""

    def __init__(self, at: int):
        self.at = at

    def forward(self, theta, z, mode):
        return (z * math.inf if mode.training and mode.step == self.at else z), None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


@pytest.fixture(params=["numpy", "torch", "array_api_strict", "array_api_strict:device1"])
def on(request):
    try:
        return bp.get_backend(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))


def exploding(at: int, on: bp.Backend, **options) -> bp.Trainer:
    layers = bp.Linear(FEATURES, 8), bp.ReLU(), Explode(at), bp.Linear(8, CLASSES)
    return trainer(bp.Sequential(bp.Sequential(*layers[:2]), *layers[2:]), backend=on, **options)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate": 3}], ids=["plain", "clipped", "accumulated"])
def test_a_loss_that_is_not_finite(options, on):
    """Stops, names the first module whose output is not finite, and θ is the last good one: finite, and of a step before."""
    thetas = []
    call = Call(lambda trainer, J: thetas.append(on.to_host(trainer.network.theta).copy()))
    run = exploding(7, on, callbacks=[call], **options)
    start = on.to_host(run.network.theta).copy()
    with pytest.raises(bp.NonFiniteLoss, match="the first module whose output is not finite is") as caught:
        run.fit((X, Y), (X, Y), epochs=4, batch_size=8)
    assert isinstance(caught.value, FloatingPointError)
    clip = "" if "clip_norm" in options else "pass clip_norm=1.0, "
    assert f"lower lr, {clip}or look at the scale of the data" in str(caught.value)
    theta = on.to_host(run.network.theta)
    good = {1 + step: at_step for step, at_step in enumerate(thetas)} | {0: start}
    np.testing.assert_array_equal(theta, good[run.steps])
    assert all(np.all(np.isfinite(on.to_host(vector))) for vector in run.moments.values())
    assert run.steps == (5 if on.asynchronous else 7)
    assert (run.epoch, run.position, len(run.history)) == (1, run.steps - 5, 1)
    if not on.asynchronous:
        assert "J = nan at step 7: the first module whose output is not finite is 1: Explode" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_training_goes_on_from_the_last_good_theta(on):
    """When what was wrong is mended, to the same end as if it had never been."""
    run, unbroken = exploding(7, on), exploding(-1, on)
    with pytest.raises(bp.NonFiniteLoss):
        run.fit((X, Y), epochs=4, batch_size=8)
    for module in run.network.module.modules:
        if isinstance(module, Explode):
            module.at = -1
    run.fit((X, Y), epochs=4, batch_size=8)
    unbroken.fit((X, Y), epochs=4, batch_size=8)
    assert_same(become(run), become(unbroken))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("weight", [1e300, math.inf])
def test_a_module_that_overflows_is_named(weight):
    """In the first step, by its path: nothing has changed."""
    run = trainer(bp.Sequential(bp.Residual(bp.Linear(FEATURES, FEATURES)), bp.Power(2), bp.Linear(FEATURES, CLASSES)))
    run.network.parameters()["0.body.W"][...] = weight
    first = "0.body: Linear" if weight == math.inf else "1: Power"
    with (
        unchanged(run),
        pytest.raises(bp.NonFiniteLoss, match=f"at step 0: the first module whose output is not finite is {first}"),
    ):
        run.fit((X, Y), epochs=1)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_gradient_that_is_not_finite_is_named():
    """J is finite, its gradient is not: the square root at zero."""
    run = trainer(bp.Sequential(bp.Linear(FEATURES, CLASSES), bp.Power(2), bp.Power(0.5)), loss=SQUARED)
    run.network.theta[...] = 0.0
    with unchanged(run), pytest.raises(bp.NonFiniteLoss, match=r"J = .*: the gradient of 0.W is not finite"):
        run.fit((X, T), epochs=1)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_gradient_whose_norm_alone_overflows_is_a_gradient():
    """float32 squares overflow at 1e19: that is no reason to stop."""
    run = trainer(loss=SQUARED, dtype="float32", optimizer=bp.SGD(1e-25))
    run.fit((X, 1e18 * T), epochs=1)
    assert run.steps == 2


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_run_that_diverges(on):
    """lr far too large: it stops, and θ is finite."""
    run = trainer(backend=on, loss=SQUARED, optimizer=bp.SGD(1e6), dtype="float32")
    with pytest.raises(bp.NonFiniteLoss, match="the first module whose output is not finite is"):
        run.fit((X, T), epochs=200, batch_size=8)
    assert np.all(np.isfinite(on.to_host(run.network.theta)))


def test_the_working_folder_is_left_alone():
    assert not os.path.exists("never-written")
