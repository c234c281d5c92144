"""Train 2 N steps = train N, save, resume, N more: bit for bit, for N anywhere; and what a trainer refuses to take up."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import subprocess
import sys

import numpy as np
import old_run
import pytest
from conftest import environment
from optimizer_cases import FULLEST
from runs import CLASSES, FEATURES, Call, assert_same, become, examples, trainer

import bpcore as bp
from bpcore import checkpoint, schedules
from bpcore.structure import describe

EPOCHS, STEPS = 4, 5  # 40 rows in batches of 8


class Running(bp.Module):
    """z minus the running mean of what was seen in training: a buffer, in θ's untrained tail, as BatchNorm's are."""

    def __init__(self, n: int):
        self.n = n
        self.parameters = {"mean": bp.Parameter((n,), bp.initializers.Zeros(), trained=False)}

    def forward(self, theta, z, mode):
        if mode.training:
            mode.track(theta.mean, bp.backend_of(z).xp.mean(z, axis=0), 0.1)
        return z - theta.mean, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


def running() -> bp.Module:
    layers = (bp.Linear(FEATURES, 8), Running(8), bp.ReLU(), bp.Dropout(0.3), bp.Linear(8, CLASSES))
    return bp.Sequential(Running(FEATURES), *layers)


# what a run is made of; each entry is a function, so that every run has schedules and callbacks of its own
COMBINATIONS = {
    "plain": lambda: {"optimizer": bp.SGD(0.1)},
    "momentum, dropout": lambda: {"optimizer": bp.SGD(0.1, 0.9, nesterov=True), "dropout": 0.3},
    "Adam, float32, cosine": lambda: {"dtype": "float32", "dropout": 0.3, "schedule": schedules.Cosine(EPOCHS * STEPS)},
    "AdamW, one cycle, clipped": lambda: {
        "optimizer": bp.AdamW(0.05),
        "schedule": schedules.OneCycle(EPOCHS * STEPS),
        "clip_norm": 0.5,
        "metrics": ["accuracy"],
    },
    "RMSProp, plateau": lambda: {
        "optimizer": bp.RMSProp(0.3),
        "schedule": schedules.ReduceOnPlateau(0.5, patience=0, threshold=0.5),
    },
    "Adagrad, warm-up, plateau": lambda: {
        "optimizer": bp.Adagrad(0.1),
        "dropout": 0.2,
        "schedule": schedules.WarmUp(7, schedules.ReduceOnPlateau(0.5, patience=0, threshold=0.5)),
    },
    "Lion, accumulate": lambda: {"optimizer": bp.Lion(0.01), "accumulate": 3, "dropout": 0.3, "dtype": "float32"},
    "buffers, accumulate": lambda: {"module": running(), "accumulate": 2},
    "float16": lambda: {
        "module": bp.Sequential(bp.Linear(FEATURES, 8), bp.BatchNorm(8), bp.ReLU(), bp.Dropout(0.3), bp.Linear(8, CLASSES)),
        "dtype": "float32",
        "compute_dtype": "float16",
    },
    "early stopping": lambda: {
        "optimizer": bp.Adam(0.5),
        "dropout": 0.3,
        "callbacks": [bp.EarlyStopping(patience=1), bp.Progress()],
    },
    "early stopping on accuracy, buffers": lambda: {
        "module": running(),
        "metrics": ["accuracy"],
        "callbacks": [bp.EarlyStopping("test_accuracy", patience=2, higher=True)],
    },
    **{name: lambda optimizer=optimizer: {"optimizer": optimizer} for name, optimizer in FULLEST.items()},
}


def fit(run: bp.Trainer) -> dict:
    dtype = run.network.dtype
    X, y, w = examples(weights=True)
    run.fit((X.astype(dtype), y, w.astype(dtype)), examples(seed=1), epochs=EPOCHS, batch_size=8)
    return become(run)


def build(name: str, what: object = None, seed: int = 0, **more: object) -> bp.Trainer:
    """A run of the table, and last in it a callback that calls `what` after each step."""
    options = COMBINATIONS[name]()
    options["callbacks"] = [*options.get("callbacks", []), Call(what or (lambda trainer, J: None))]
    run = trainer(seed=seed, **{**options, **more})
    if run.scaling is not None:
        run.scaling.S[...] = 2.0**24  # so that the first steps overflow
    return run


@pytest.fixture(scope="module")
def unbroken() -> dict:
    return {name: fit(build(name)) for name in COMBINATIONS}


def test_the_table_does_what_it_says(unbroken):
    """The plateaus are reached, runs stop early, buffers move: else there would be nothing to resume."""
    for name in COMBINATIONS:
        state = unbroken[name]
        steps, _, _, _, finished = state["counters"]
        assert steps == EPOCHS * STEPS or finished, name
        if "plateau" in name:
            assert state["schedule"]["current"] < 1
    assert unbroken["early stopping"]["counters"][-1] is not None
    S, good = unbroken["float16"]["scaling"]
    assert 0 < good < EPOCHS * STEPS
    assert S < 2.0**24
    assert np.all(unbroken["buffers, accumulate"]["theta"][-FEATURES - 8 :] != 0)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_resumed_anywhere_it_ends_the_same(name, unbroken, tmp_path):
    """From before the first step to the last one, at the borders of epochs and within; each time in a new trainer."""
    for n in range(unbroken[name]["counters"][0] + 1):

        def stop(trainer, J, n=n):
            trainer.interrupted = trainer.steps == n

        path = tmp_path / f"{n}.safetensors"
        first, second = build(name, stop), build(name, seed=5)  # the seed is the file's
        if n:
            fit(first)
        assert first.steps == n
        first.save(path)
        second.network.theta[...] = 7.0
        second.resume(path)
        assert_same(become(second), become(first))
        assert_same(fit(second), unbroken[name])


@pytest.mark.parametrize("name", ["momentum, dropout", "buffers, accumulate", "early stopping"])
def test_resumed_again_and_again(name, unbroken, tmp_path):
    """Three steps a process, so to speak; saving in between changes nothing; an epoch's end is a place like others."""
    path = tmp_path / "run.safetensors"
    build(name).save(path)
    for _ in range(20):
        run = build(name, lambda trainer, J: setattr(trainer, "interrupted", trainer.steps % 3 == 0))
        run.resume(path)
        over = run.finished or run.epoch == EPOCHS
        with pytest.warns(RuntimeWarning, match="fit does nothing") if over else contextlib.nullcontext():
            state = fit(run)
        run.save(path)
    assert_same(state, unbroken[name])


