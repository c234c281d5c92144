"""Copies by pickle, joblib, copy and in another process: a copy is whole, goes on with the same bits, and disturbs nothing."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cases
import numpy as np
import pytest
from runs import CLASSES, FEATURES, assert_same, become, examples, trainer

import bpcore as bp
from bpcore import schedules, structure
from bpcore.training.guard import NonFiniteLoss
from bpcore.training.step import Step


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def dumped(x: Any) -> Any:
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(x, file)
    file.seek(0)
    return joblib.load(file)


DEEP = {"pickle": pickled, "deepcopy": copy.deepcopy, "joblib": dumped}
WAYS = {**DEEP, "copy": copy.copy}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
every_deep_way = pytest.mark.parametrize("way", DEEP.values(), ids=DEEP)


def tied() -> bp.Module:
    """One parameter in two modules, one module twice, buffers."""
    first, twice = bp.Linear(FEATURES, FEATURES), bp.Linear(FEATURES, FEATURES)
    second = bp.Linear(FEATURES, FEATURES)
    second.parameters = {**second.parameters, "W": first.parameters["W"]}
    return bp.Sequential(first, bp.ReLU(), bp.BatchNorm(FEATURES), twice, second, twice, bp.Linear(FEATURES, CLASSES))


def whole(net: bp.Network, of: bp.Network) -> None:
    """The copy has the same θ, computes with it, and the two do not share it."""
    to_host, X = net.backend.to_host, examples()[0].astype(net.dtype)
    np.testing.assert_array_equal(to_host(net.theta), to_host(of.theta))
    expected = to_host(of(X)).copy()
    np.testing.assert_array_equal(to_host(net(X)), expected)
    assert (net.backend, net.dtype, net.compute_dtype) == (of.backend, of.dtype, of.compute_dtype)
    assert net.layout.manifest() == of.layout.manifest()
    net.theta[...] = 0.0
    assert not to_host(net(X)).any()
    assert all(not to_host(window).any() for window in net.parameters().values())
    np.testing.assert_array_equal(to_host(of(X)), expected)


@pytest.mark.parametrize("way", [*WAYS.values(), bp.Network.copy], ids=[*WAYS, "net.copy"])
def test_a_network_is_whole_and_independent(way, backend):
    net = bp.Network(tied(), backend.backend, seed=3)
    whole(way(net), net)


@pytest.mark.parametrize("compute_dtype", ["float16", "float32"])
def test_what_a_network_computes_in(compute_dtype):
    net = bp.Network(bp.MLP([FEATURES, 4, CLASSES]), "numpy", seed=3, compute_dtype=compute_dtype)
    for way in WAYS.values():
        whole(way(net), net)


def test_a_deep_copy_has_modules_of_its_own():
    net = bp.Network(tied())
    assert copy.copy(net).module is net.module  # modules hold no arrays
    for other in (net.copy(), pickled(net)):
        assert other.module is other.layout.module is not net.module
        first, *_, second, _, _ = other.module.modules
        assert first.parameters["W"] is second.parameters["W"]


def test_theta_is_pickled_once():
    net = bp.Network(bp.MLP([200, 200, 10]))
    run = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(), clip_norm=1.0, accumulate=2)
    run.step(np.ones((4, 200), "float32"), np.zeros(4, "int64"))
    assert len(pickle.dumps(net)) < net.theta.nbytes + 4000
    assert len(pickle.dumps(run)) < 3 * net.theta.nbytes + 8000  # with m and v


def test_a_network_in_another_process():
    net, X = bp.Network(tied(), seed=2), examples()[0].astype("float32")
    run = trainer()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(net, X).result(), net(X))
        there = pool.submit(fit, run).result()
    assert run.steps == 0
    fit(run)
    assert_same(become(there), become(run))


def fit(run: bp.Trainer, epochs: int = 3) -> bp.Trainer:
    dtype = run.network.dtype
    (X, y), (test, labels) = examples(), examples(seed=1)
    run.fit((X.astype(dtype), y), (test.astype(dtype), labels), epochs=epochs, batch_size=8)
    return run


OPTIONS = {
    "plain": lambda: {"optimizer": bp.SGD(0.1)},
    "all": lambda: {
        "dropout": 0.3,
        "schedule": schedules.WarmUp(3, schedules.ReduceOnPlateau(0.5, patience=0, threshold=0.5)),
        "callbacks": [bp.EarlyStopping(patience=2), bp.Progress(lines=False)],
        "metrics": ["accuracy"],
        "clip_norm": 0.5,
        "accumulate": 2,
    },
    "float16": lambda: {"dtype": "float32", "compute_dtype": "float16", "dropout": 0.3, "optimizer": bp.SGD(0.1, 0.9)},
    "tied, buffers": lambda: {"module": tied(), "optimizer": bp.Lion(0.01)},
}


@pytest.mark.parametrize("name", OPTIONS)
@every_way
def test_a_trainer_goes_on_with_the_same_bits(name, way, backend):
    """Copied in the middle of an epoch, from within `fit` where its bar is open; `copy` copies a trainer deeply too."""
    if name == "float16" and "float16" not in backend.backend.compute_dtypes:
        pytest.skip("no float16 here")
    copies = []

    class Copy(bp.Callback):
        def on_step(self, trainer, J):
            if trainer.steps == 7 and not copies:
                copies.append(None)
                mine, trainer.callbacks = trainer.callbacks, trainer.callbacks[:-1]  # not this one, which is local
                copies[0] = way(trainer)
                trainer.callbacks = mine

    options = OPTIONS[name]()
    options["callbacks"] = [*options.get("callbacks", []), Copy()]
    run = trainer(backend=backend.backend, **options)
    fit(run)
    (other,) = copies
    end = become(run)
    assert (run.steps, other.steps) == (15, 7)
    step = other.training_step
    assert step.theta is other.network.theta
    assert step is other.guard.step
    assert other.counters is other.guard.counters
    before = other.network.backend.to_host(other.network.theta).copy()
    fit(other)
    assert (before != other.network.backend.to_host(other.network.theta)).any()
    assert_same({**become(other), "callbacks": None}, {**end, "callbacks": None})
    assert_same(become(run), end)


@every_deep_way
def test_a_copy_keeps_what_it_shares(way):
    """A list of a network, its trainer and its step is still about one network."""
    run = trainer()
    net, again, step = way([run.network, run, run.training_step])
    assert again.network is net
    assert again.training_step is step
    assert step.theta is net.theta


def test_a_copied_trainer_goes_back_to_its_own_theta():
    """The first step of the copy diverges: θ is as it was copied, in both."""
    run = fit(trainer(), 1)
    other = copy.deepcopy(run)
    before = run.network.theta.copy()
    with pytest.raises(NonFiniteLoss):
        other.step(np.full((8, FEATURES), np.nan), np.zeros(8, "int64"))
    np.testing.assert_array_equal(other.network.theta, before)
    np.testing.assert_array_equal(run.network.theta, before)


@every_way
def test_a_step(way):
    """Copied by `copy`, it trains the same network with an optimiser's state of its own."""
    step = Step(bp.Network(bp.Linear(FEATURES, CLASSES)), bp.CrossEntropy(), bp.Adam())
    batch, labels = step.place(*(x[:8] for x in examples()))
    step(batch, labels, 0, 0.1)
    other = way(step)
    assert (other.network is step.network) == (way is copy.copy)
    assert other.theta is other.network.theta
    before = {name: vector.copy() for name, vector in step.moments.items()}
    other(batch, labels, 1, 0.1)
    assert_same(step.moments, before)
    assert all((other.moments[name] != before[name]).any() for name in before)


