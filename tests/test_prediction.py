"""Prediction: outputs by batches, labels and probabilities by the loss, a vector's parts by name; seeds that are drawn."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import bpcore as bp
from bpcore import checkpoint
from bpcore.training.step import Step

X = np.random.default_rng(0).standard_normal((23, 4))


def trained(backend: object = "numpy", **named: object) -> bp.Network:
    """A network with running statistics that are not the initial ones."""
    net = bp.Network(
        bp.Sequential(bp.Linear(4, 8), bp.BatchNorm(8), bp.ReLU(), bp.Dropout(0.5), bp.Linear(8, 3)), backend, **named
    )
    bp.Trainer(net, bp.CrossEntropy(), bp.SGD()).fit((X, np.arange(23) % 3), epochs=2)
    return net


@pytest.mark.parametrize("batch_size", [1, 5, 22, 23, 24, np.int64(7)])
def test_batches_give_what_the_whole_gives(backend, batch_size):
    net = trained(backend.backend)
    before = backend.to_host(net.theta).copy()
    whole = net(X)
    assert float(np.abs(backend.to_host(whole)).max()) > 0
    for rows in (X, X.tolist(), np.asfortranarray(X), backend.asarray(X, "float32")):
        by_batches = net(rows, batch_size=batch_size)
        assert net.backend.owns(by_batches)
        assert by_batches.dtype == whole.dtype
        np.testing.assert_allclose(backend.to_host(by_batches), backend.to_host(whole), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(backend.to_host(net.theta), before)


def test_no_rows_by_batches():
    assert trained()(X[:0], batch_size=4).shape == (0, 3)


def test_several_inputs_and_outputs_by_batches(backend):
    two = bp.Network(
        bp.Circuit(("a", "b"), {"sum": (bp.Add(), "a", "b"), "product": (bp.Multiply(), "a", "b")}, ("sum", "product")),
        backend.backend,
    )
    for got, expected in zip(two((X, X + 1), batch_size=4), two((X, X + 1)), strict=True):
        np.testing.assert_array_equal(backend.to_host(got), backend.to_host(expected))


def test_a_memmap_is_read_by_batches(tmp_path):
    """On the device there is a batch, never all rows."""
    np.save(tmp_path / "X.npy", X.astype("float32"))
    net = trained()
    seen = []
    inputs = net.inputs
    vars(net)["inputs"] = lambda rows: seen.append(rows.shape) or inputs(rows)
    np.testing.assert_allclose(net(np.load(tmp_path / "X.npy", mmap_mode="r"), batch_size=10), trained()(X), rtol=2e-6, atol=1e-6)
    assert seen == [(10, 4), (10, 4), (3, 4)]


@pytest.mark.parametrize(("rows", "named", "message"), [
    (X, {"batch_size": 0}, "batch_size must be a whole number from 1 up, got 0"),
    (X, {"batch_size": 2.5}, "batch_size must be a whole number from 1 up, got 2.5"),
    (X, {"batch_size": 4, "mode": bp.Mode(training=True)}, "batch_size is for evaluation, and mode is one of training"),
    (3.0, {"batch_size": 4}, "batch_size needs inputs with one row for each example, got shapes ()"),
    ((X, X[:3]), {"batch_size": 4}, "batch_size needs inputs with one row for each example, got shapes (23, 4), (3, 4)"),
])  # fmt: skip
def test_what_has_no_batches(rows, named, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trained()(rows, **named)


def test_outputs_without_a_row_for_each():
    with pytest.raises(ValueError, match=r"outputs with a row for each of a batch's 5 rows, got shapes \(4,\); leave"):
        bp.Network(bp.Mean(0))(X, batch_size=5)


def softmax(t: np.ndarray) -> np.ndarray:
    e = np.exp(t - t.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("outputs", [2, 3])
def test_one_example_is_no_rows(outputs):
    """With as many outputs as inputs its outputs would pass for rows."""
    run = bp.Trainer(bp.Network(bp.MLP([3, 4, outputs])), bp.CrossEntropy(), bp.Adam())
    with pytest.raises(ValueError, match=r"X needs a row for each example, got shape \(3,\); one example is X\[None\]"):
        run.predict(np.ones(3))


def test_labels_and_probabilities_are_the_loss_s(backend):
    net = trained(backend.backend)
    loss = bp.CrossEntropy(smoothing=0.3)
    trainer = bp.Trainer(net, loss, bp.SGD())
    t = backend.to_host(net(X)).astype("float64")
    for labels in (
        net.predict(X, loss),
        net.predict(X, loss, batch_size=4),
        trainer.predict(X),
        trainer.predict(X, batch_size=4),
    ):
        assert net.backend.owns(labels)
        np.testing.assert_array_equal(backend.to_host(labels), t.argmax(-1))
    for phi in (net.probabilities(X, loss=loss, batch_size=6), trainer.probabilities(X)):
        assert net.backend.owns(phi)
        np.testing.assert_allclose(backend.to_host(phi), softmax(t), rtol=1e-5, atol=1e-7)


def test_what_outputs_mean(backend):
    t = np.asarray([[0.0, 1e-3, -5.0], [-1e4, 1e4, 1e4]], "float32")
    z = backend.asarray(t)
    got = {
        "class": bp.CrossEntropy().predict(z), "softmax": bp.CrossEntropy().probabilities(z),
        "sign": bp.LogisticLoss().predict(z),
        "sigmoid": bp.LogisticLoss().probabilities(z), "z": bp.SquaredError().predict(z), "huber": bp.Huber().predict(z),
    }  # fmt: skip
    got = {name: backend.to_host(array) for name, array in got.items()}
    np.testing.assert_array_equal(got["class"], [1, 1])
    np.testing.assert_allclose(got["softmax"], softmax(t.astype("float64")), rtol=1e-6)
    np.testing.assert_array_equal(got["sign"], [[0, 1, 0], [0, 1, 1]])
    np.testing.assert_allclose(got["sigmoid"], [[0.5, 0.50025, 0.0066928509], [0, 1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(got["z"], t)
    np.testing.assert_array_equal(got["huber"], t)
    assert {str(got[name].dtype) for name in ("class", "sign")} == {"int64"}
    assert bp.CrossEntropy().predict([1.0, 3.0]) == 1


class Own(bp.Loss):
    """A loss that says nothing about its outputs."""


@pytest.mark.parametrize(("call", "message"), [
    (lambda net: net.predict(X), "predict needs the loss, which knows what outputs mean, got None; pass it: net.predict(X,"),
    (lambda net: net.probabilities(X, "cross_entropy"), "probabilities needs the loss, which knows what outputs mean, got 'cr"),
    (lambda net: net.predict(X, bp.CrossEntropy), "got <class"),
    (lambda net: net.probabilities(X, bp.SquaredError()), "SquaredError does not say which probabilities outputs stand for"),
    (lambda net: net.predict(X, Own()), "Own does not say which labels outputs stand for; define predict(self, t) in it"),
    (lambda net: bp.CrossEntropy().predict([1, 2]), "CrossEntropy expected floating-point numbers, got int64"),
    (lambda net: bp.CrossEntropy().predict(3.0), "CrossEntropy expected outputs with an axis of classes, got shape ()"),
    (lambda net: bp.CrossEntropy().predict(np.ones((2, 0))), "an axis of classes, got shape (2, 0)"),
    (lambda net: bp.CrossEntropy().predict([[np.nan, 1.0]]), "CrossEntropy got outputs with NaN, which stand for no label"),
    (lambda net: bp.LogisticLoss().predict([np.nan]), "LogisticLoss got outputs with NaN"),
    (lambda net: bp.SquaredError().predict((X, X)), "SquaredError takes one output, got a tuple of 2; pass one of them"),
    (lambda net: bp.CrossEntropy().probabilities(None), "expected an array of numbers, got NoneType"),
])  # fmt: skip
def test_what_has_no_labels(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call(trained())


def test_a_gradient_by_name(backend):
    """The parts of ∇J have the names and the shapes of θ's, and are views: a part of it, not a copy."""
    net = trained(backend.backend)
    _, gradient = net.value_and_gradient(bp.CrossEntropy(), X, np.arange(23) % 3)
    named = net.named(gradient)
    windows = net.parameters()
    assert set(windows) - set(named) == {"1.mean", "1.variance"}
    assert {path: tuple(array.shape) for path, array in named.items()} == {path: tuple(windows[path].shape) for path in named}
    whole = np.concatenate([backend.to_host(array).ravel() for array in named.values()])
    np.testing.assert_array_equal(np.sort(whole), np.sort(backend.to_host(gradient)))
    assert float(np.abs(backend.to_host(named["4.W"])).max()) > 0
    named["4.W"][...] = 0 * named["4.W"]
    assert float(np.abs(backend.to_host(net.named(gradient)["4.W"])).max()) == 0
    for path, array in net.named(net.theta).items():
        np.testing.assert_array_equal(backend.to_host(array), backend.to_host(windows[path]))