def test_saved_between_epochs(unbroken, tmp_path):
    name, path = "early stopping", tmp_path / "run.safetensors"
    first = build(name)
    X, y, w = examples(weights=True)
    first.fit((X, y, w), examples(seed=1), epochs=1, batch_size=8)
    first.save(path)
    second = build(name)
    second.resume(path)
    assert (second.epoch, second.position, len(second.history)) == (1, 0, 1)
    assert_same(fit(second), unbroken[name])


@pytest.mark.parametrize("name", ["momentum, dropout", "buffers, accumulate", "early stopping"])
@pytest.mark.parametrize("n", [5, 7])
def test_resumed_on_another_backend(name, n, unbroken, tmp_path, backend):
    """From NumPy to any backend and back, to rounding."""
    path = tmp_path / "run.safetensors"

    def stop(trainer, J):
        trainer.interrupted = trainer.steps in (n, n + 2)

    first = build(name, stop)
    fit(first)
    first.save(path)
    second = build(name, stop, backend=backend.backend)
    second.resume(path)
    assert_same(become(second), become(first))
    fit(second)
    second.save(path)
    third = build(name)
    third.resume(path)
    assert third.steps == n + 2
    assert_same(fit(third), unbroken[name], rtol=1e-9)


def test_a_file_of_an_earlier_version(tmp_path):
    """What old_run.py wrote before Step was made is taken up to the bit, and ends where the code of then ended.

    With definitions alone, in a process of its own, the end is the same bits on the machine that wrote it. BLAS and NumPy sum in
    other orders on other CPUs, which moved θ by 4e-16 in a trial: so it is held to 1e-12, and what was decided is the same.
    """
    path = old_run.DATA / "old_run.safetensors"
    tensors, header = checkpoint.read(path)
    run = old_run.trainer(0)
    run.resume(path)
    again, header_again = run.state()
    header_again["network"]["structure"] = describe(run.network.module, children=False)
    assert header_again["training"].pop("monitors") == ["test_loss", "test_loss", None]
    del header_again["training"]["loss"], header_again["training"]["schedule class"]
    bare = re.sub(r'"class": "[\w.]+\.(\w+)"', r'"class": "\1"', json.dumps({"format": 1, **header_again}))
    now, then = json.loads(bare), copy.deepcopy(header)  # format 1 had bare names
    places, places_then = now["network"].pop("parameters"), then["network"].pop("parameters")
    assert now == then
    assert list(places) == list(places_then)
    assert sorted(again) == sorted(tensors)
    for name, array in tensors.items():
        if array.shape in ((run.network.layout.size,), (run.network.n_parameters,)):  # its windows lie in another order now
            for path, (start, shape) in places.items():
                at, n = places_then[path][0], math.prod(shape)
                np.testing.assert_array_equal(again[name][start : start + n], array[at : at + n])
        else:
            np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype

    variables = environment(BPCORE_KERNELS="off")
    subprocess.run([sys.executable, old_run.__file__, "resume", str(tmp_path)], env=variables, check=True, timeout=120)
    end, expected = (np.load(file) for file in (tmp_path / "end.npy", old_run.DATA / "old_end.npy"))
    np.testing.assert_allclose(end, run.network.layout.moved(expected), rtol=1e-12, atol=1e-12)
    decided, expected = (json.loads(file.read_text()) for file in (tmp_path / "end.json", old_run.DATA / "old_end.json"))
    for record in (*decided["history"], *expected["history"]):
        record.update({name: round(value, 9) for name, value in record.items()})
    assert decided == expected