def test_reduce_in_a_copy():
    step = Step(bp.Network(bp.Linear(FEATURES, CLASSES)), bp.CrossEntropy(), bp.SGD(), reduce=halve)
    batch, labels = step.place(*(x[:8] for x in examples()))
    for each in (step, pickled(step)):
        each.flags[...] = 1.0
        assert np.shares_memory(each.gradient, each.summed)
        each(batch, labels, 0, 0.1)
        assert each.flags[0] == 0.5


def halve(vector: Any) -> None:
    vector[...] = vector / 2


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_every_module(case):
    module = case.make()
    for way in WAYS.values():
        assert structure.describe(way(module)) == structure.describe(module)


PARTS = [
    bp.NAdam(0.1, betas=(0.5, 0.6)),
    schedules.OneCycle(10),
    schedules.WarmUp(3, schedules.ReduceOnPlateau()),
    bp.initializers.Normal(0.3),
    bp.EarlyStopping(),
    bp.Checkpoint("file"),
    bp.HistoryLog("log.csv"),
    bp.Progress(),
    bp.LearningCurve("curve.png"),
    bp.Accuracy(),
    bp.TopK(3),
    bp.CrossEntropy(0.1),
    bp.History([{"epoch": 1, "training_loss": 0.5}]),
    bp.Mode(True, 1, 2, 3),
    bp.cost(bp.MLP([3, 4, 2]), (5, 3)),
    bp.Parameter((2,), bp.initializers.Zeros()),
    bp.initialize(bp.MLP([3, 4, 2])),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
@every_way
def test_parts(part, way):
    other = way(part)
    assert type(other) is type(part)
    if type(part).__repr__ is not object.__repr__:
        assert repr(other) == repr(part)
    else:
        assert_same(vars(other), vars(part))


@every_way
def test_windows(way):
    """Alone, they are arrays of their own; in a network, views of its θ."""
    windows = bp.initialize(bp.MLP([3, 4, 2]))
    other = way(windows)
    for (path, window), (its_path, its_window) in zip(windows.items(), other.items(), strict=True):
        assert path == its_path
        np.testing.assert_array_equal(its_window, window)


@every_way
def test_a_backend_is_pickled_by_its_name(way, backend):
    other = way(backend.backend)
    assert other == backend.backend
    assert other.name == backend.backend.name
    assert other.owns(backend.asarray([1.0], "float32"))


def test_load_is_called_on_the_class(tmp_path):
    net = bp.Network(bp.Linear(3, 2), seed=1)
    net.save(tmp_path / "net")
    before = net.theta.copy()
    with pytest.raises(TypeError, match=r"Network\.load makes a new network .*net = bp\.Network\.load\(path\)"):
        net.load(tmp_path / "net")
    assert hasattr(net, "load")
    np.testing.assert_array_equal(net.theta, before)
    np.testing.assert_array_equal(bp.Network.load(tmp_path / "net").theta, before)
