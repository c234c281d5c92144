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
    "inf in the second input": (((X, put(X, math.inf, (1, 1))), Y), ValueError, r"train: X\[1\] has 1 values .* \(1, 1\)"),
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
    "labels in a column": ((X, Y[:, None]), ValueError, r"class indices of shape \(2,\).* got y of shape \(2, 1\)"),
    "rows that are no probabilities": ((X, np.ones((ROWS, CLASSES))), ValueError, "probability rows, >= 0 with sum 1"),
    "logistic labels": ((X, T), ValueError, "LogisticLoss expected labels 0 or 1, got values from", LOGISTIC),
    "(n, 1) against (n, 3)": (
        (X, T[:, :1]),
        ValueError,
        r"one shape, got \(2, 3\) and \(2, 1\); give the network as many",
        SQUARED,
    ),
    "(n,) against (n, 3)": ((X, T[:, 0]), ValueError, r"one shape, got \(2, 3\) and \(2,\); give the network as many", SQUARED),
    "no examples": ((X[:0], Y[:0]), ValueError, "train is empty: X has 0 rows; give at least one example"),
    "no batches": ([], ValueError, "train is empty: it gave no batch"),
    "an empty batch": ([(X[:0], Y[:0])], ValueError, "batch 0 of train is empty: X has 0 rows"),
    "an empty batch later": (
        [(X, Y), (X[:0], Y[:0])],
        ValueError,
        "batch 1 of train is empty: X has 0 rows",
    ),
    "complex X": ((X * 1j, Y), TypeError, r"train: X expected numbers, got an array of dtype complex128; give real and"),
    "too few features": ((X[:, 1:], Y), ValueError, r"0: Linear expected features 5 in the last axis, got z of shape \(2, 4\); "),
    "features without an axis": ((X[:, 0], Y), ValueError, r"X needs rows and features, got shape \(40,\); .*reshape"),
    "labels by rows": ((X, np.stack([Y, Y], -1)), ValueError, r"tried on the first 2 rows of <train: .* y int64 \(40, 2\)"),
    "weights of classes": ((X, Y, {0: 1, 1: 3}), TypeError, r"one weight an example, .*weights\[c\] for c in y"),
    "balanced weights": ((X, Y, "balanced"), TypeError, "compute_sample_weight"),
    "lengths": ((X, Y[1:]), ValueError, r"expected X, y and weights of one length, got \[40, 39\] rows; drop"),
    "lengths of weights": ((X, Y, W[1:]), ValueError, r"of one length, got \[40, 40, 39\] rows"),
    "a scalar": ((X, 1), ValueError, "train expected arrays with an axis of examples, got a scalar"),
    "text": ((X, Y.astype(str)), TypeError, r"train: y expected numbers, got an array of dtype <U21, e\.g\. '\d'; convert it"),
    "names": (
        (X, np.array(["a", "b"])[Y % 2]),
        TypeError,
        r"train: y expected numbers, .*'[ab]'; number the classes: np\.unique\(y,",
    ),
    "NumPy's texts as objects": (
        (X, np.array([np.str_("ab"[i % 2]) for i in Y], object)),
        TypeError,
        r"train: y expected numbers, .*'[ab]'.*; number the classes: np\.unique\(y,",
    ),
    "ragged": (
        (X, [[1], [1, 2]]),
        ValueError,
        "expected rows of one length, got data that cannot become an array .* pad or cut the rows",
    ),
    "X alone": ((X,), TypeError, r"train expected a tuple \(X, y\) or \(X, y, weights\), got a tuple of 1"),
    "five arrays": ((X, Y, W, W, W), TypeError, "got a tuple of 5"),
    "the four arrays of a split": (
        (X, X, Y, Y),
        TypeError,
        "got four arrays; of .* pass the first and the third",
    ),
    "a list of four arrays": (
        [X, X, Y, Y],
        TypeError,
        "got four arrays; of .* pass the first and the third",
    ),
    "inputs in a list": (([X, X], Y), TypeError, r"X is a list of 2 arrays of 40 rows; several inputs are a tuple: tuple\(X\)"),
    "inputs of several kinds in a list": (
        ([np.zeros((2, 8), int), np.ones((2, 8), bool)], Y[:2]),
        TypeError,
        r"train: X is a list of arrays of several kinds of numbers; several inputs are a tuple: tuple\(X\)",
    ),
    "an array": (X, TypeError, r"train expected a tuple \(X, y\) or .* batches, got ndarray"),
    "a list of arrays": ([X, Y], TypeError, r"train expected a tuple .* got a list of ndarray; make it a tuple: tuple\(train\)"),
    "batches of dictionaries": (
        [{"X": X, "y": Y}],
        TypeError,
        r"train expected a tuple .*, got \{'X': .*; make each batch",
    ),
    "a dictionary": ({"X": X, "y": Y}, TypeError, r"train expected a tuple .* batches, got \{'X': ndarray"),
    "a mask": (
        (np.ma.masked_array(X, X > 2), Y),
        TypeError,
        r"train: X is a masked array with masked entries, .*; drop these rows, or fill the entries: X\.filled\(0\)",
    ),
    "a mask on y": ((X, np.ma.masked_equal(Y, 2)), TypeError, r"train: y is a masked array with masked entries"),
    "a mask on weights": ((X, Y, np.ma.masked_greater(W, 0)), TypeError, r"train: weights is a masked array"),
    "a mask in a batch": ([(np.ma.masked_array(X, X > 2), Y)], TypeError, r"train: X is a masked array"),
    "a mask in the second input": (((X, np.ma.masked_array(X, X > 2)), Y), TypeError, r"train: X\[1\] is a masked array"),
    "weights that vanish": (
        (X, Y, W * 1e-320),
        ValueError,
        "train: weights sum to .*e-319, which float64 cannot hold; divide them",
    ),
    "a number": (3, TypeError, "or an iterable of such batches, got 3"),
    "None": (None, TypeError, "or an iterable of such batches, got None"),
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