def test_a_state_as_dictionaries(unbroken):
    """`state` and `restore`, with no file between them: the second run ends like an unbroken one."""
    name = "early stopping"
    first, second = build(name, lambda trainer, J: setattr(trainer, "interrupted", trainer.steps == 7)), build(name, seed=5)
    fit(first)
    tensors, header = first.state()
    second.restore(copy.deepcopy(tensors), json.loads(json.dumps(header)))
    assert_same(fit(second), unbroken[name])
    with pytest.raises(
        bp.CheckpointError, match=r"the state does not fit: expected optimiser bpcore\.SGD, the file has bpcore\.Adam"
    ):
        build(name, optimizer=bp.SGD()).restore(tensors, header)


def test_a_network_of_a_run_loads(tmp_path):
    """`Network.load` reads what `Trainer.save` wrote."""
    run, path = build("plain"), tmp_path / "run.safetensors"
    fit(run)
    run.save(path)
    net = bp.Network.load(path, backend="numpy")
    np.testing.assert_array_equal(net.theta, run.network.theta)


# what does not fit


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in the middle of an epoch, with all that it can hold."""
    path = tmp_path / "run.safetensors"
    run = trainer(**full())
    run.callbacks[-1].what = lambda trainer, J: setattr(trainer, "interrupted", trainer.steps == 7)
    fit(run)
    run.save(path)
    return path


def full(**changed) -> dict:
    callbacks = [bp.EarlyStopping(), Call(lambda trainer, J: None)]
    options = {"optimizer": bp.SGD(0.1, 0.9), "schedule": schedules.ReduceOnPlateau(), "callbacks": callbacks}
    return {**options, **changed}


def leaky(slope: float) -> bp.Module:
    """Parameters as those of the MLP, and other modules between them."""
    return bp.Sequential(bp.Linear(FEATURES, 8), bp.LeakyReLU(slope), bp.Linear(8, CLASSES))


class Other(schedules.Schedule):
    def __call__(self, step):
        return 1.0

    def state(self):
        return {"other": 1}


REFUSED = {
    "another optimiser": ({"optimizer": bp.Adam()}, "expected optimiser bpcore.Adam, the file has bpcore.SGD"),
    "no momentum": ({"optimizer": bp.SGD(0.1)}, r"expected the optimiser's vectors \[\], the file has \['m'\]"),
    "another network": ({"module": bp.MLP([FEATURES, 9, CLASSES])}, r"expected parameters \[start, shape\]"),
    "another activation's place": ({"module": bp.MLP([FEATURES, 8, CLASSES], dropout=0.1)}, "expected parameters"),
    "another activation": (
        {"module": bp.MLP([FEATURES, 8, CLASSES], "tanh")},
        "expected module .*MLP.*'tanh'.*, the file has .*MLP",
    ),
    "another slope": ({"module": leaky(0.2)}, "expected module .*Sequential.*, the file has .*MLP"),
    "another dtype": ({"dtype": "float32"}, "expected dtype float32, the file has float64"),
    "no callbacks": (
        {"callbacks": []},
        r"it has the state of a callback bpcore.EarlyStopping that monitors 'test_loss', got \[\]; add one \(you may",
    ),
    "another callback": (
        {"callbacks": [bp.Progress()]},
        r"it has the state of a callback bpcore.EarlyStopping .*, got \[Progress\(\)\]; add",
    ),
    "another monitor": (
        {"callbacks": [bp.EarlyStopping("training_loss")]},
        r"it has the state of a callback bpcore.EarlyStopping that monitors 'test_loss', got \[EarlyStopping\(monitor=",
    ),
    "another monitor of the schedule": (
        {"schedule": schedules.ReduceOnPlateau(monitor="training_loss")},
        "expected a schedule that monitors training_loss, the file has test_loss",
    ),
    "another schedule": (
        {"schedule": Other()},
        r"expected a schedule with \['other'\], the file has \['best', 'current', 'waited'\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_changes_nothing(name, saved, backend):
    changed, message = REFUSED[name]
    run = trainer(backend=backend.backend, **full(**changed))
    X, y = (x.astype(run.network.dtype) if x.dtype.kind == "f" else x for x in examples())
    run.fit((X, y), (X, y), epochs=1, batch_size=8)
    before = become(run)
    with pytest.raises(bp.CheckpointError, match=f"does not fit: {message}.*Nothing was loaded"):
        run.resume(saved)
    assert_same(become(run), before)


def test_another_hyperparameter_of_a_module(tmp_path):
    """The shapes agree, and the functions do not."""
    path = tmp_path / "run.safetensors"
    trainer(leaky(0.2)).save(path)
    trainer(leaky(np.float64(0.2))).resume(path)
    run = trainer(leaky(0.3))
    before = become(run)
    with pytest.raises(bp.CheckpointError, match=r"expected module .*0\.3.*, the file has .*0\.2.*Nothing was loaded"):
        run.resume(path)
    assert_same(become(run), before)


def test_a_network_that_was_moved(saved, backend):
    """The trainer's vectors are where the network was: nothing is loaded into either."""
    run = trainer(**full())
    run.network.to(backend.backend)
    before = become(run)
    with pytest.raises(RuntimeError, match=r"the network was moved after the trainer was made; move first: Trainer\(net.to"):
        run.resume(saved)
    assert_same(become(run), before)