@pytest.mark.parametrize("wrong", [np.ones(3, "float32"), np.ones(83), np.ones((83, 1), "float32"), [0.0] * 83, None, "W"])
def test_a_vector_of_another_kind_has_no_names(wrong):
    with pytest.raises(
        ValueError, match="named expected a vector of length 83 or 99 and dtype float32 on numpy, such as ∇J, got"
    ):
        trained().named(wrong)


def test_a_vector_of_another_backend_has_no_names(torch):
    with pytest.raises(ValueError, match="on numpy, such as ∇J, got Tensor of shape"):
        trained().named(torch.ones(83))


def test_a_seed_that_is_drawn_is_shown_and_repeats(tmp_path):
    nets = [bp.Network(bp.MLP([4, 3]), seed=None) for _ in range(2)]
    assert nets[0].seed != nets[1].seed
    assert f"seed={nets[0].seed}, " in repr(nets[0])
    np.testing.assert_array_equal(bp.Network(bp.MLP([4, 3]), seed=nets[0].seed).theta, nets[0].theta)
    assert not np.array_equal(nets[0].theta, nets[1].theta)
    assert bp.Network(bp.MLP([4, 3])).seed == 0
    assert bp.Network(bp.MLP([4, 3]), theta=np.zeros(15)).seed is None

    theta = bp.initialize(bp.Linear(4, 3), seed=None)
    assert f"seed {theta.seed}" in repr(theta)
    np.testing.assert_array_equal(bp.initialize(bp.Linear(4, 3), seed=theta.seed).W, theta.W)

    trainer = bp.Trainer(nets[0], bp.CrossEntropy(), bp.SGD(), seed=None)
    assert trainer.seed == trainer.training_step.seed != 0
    trainer.save(tmp_path / "run.safetensors")
    assert checkpoint.read(tmp_path / "run.safetensors")[1]["training"]["seed"] == trainer.seed
    other = bp.Trainer(bp.Network(bp.MLP([4, 3])), bp.CrossEntropy(), bp.SGD())
    other.resume(tmp_path / "run.safetensors")
    assert other.seed == trainer.seed
    assert json.loads(json.dumps(Step(nets[0], bp.CrossEntropy(), bp.SGD(), seed=None).seed)) != trainer.seed