@pytest.mark.parametrize(
    "name", ["lengths", "no examples", "no batches", "X alone", "a number", "too few features", "complex X", "a mask"]
)
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
        *(("training_sample", value) for value in (-1, 0.5, True)),
        *(("evaluation_batch_size", value) for value in (0, "8", None)),
        *(("drop_last", value) for value in (1, None, "no")),
    ],
)
def test_numbers_of_fit(name, value):
    run = trainer()
    least = 0 if name == "training_sample" else 1
    rule = "True or False" if name == "drop_last" else f"a whole number from {least} up"
    with unchanged(run), pytest.raises(ValueError, match=f"{name} must be {rule}, got {value!r}"):
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
        (
            lambda: trainer(schedule=lambda step, epoch: 1.0),
            TypeError,
            r"schedule\(step, epoch\): missing .* 'epoch'; it is called with \(step\)",
        ),
        (
            lambda: trainer(callbacks=[made(bp.Callback, on_epoch=lambda self, trainer: None)]),
            TypeError,
            r"Made\.on_epoch\(trainer\): too many .*; it is called with \(trainer, record\)",
        ),
        (
            lambda: trainer(metrics=[made(bp.Metric, name="made", scores=lambda self, t: t)]),
            TypeError,
            r"Made\.scores\(t\): too many .*; it is called with \(t, y\)",
        ),
        (
            lambda: trainer(metrics=[made(bp.Metric, name="made", terms=lambda self, t, y, w: t.sum())]).evaluate((X, Y)),
            TypeError,
            "metric made: terms must be a tuple of arrays",
        ),
        (
            lambda: trainer().fit((X, Y), epochs=1, augment=lambda X: X),
            TypeError,
            r"augment\(X\): too many .*; it is called with \(X, generator\)",
        ),
        (
            lambda: trainer().fit(made(object, __getitem__=lambda self, i: (X[i], Y[i])), epochs=1),
            TypeError,
            r"give it to a loader: torch\.utils\.data\.DataLoader\(dataset, batch_size=32\)",
        ),
        (lambda: trainer(callbacks=[print]), TypeError, "callbacks must be bpcore Callbacks, got <built-in function print>"),
        (lambda: trainer(metrics=[bp.MSE]), ValueError, "a metric must be one of"),
        (lambda: trainer(bp.ReLU()), ValueError, r"ReLU\(\) has no trained parameter; there is nothing to train"),
        (lambda: bp.Progress(every=0), ValueError, "every must be"),
        (lambda: bp.Progress(lines="yes"), ValueError, "lines must be True or False"),
        *(
            (lambda delta=delta: bp.EarlyStopping(min_delta=delta), ValueError, "min_delta must be a finite number")
            for delta in (-0.5, math.nan, math.inf, "0.1", True, None)
        ),
        (lambda: bp.EarlyStopping(3), ValueError, "monitor must be a text such as 'test_loss', got 3"),
        (lambda: bp.EarlyStopping(higher="yes"), ValueError, "higher must be True or False"),
        (lambda: bp.EarlyStopping(restore_best=None), ValueError, "restore_best must be True or False"),
        (lambda: bp.Checkpoint(None), ValueError, "path must be a path"),
        (lambda: bp.Checkpoint("x", best=True), ValueError, "best must be a text"),
        (lambda: bp.HistoryLog(3), ValueError, "path must be a path"),
        (lambda: bp.schedules.ReduceOnPlateau(monitor=None), ValueError, "monitor must be a text"),
        (lambda: bp.EarlyStopping(patience=0), ValueError, "patience must be"),
        (lambda: bp.Checkpoint("x", every=0), ValueError, "every must be"),
        (lambda: bp.TopK(0), ValueError, "k must be a whole number"),
        (lambda: bp.TopK(True), ValueError, "k must be a whole number"),
    ],
)
def test_bad_types_and_hyperparameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def made(base, **own):
    """An object of a user's class."""
    return type("Made", (base,), own)()