class Averages(bp.Callback):
    """A callback of a user's own, with arrays of its own."""

    def __init__(self):
        self.values = np.zeros(3)

    def on_step(self, trainer, J):
        self.values[trainer.steps % 3] += float(J)

    def state(self, trainer):
        return {}, {"values": self.values}

    def restore(self, trainer, numbers, arrays):
        self.values = arrays["values"].copy()


def test_arrays_of_a_callback_of_ones_own(tmp_path):
    """Of any shape: they need not be a θ."""
    runs = [trainer(callbacks=[Averages()]) for _ in range(2)]
    runs[0].fit(examples(), epochs=1, batch_size=8)
    runs[0].save(tmp_path / "run")
    runs[1].resume(tmp_path / "run")
    for run in runs:
        run.fit(examples(), epochs=2, batch_size=8)
    assert np.all(runs[0].callbacks[0].values > 0)
    np.testing.assert_array_equal(runs[1].callbacks[0].values, runs[0].callbacks[0].values)


def damaged(change) -> object:
    """A file whose tensors and header are as `change(tensors, header)` leaves them."""

    def write(path):
        tensors, header = checkpoint.read(path)
        change(tensors, header)
        checkpoint.write(path, tensors, header)

    return write


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def counted(*counters) -> object:
    """A file with these for steps, epoch and position."""
    return damaged(lambda tensors, header: header["training"].update(counters=list(counters)))


def kept(size: int, dtype: str = "float64") -> object:
    """A file in which EarlyStopping kept a θ of this size."""
    return damaged(lambda tensors, header: tensors.update({"callback.0.theta": np.zeros(size, dtype)}))


def network_only(path) -> None:
    trainer(**full()).network.save(path)


DAMAGED = {
    "network only": (network_only, "holds a network only; load it with Network.load"),
    "cut off": (cut, "not a bpcore checkpoint, or it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a bpcore checkpoint, or it is damaged"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04\x95\x0c\x00\x00\x00"), "not a bpcore checkpoint, or it is damaged"),
    "newer": (damaged(lambda tensors, header: header.update(format=99)), "has checkpoint format 99"),
    "no moments": (damaged(lambda tensors, header: tensors.pop("optimizer.m")), "expected the optimiser's vectors"),
    "short moments": (damaged(lambda tensors, header: tensors.update({"optimizer.m": np.zeros(3)})), "optimizer.m of shape"),
    "theta of float32": (damaged(lambda t, header: t.update(theta=t["theta"].astype("float32"))), "theta of shape and dtype"),
    "no theta": (damaged(lambda tensors, header: tensors.pop("theta")), "it has no vector 'theta'"),
    "no counters": (damaged(lambda tensors, header: header["training"].pop("counters")), "is damaged: .*counters"),
    "two counters": (counted(7, 1), "is damaged: .*not enough values"),
    "four counters": (counted(7, 1, 2, 0), "is damaged: .*too many values"),
    "counters with a fraction": (counted(7.5, 1, 2), "is damaged: .*float"),
    "counters below zero": (counted(7, 1, -2), "is damaged: .*counters 7, 1, -2"),
    "counters of text": (counted("7", "1", "2"), "is damaged: .*str"),
    "counters of nothing": (counted(7, None, 2), "is damaged: .*NoneType"),
    "no list of counters": (damaged(lambda tensors, header: header["training"].update(counters=7)), "is damaged: .*int"),
    "short θ of early stopping": (kept(5), r"expected theta of shape and dtype \(75,\), float64, got \(5,\), float64"),
    "long θ of early stopping": (kept(76), r"expected theta of shape and dtype .*, got \(76,\), float64"),
    "θ of early stopping in float32": (kept(75, "float32"), "expected theta of shape and dtype .*, float32"),
    "a number for the network": (damaged(lambda tensors, header: header.update(network=3)), "has no network in it"),
    "a list for the network": (damaged(lambda tensors, header: header.update(network=[])), "has no network in it"),
    "no structure": (damaged(lambda t, header: header["network"].pop("structure")), "expected module .*, the file has None"),
    "no optimiser": (damaged(lambda tensors, header: header["training"].pop("optimizer")), "is damaged: .*optimizer"),
    "half a schedule": (damaged(lambda tensors, header: header["training"]["schedule"].pop("best")), "expected a schedule with"),
    "half a callback": (damaged(lambda t, header: header["training"]["callbacks"][0].pop("numbers")), "is damaged: .*numbers"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_changes_nothing(name, saved):
    damage, message = DAMAGED[name]
    run = trainer(**full())
    run.resume(saved)
    before = become(run)
    damage(saved)
    with pytest.raises(bp.CheckpointError, match=message):
        run.resume(saved)
    assert_same(become(run), before)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        run.resume(saved.with_name("missing"))


def test_hyperparameters_are_the_trainers(saved):
    """Another learning rate or schedule without state goes on from there."""
    run = trainer(**full(optimizer=bp.SGD(0.05, 0.8, nesterov=True), schedule=schedules.Cosine(100)))
    with pytest.warns(RuntimeWarning, match=r"has the state of a schedule \S+ReduceOnPlateau, which .*Cosine\(.* left out"):
        run.resume(saved)
    assert (run.steps, run.optimizer.lr, run.schedule) == (7, 0.05, schedules.Cosine(100))
    fit(run)
    assert run.epoch == EPOCHS


@pytest.mark.parametrize(("rows", "batch_size"), [(39, 8), (40, 7), (None, 8)])
def test_other_data_in_the_middle_of_an_epoch(saved, rows, batch_size):
    """The position in the data order would mean nothing."""
    run = trainer(**full())
    run.resume(saved)
    before = become(run)
    X, y = examples(rows or 40)
    given = (X, y) if rows else [(X[:8], y[:8])] * 5
    with pytest.raises(
        ValueError, match=r"an epoch is unfinished, 2 steps into \(rows, batch size\) \(40, 8\); got .*continue with"
    ):
        run.fit(given, (X, y), epochs=9, batch_size=batch_size)
    assert_same(become(run), before)


def test_batches_of_an_iterable_go_on_where_they_were(tmp_path):
    X, y = examples()
    given, path = [(X[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)], tmp_path / "run.safetensors"
    stop = lambda trainer, J: setattr(trainer, "interrupted", trainer.steps == 7)  # noqa: E731  a name for a callback
    first, second, unbroken = (trainer(dropout=0.2, callbacks=[Call(what)]) for what in (stop, print_nothing, print_nothing))
    first.fit(given, epochs=3)
    first.save(path)
    second.resume(path)
    for run in (second, unbroken):
        run.fit(given, epochs=3)
    assert_same(become(second), become(unbroken))


def print_nothing(trainer, J):
    """Nothing."""


def test_infinities_and_nans_come_back(tmp_path):
    """The best of nothing is infinite, and a history may hold NaN: JSON has both, in Python's way."""
    run, path = trainer(**full()), tmp_path / "run.safetensors"
    run.history.append({"epoch": 1, "training_loss": float("nan")})
    run.save(path)
    again = trainer(**full())
    again.resume(path)
    assert_same(become(again), become(run))
    assert again.callbacks[0].best == float("inf")


def test_nothing_in_the_header_is_an_object(saved):
    """Numbers, strings and lists alone, so that reading can execute nothing."""
    _, header = checkpoint.read(saved)
    assert json.loads(json.dumps(header)) == copy.deepcopy(header)
    assert header["training"]["optimizer"] == {
        "class": "bpcore.SGD",
        "hyperparameters": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    }


class Stubborn(Averages):
    """Changes itself before it fails, in place and by assignment."""

    def restore(self, trainer, numbers, arrays):
        self.values[...] = arrays["values"]
        self.other = trainer.steps
        if trainer.steps == 7:
            raise LookupError("no")


def test_a_callback_that_cannot_be_restored_changes_nothing(tmp_path):
    """It comes last: θ, counters, history and the callbacks before it are set back."""

    def build():
        return trainer(**full(callbacks=[bp.EarlyStopping(), Stubborn()]))

    run, other = build(), build()
    run.callbacks = [*run.callbacks, Call(lambda trainer, J: setattr(trainer, "interrupted", trainer.steps == 7))]
    fit(run)
    run.save(tmp_path / "run")
    other.fit(examples(), examples(seed=3), epochs=1, batch_size=8)
    before, attributes = become(other), set(vars(other.callbacks[-1]))
    with pytest.raises(bp.CheckpointError, match=r"a callback or the schedule raised LookupError\('no'\).*Nothing was loaded"):
        other.resume(tmp_path / "run")
    assert_same(become(other), before)
    assert set(vars(other.callbacks[-1])) == attributes


@pytest.mark.parametrize("name", ["waited", "best", "best_epoch"])
@pytest.mark.parametrize("value", [None, "3", [1], True, -1.5])
def test_a_damaged_state_of_early_stopping(name, value, saved):
    if name == "best" and value == -1.5:
        pytest.skip("a value like others")
    run = trainer(**full())
    damaged(lambda tensors, header: header["training"]["callbacks"][0]["numbers"].update({name: value}))(saved)
    before = become(run)
    with pytest.raises(bp.CheckpointError, match="Nothing was loaded"):
        run.resume(saved)
    damaged(lambda tensors, header: header["training"]["callbacks"][0]["numbers"].pop(name))(saved)
    with pytest.raises(bp.CheckpointError, match=r"expected bpcore\.EarlyStopping with"):
        run.resume(saved)
    assert_same(become(run), before)


def test_callbacks_without_a_state_come_and_go(saved, tmp_path):
    """Before, behind, or not at all; one with a state that is new begins afresh."""
    new = bp.EarlyStopping("training_loss", patience=2)
    callbacks = [bp.Progress(), bp.Checkpoint(tmp_path / "a"), new, bp.EarlyStopping(), bp.HistoryLog(tmp_path / "a.csv")]
    run, same = trainer(**full(callbacks=callbacks)), trainer(**full())
    for one in (run, same):
        one.resume(saved)
    assert_same(callbacks[3].state(run), same.callbacks[0].state(same))
    assert (new.best_epoch, callbacks[3].best_epoch) == (0, same.callbacks[0].best_epoch)
    assert callbacks[3].best_epoch == 1
    assert run.steps == same.steps == 7


def test_a_stored_best_of_the_other_direction(tmp_path):
    for low, high in (
        ({"schedule": schedules.ReduceOnPlateau()}, {"schedule": schedules.ReduceOnPlateau(higher=True)}),
        ({"callbacks": [bp.EarlyStopping()]}, {"callbacks": [bp.EarlyStopping(higher=True)]}),
        (
            {"callbacks": [bp.Checkpoint("a", best="test_loss")]},
            {"callbacks": [bp.Checkpoint("a", best="test_loss", higher=True)]},
        ),
    ):
        trainer(**low).save(tmp_path / "run")
        with pytest.raises(bp.CheckpointError, match=r"does not fit.*Nothing was loaded"):
            trainer(**high).resume(tmp_path / "run")


class Halving(schedules.Schedule):
    """It observes, and has no state."""

    factor = 1.0

    def __call__(self, step):
        return self.factor

    def observe(self, record):
        self.factor *= 0.5


class Keeping(bp.Callback):
    """Its state holds what a file cannot."""

    def state(self, trainer):
        return {"v": np.zeros(2)}, {}

    def restore(self, trainer, numbers, arrays):
        """Never called."""


class KeepingSchedule(schedules.Constant):
    def state(self):
        return {"v": {1, 2}}


def test_a_state_that_a_file_does_not_keep(tmp_path):
    run = trainer(schedule=Halving())
    run.fit(examples(), epochs=1)
    run.save(tmp_path / "run.st")
    with pytest.warns(RuntimeWarning, match="Halving observes epochs and defines no state and restore: it starts afresh here"):
        trainer(schedule=Halving()).resume(tmp_path / "run.st")
    for options in ({"callbacks": Keeping()}, {"schedule": KeepingSchedule()}):
        run = trainer(**options)
        with pytest.raises(TypeError, match=r"the state of Keeping.* has .* for 'v', and a file keeps numbers, texts and lists"):
            run.fit(examples(), epochs=1)
        assert run.steps == 0