def plateau(monitor: str = "test_loss") -> bp.schedules.Schedule:
    return bp.schedules.ReduceOnPlateau(monitor=monitor)


# what looks at a figure, the figure, whether there is validation
MONITORS = {
    "early stopping": ({"callbacks": bp.EarlyStopping()}, "test_loss", False),
    "early stopping, another name": ({"callbacks": bp.EarlyStopping("test_accuracy")}, "test_accuracy", True),
    "the gap without a test loss": ({"callbacks": bp.EarlyStopping("gap")}, "gap", False),
    "the best checkpoint": ({"callbacks": bp.Checkpoint("never-written", best="test_accuracy")}, "test_accuracy", True),
    "a plateau": ({"schedule": plateau()}, "test_loss", False),
    "a plateau after warming up": ({"schedule": bp.schedules.WarmUp(3, plateau("training_mae"))}, "training_mae", True),
    "warming up twice": ({"schedule": bp.schedules.WarmUp(3, bp.schedules.WarmUp(2, plateau()))}, "test_loss", False),
}


@pytest.mark.parametrize("name", MONITORS)
def test_nothing_to_monitor(name):
    """Before the first step: what there is, and how to have it."""
    options, monitor, held_out = MONITORS[name]
    run = trainer(**options, metrics=["log_loss"])
    only = "training_loss, training_log_loss" + ", test_loss, test_log_loss, gap" * held_out
    message = f"there is no '{monitor}' to monitor, only {only}; choose one, or pass validation to fit"
    with unchanged(run), pytest.raises(ValueError, match=message):
        run.fit((X, Y), (X, Y) if held_out else None, epochs=1)


@pytest.mark.parametrize("monitor", ["training_loss", "test_accuracy", "gap"])
def test_what_is_measured_may_be_monitored(monitor):
    higher = monitor == "test_accuracy"
    schedule = bp.schedules.WarmUp(3, bp.schedules.ReduceOnPlateau(monitor=monitor, higher=higher))
    run = trainer(callbacks=bp.EarlyStopping(monitor, higher=higher), schedule=schedule, metrics="accuracy")
    run.fit((X, Y), (X, Y), epochs=2)
    assert run.callbacks[0].best == run.history[run.callbacks[0].best_epoch - 1][monitor]


@pytest.mark.parametrize(
    ("observer", "says"),
    [
        ({"callbacks": bp.EarlyStopping("test_accuracy")}, "higher values of test_accuracy are better; pass higher=True"),
        ({"callbacks": bp.Checkpoint("never-written", best="test_loss", higher=True)}, "lower values of test_loss are better"),
        ({"schedule": bp.schedules.ReduceOnPlateau(monitor="training_accuracy")}, "higher values of training_accuracy"),
    ],
)
def test_a_monitor_in_the_wrong_direction_warns(observer, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(RuntimeWarning, match=says):
        trainer(metrics=["accuracy"], **observer).fit((X, Y), (X, Y), epochs=1)


def test_batches_may_be_lists():
    """As a DataLoader of PyTorch gives them."""
    run, same = trainer(), trainer()
    run.fit([[X, Y]], epochs=2)
    same.fit([(X, Y)], epochs=2)
    np.testing.assert_array_equal(run.network.theta, same.network.theta)


def test_tables_whose_order_differs():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table, y = pandas.DataFrame(X, columns=list("abcde")), pandas.Series(Y)
    run = trainer()
    with pytest.raises(ValueError, match="validation: X has the columns of the training data in another order"):
        run.fit((table, y), (table[list("bacde")], y), epochs=1)
    with pytest.raises(ValueError, match=r"X lacks \['b'\], other columns than the training data, .*choose these"):
        run.fit((table, y), (table[list("acde")], y), epochs=1)
    net, loss = run.network, bp.CrossEntropy()
    for call in (
        lambda: run.step(table, y[::-1]),
        lambda: net.value_and_gradient(loss, table, y[::-1]),
        lambda: bp.plots.confusion(y, y[::-1]),
    ):
        with pytest.raises(ValueError, match="have the same index in different orders"):
            call()


def test_a_training_sample_without_weight():
    weights = np.zeros(len(X))
    weights[0] = 1
    run = trainer(seed=1)
    with (
        unchanged(run),
        pytest.raises(ValueError, match="train: the 2 rows that training_sample draws all have weight 0; draw more"),
    ):
        run.fit((X, Y, weights), epochs=1, training_sample=2)


def test_a_step_on_swapped_arguments():
    for labels in (Y, Y.astype("float64")):
        with pytest.raises(ValueError, match=r"expected features .* or are X and y swapped\? step\(X, y\)"):
            trainer().step(labels, X)
    with pytest.raises(ValueError, match=r"expected features (?!.*swapped)"):
        trainer().step(X[:, 1:], Y)


def test_tensors_for_a_network_of_numpy():
    torch = pytest.importorskip("torch")
    for call in (trainer().network, lambda X: trainer().fit([(X, torch.asarray(Y))], epochs=1)):
        with pytest.raises(TypeError, match=r"or make the network there: Network\(\.\.\., backend='torch'\)"):
            call(torch.asarray(X))


def test_the_columns_of_the_training_tables_are_remembered(tmp_path):
    """At each door of the trainer, of X and of y, in batches, and when it is trained again."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table, y = pandas.DataFrame(X, columns=list("abcde")), pandas.DataFrame(np.eye(CLASSES)[Y], columns=list("uvw")[:CLASSES])
    other, reverse = table[list("bacde")], y[y.columns[::-1]]
    dummies = table.rename(columns={"e": "f"})
    run = trainer(loss=bp.SquaredError())
    run.evaluate((other, y))  # not trained yet
    run.fit((table, y), epochs=1)
    for X_given, y_given, message in (
        (other, y, r"X has the columns of .* in another order, .* in this order: \['a', 'b', 'c', 'd', 'e'\]"),
        (dummies, y, r"X has \['f'\] and lacks \['e'\], other columns than the training data, .*choose these"),
        (table, reverse, "y has the columns of .* in another order"),
    ):
        for call in (
            lambda X=X_given, y=y_given: run.fit((X, y), epochs=2),
            lambda X=X_given, y=y_given: run.fit((table.to_numpy(), y.to_numpy()), (X, y), epochs=2),
            lambda X=X_given, y=y_given: run.evaluate([(table, reverse.to_numpy()), (X, y)]),
            lambda X=X_given, y=y_given: run.evaluate((X, y)),
            lambda X=X_given, y=y_given: run.fit([(X, y)], epochs=2),
            lambda X=X_given, y=y_given: run.step(X, y),
            *((lambda X=X_given: run.predict(X),) if y_given is y else ()),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    with pytest.raises(ValueError, match="batch 1 of train: X has the columns of the tables before it in another order"):
        trainer(loss=bp.SquaredError()).fit([(table, y), (other, y)], epochs=1)
    stepping = trainer(loss=bp.SquaredError())
    stepping.step(table, y)
    with pytest.raises(ValueError, match="the batch: X has the columns of the training data in another order"):
        stepping.step(other, y)
    assert run.epoch == 1
    run.save(tmp_path / "run.st")
    resumed = trainer(loss=bp.SquaredError())
    resumed.resume(tmp_path / "run.st")
    with pytest.raises(ValueError, match="the data: X has the columns of the training data in another order"):
        resumed.predict(other)
    run.fit((table.rename(columns=str.upper), y), (table.to_numpy(), y.to_numpy()), epochs=2)  # names of their own
    assert len(run.predict(table.to_numpy())) == len(X)


@pytest.mark.parametrize("make", [bp.HistoryLog, bp.Checkpoint, bp.LearningCurve], ids=lambda make: make.__name__)
@pytest.mark.parametrize("at", ["missing/file.csv", "folder.csv"])
def test_no_place_to_write_to(make, at, tmp_path):
    """Before the first step, not after an epoch's work."""
    (tmp_path / "folder.csv").mkdir()
    run = trainer(callbacks=make(tmp_path / at))
    error, message = (
        (FileNotFoundError, "there is no folder .*missing; make it first")
        if "missing" in at
        else (IsADirectoryError, "it is a folder; name a file in it")
    )
    with unchanged(run), pytest.raises(error, match=f"cannot write .*: {message}"):
        run.fit((X, Y), epochs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.csv"]


def test_a_sample_of_an_iterable():
    """Nobody knows how many there are to draw from."""
    run = trainer()
    with unchanged(run), pytest.raises(ValueError, match=r"training_sample needs arrays .* and train is an iterable; leave"):
        run.fit([(X, Y)], epochs=1, training_sample=8)


@pytest.mark.parametrize("factor", [math.nan, math.inf, np.float32("nan")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_schedule_that_gives_no_number(factor, at):
    """The step in which it does is not taken."""
    thetas = []
    call = Call(lambda trainer, J: thetas.append(trainer.network.theta.copy()))
    run = trainer(schedule=lambda step: factor if step == at else 1.0, callbacks=call, optimizer=bp.SGD(0.1))
    thetas.append(run.network.theta.copy())
    with pytest.raises(ValueError, match=rf"the schedule gave a learning rate of (nan|inf) at step {at}; it must be finite"):
        run.fit((X, Y), epochs=1, batch_size=8)
    assert (run.steps, run.position, len(run.history)) == (at, at, 0)
    np.testing.assert_array_equal(run.network.theta, thetas[-1])


def test_a_network_that_was_moved():
    run = trainer()
    run.network.to("numpy")
    with pytest.raises(RuntimeError, match=r"the network was moved after the trainer was made; move first: Trainer\(net.to"):
        run.step(X, Y)


# a batch given to a step, and evaluation


def in_two(X, y):
    return [(X[:20], y[:20]), (X[20:], y[20:])]


LAST = np.where(np.arange(ROWS) == ROWS - 1, -1, Y)  # of two halves, the second is bad
CALLS = {  # name: (the call, with bad labels and good ones, options of the trainer)
    "step": (lambda run, y, good: run.step(X, y), {}),
    "step, accumulated": (lambda run, y, good: run.step(X, y), {"accumulate": 3}),
    "evaluate": (lambda run, y, good: run.evaluate((X, y)), {}),
    "evaluate, batches": (lambda run, y, good: run.evaluate(in_two(X, y)), {}),
    "fit": (lambda run, y, good: run.fit((X, y), epochs=1), {}),
    "validation": (lambda run, y, good: run.fit((X, good), (X, y), epochs=1), {}),
    "value_and_gradient": (lambda run, y, good: run.network.value_and_gradient(run.loss, X, y), {}),
}
LABELS = {  # name: (labels, the values that the error names, the loss)
    "-1": (Y - 1, "class indices 0 to 2 for 3 outputs, got values from -1 to 1", bp.CrossEntropy()),
    "k": (Y + 1, r"class indices 0 to 2 for 3 outputs, got values from \d to 3", bp.CrossEntropy()),
    "-1, the last": (LAST, "class indices 0 to 2 for 3 outputs, got values from -1 to", bp.CrossEntropy()),
    "a list": ((Y - 1).tolist(), "class indices 0 to 2 for 3 outputs, got values from -1 to 1", bp.CrossEntropy()),
    "int8": ((Y - 1).astype("int8"), "class indices 0 to 2 for 3 outputs, got values from -1 to 1", bp.CrossEntropy()),
    "rows": (np.ones((ROWS, CLASSES)), "probability rows, >= 0 with sum 1", bp.CrossEntropy()),
    "logistic": (2 * np.eye(CLASSES, dtype=int)[Y], "labels 0 or 1, got values from 0 to 2", LOGISTIC),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LABELS)
def test_labels_out_of_range(name, call, backend):
    """They come from the host, and are looked at there, wherever the network is; nothing has changed."""
    labels, message, loss = LABELS[name]
    do, options = CALLS[call]
    run = trainer(backend=backend.backend, loss=loss, **options)
    with unchanged(run), pytest.raises(ValueError, match=f"{type(loss).__name__} expected {message}"):
        do(run, labels, np.eye(CLASSES)[Y] if loss is LOGISTIC else Y)


def test_a_bad_batch_further_on_in_validation(backend):
    """When it comes, at the epoch's end: no record is made of it."""
    run = trainer(backend=backend.backend)
    with pytest.raises(ValueError, match="expected class indices 0 to 2 for 3 outputs, got values from -1 to"):
        run.fit((X, Y), in_two(X, LAST), epochs=1, batch_size=8)
    assert (run.steps, run.epoch, len(run.history)) == (5, 0, 0)
    run.fit((X, Y), in_two(X, Y), epochs=1, batch_size=8)
    assert (run.steps, run.epoch, len(run.history)) == (5, 1, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("iterable", [False, True], ids=["arrays", "batches"])
def test_evaluate_looks_at_the_inputs(value, iterable, backend):
    run, bad = trainer(backend=backend.backend), put(X, value, (30, 2))
    row = 10 if iterable else 30
    message = rf"data: X has 1 values that are NaN or infinite, the first at \({row}, 2\); drop or fill them"
    with unchanged(run), pytest.raises(ValueError, match=message):
        run.evaluate(in_two(bad, Y) if iterable else (bad, Y))
    if not iterable:
        with pytest.raises(ValueError, match=message):
            run.evaluate((backend.asarray(bad), Y))


BATCHES = {  # name: (a batch for a step in three micro-batches, what is said of it)
    "y too short": ((X, Y[1:]), r"a batch expected X, y and weights of one length, got \[40, 39\] rows"),
    "X too short": ((X[1:], Y), r"a batch expected X, y and weights of one length, got \[39, 40\] rows"),
    "weights too short": ((X, Y, W[1:]), r"a batch expected X, y and weights of one length, got \[40, 40, 39\] rows"),
    "weights too long": ((X, Y, np.ones(41)), r"a batch expected X, y and weights of one length, got \[40, 40, 41\] rows"),
    "empty": ((X[:0], Y[:0]), "a batch is empty: X has 0 rows; give at least one example"),
    "empty, weighted": ((X[:0], Y[:0], W[:0]), "a batch is empty: X has 0 rows; give at least one example"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_in_micro_batches(name, backend):
    given, message = BATCHES[name]
    run = trainer(backend=backend.backend, accumulate=3)
    with unchanged(run), pytest.raises(ValueError, match=message):
        run.step(*given)
    with unchanged(run), pytest.raises(ValueError, match=r"expected|got no examples"):
        trainer(backend=backend.backend).step(*given)


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "float32"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_of_any_number(kind, accumulate, backend):
    """They are taken in the network's dtype."""
    weights = (np.arange(ROWS) % 3).astype(kind)
    run, expected = (trainer(backend=backend.backend, accumulate=accumulate) for _ in range(2))
    Js = [run.step(X, Y, weights), expected.step(X, Y, weights.astype("float64"))]
    assert float(backend.to_host(Js[0])) == float(backend.to_host(Js[1])) > 0
    assert_same(become(run), become(expected))
    J = run.network.value_and_gradient(run.loss, X, Y, weights)[0]
    assert run.evaluate((X, Y, weights))["loss"] == pytest.approx(float(backend.to_host(J)), rel=1e-12)


@pytest.mark.parametrize("weights", [-W, put(W, -0.5, 39), (-W).astype(int), (-W).tolist()], ids=["all", "one", "int", "list"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_negative_weights(weights, accumulate, backend):
    """J would not be a mean, and a sum of zero would divide."""
    run = trainer(backend=backend.backend, accumulate=accumulate)
    for call in (lambda w: run.step(X, Y, w), lambda w: run.network.value_and_gradient(run.loss, X, Y, w)):
        with unchanged(run), pytest.raises(ValueError, match=r"weights must be >= 0, got -(1|0\.5).*; fix the weights"):
            call(weights)
        if not backend.backend.asynchronous:  # there the host would have to wait to see them
            with unchanged(run), pytest.raises(ValueError, match="weights must be >= 0"):
                call(backend.asarray(np.asarray(weights, "float64")))


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
    assert f"lower lr, {clip}or check the scale of the data" in str(caught.value)
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


class NoGradient(bp.Module):
    """u = z ⊙ g, right but for dg, which is NaN."""

    def __init__(self, n: int):
        self.n = n
        self.parameters = {"g": bp.Parameter((n,), bp.initializers.Constant(1.0))}

    def forward(self, theta, z, mode):
        return z * theta.g, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.g[...] = math.nan
        return v * theta.g


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_norm": 1e-3, "accumulate": 3}], ids=repr)
def test_the_gradient_that_is_named_is_the_one(options, on):
    """Clipping divides all of them by their norm: they are looked at before it."""
    if on.asynchronous:
        pytest.skip("the gradient is not looked at in each step")
    run = trainer(bp.Sequential(bp.Linear(FEATURES, 8), NoGradient(8), bp.Linear(8, CLASSES)), backend=on, **options)
    with unchanged(run), pytest.raises(bp.NonFiniteLoss, match=r"J = [\d.]+ at step 0: the gradient of 1\.g is not finite"):
        run.step(X, Y)


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


# lr, how large the labels are, options of fit; float32 ends at 3.4e38
DIVERGED = {
    "seen in the next step": (1e20, 1, {"epochs": 5, "batch_size": 8}),
    "seen at the epoch's end": (1e20, 1, {"epochs": 1, "batch_size": ROWS}),
    "an epoch of one batch": (1e38, 1, {"epochs": 1, "batch_size": ROWS}),
    "and θ overflows": (1e38, 100, {"epochs": 1, "batch_size": ROWS}),
    "and θ overflows, in the next step": (1e38, 100, {"epochs": 5, "batch_size": 8}),
}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("name", DIVERGED)
def test_a_theta_that_is_finite_is_not_yet_good(name, every, on, tmp_path):
    """J is finite in the step that spoils θ, and the next J is not: back to a θ whose J is, and nothing bad is written."""
    lr, size, options = DIVERGED[name]
    path, given = tmp_path / "run.safetensors", (X, size * T)
    run = trainer(
        backend=on, loss=SQUARED, optimizer=bp.SGD(lr), dtype="float32", callbacks=[bp.Checkpoint(path, every), bp.Progress()]
    )
    run.save(path)
    before, J = path.read_bytes(), run.evaluate(given)["loss"]
    with pytest.raises(bp.NonFiniteLoss, match=r"J = (inf|nan) at step .*: the first module whose output is not finite is"):
        run.fit(given, given, **options)
    assert path.read_bytes() == before
    assert (len(run.history), run.steps, run.epoch, run.position) == (0, 0, 0, 0)
    assert run.evaluate(given)["loss"] == J
    run.save(path)
    assert bp.Network.load(path).theta.tobytes() == on.to_host(run.network.theta).tobytes()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(("lr", "size"), [(1e20, 1), (1e38, 1), (1e38, 100)])
def test_a_bad_theta_is_not_saved(lr, size, on, tmp_path):
    run = trainer(backend=on, loss=SQUARED, optimizer=bp.SGD(lr), dtype="float32")
    run.step(X, size * T)
    with pytest.raises(bp.NonFiniteLoss, match=r"J = (inf|nan) at step 1: the first module whose output is not finite is"):
        run.save(tmp_path / "run.safetensors")
    assert not list(tmp_path.iterdir())
    assert math.isfinite(run.evaluate((X, size * T))["loss"])
    run.save(tmp_path / "run.safetensors")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate": 3}], ids=["plain", "clipped", "accumulated"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_batch_that_alone_is_to_blame(steps, options, on):
    """θ is good, as the batch before shows: no step is lost for a NaN in one batch, and the next one is taken."""
    if on.asynchronous:
        pytest.skip("J is not looked at in each step")
    run, expected = (trainer(backend=on, dropout=0.3, **options) for _ in range(2))
    for one in (run, expected):
        for _ in range(steps):
            one.step(X, Y)
    with unchanged(run), pytest.raises(bp.NonFiniteLoss, match=f"at step {steps}: the first module .* is 0: Linear"):
        run.step(put(X, math.nan, (2, 2)), Y)
    for one in (run, expected):
        one.step(X, Y)
    assert run.steps == steps + 1
    assert_same(become(run), become(expected))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("at", [99, 100, 101, 120, 149])
def test_a_long_epoch_is_taken_up_where_it_was_good(at, on):
    """150 steps an epoch: from the step kept last, with the batches that follow it, to the same end."""
    given = examples(150)
    run, unbroken = (exploding(step, on, optimizer=bp.SGD(0.1, 0.9), metrics="accuracy") for step in (at, -1))
    with pytest.raises(bp.NonFiniteLoss):
        run.fit(given, epochs=1, batch_size=1)
    assert run.steps == run.position == ((0 if at <= 100 else 100) if on.asynchronous else at)
    run.network.module.modules[1].at = -1
    for one in (run, unbroken):
        one.fit(given, epochs=1, batch_size=1)
    assert (run.steps, run.epoch, run.position) == (150, 1, 0)
    assert_same(become(run), become(unbroken))


def test_the_working_folder_is_left_alone():
    assert not os.path.exists("never-written")


def test_two_that_would_write_to_one_file(tmp_path):
    callbacks = [bp.Checkpoint(tmp_path / "a", best="test_loss"), bp.Checkpoint(tmp_path / "a")]
    run = trainer(callbacks=callbacks)
    with unchanged(run), pytest.raises(ValueError, match="would write to one file; give each a path of its own"):
        run.fit((X, Y), (X, Y), epochs=1)


def test_what_was_changed_since_is_checked():
    run = trainer(metrics="accuracy")
    run.metrics.append("f1")
    with pytest.raises(ValueError, match=r"a metric must be one of accuracy, .* got 'f1'"):
        run.fit((X, Y), epochs=1)
    for name in ("steps", "epoch", "position"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number from 0 up, got -3"):
            setattr(run, name, -3)


def test_warnings_name_the_line_of_the_user():
    run = trainer()
    run.fit((X, Y), epochs=1)
    net = bp.Network(bp.Sequential(bp.Linear(X.shape[1], 3), bp.Softmax()))
    for call in (lambda: run.fit((X, Y), epochs=1), lambda: bp.Trainer(net, bp.CrossEntropy(), bp.SGD(0.1))):
        with pytest.warns(Warning, match="epochs are done|takes logits") as seen:
            call()
        assert {os.path.basename(warning.filename) for warning in seen} == {"test_trainer_errors.py"}


@pytest.mark.parametrize("method", ["predict", "probabilities"])
def test_predictions_of_what_is_not_finite(method):
    run = trainer()
    run.fit((X, Y), epochs=1)
    with pytest.raises(ValueError, match=r"the data: X has 1 values that are NaN or infinite, the first at \(3, 1\)"):
        getattr(run, method)(put(X, math.nan, (3, 1)))
    with pytest.raises(TypeError, match=rf"labels and a mask are no second argument: {method}\(X\), {method}\(\(X, mask\)\)"):
        getattr(run, method)(X, X > 0)
