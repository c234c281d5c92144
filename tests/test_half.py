"""Computing in float16 while θ stays float32: agreement with float64, scaling of the loss, what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
from cases import CASES
from conftest import missing
from harness import MODE, inputs_of, theta_of, upstream
from primitive_cases import TABLE, Draw, family
from runs import CLASSES, FEATURES, examples, trainer, unchanged

import bpcore as bp
from bpcore.array import is_half
from bpcore.checkpoint import CheckpointError
from bpcore.context import computing_in, tf32
from bpcore.functional.updates import gathered, squared_norm
from bpcore.layout import Layout
from bpcore.module import Mode
from bpcore.primitive import PRIMITIVES
from bpcore.training.guard import NonFiniteLoss
from bpcore.training.scaling import LEAST, MOST, START, Scaling

ROUNDING = 5e-3  # ten units in the last place of the largest entry


@pytest.fixture(params=["numpy", "cupy"])
def backend(request):
    """The backends that compute in float16."""
    try:
        return bp.get_backend(request.param)
    except RuntimeError as error:
        return missing(request.param, str(error))


def apart(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest entry."""
    return float(np.abs(got.astype("float64") - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))


def cast(x, dtype):
    """Floating arrays in this dtype, fresh; what else there is, as it is."""
    return np.array(x, dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


@pytest.mark.parametrize("name", [name for name in TABLE if family(name) not in ("losses", "updates")])
def test_primitives_agree_with_float64(name, backend):
    """On the same float16 numbers, with twins and without; sums of 5000 terms too, which float16 itself could not add up."""
    for shape in ((13, 7), (5000, 5), (3, 3000)):
        with np.errstate(divide="ignore"):
            rows = TABLE[name](Draw(*shape, "float16"))
        for args in rows:
            exact = [cast(x, "float64") for x in args]
            expected = PRIMITIVES[name].definition(*exact)
            for run in (PRIMITIVES[name].call, PRIMITIVES[name].definition):
                here = [backend.asarray(cast(x, "float16")) if isinstance(x, np.ndarray) else x for x in args]
                with computing_in("float16"):
                    got = run(*here)
                several = isinstance(got, tuple)
                pairs = [*(zip(got, expected, strict=True) if several else [(got, expected)]), *zip(here, exact, strict=True)]
                for one, other in pairs:
                    if isinstance(other, np.ndarray) and other.dtype.kind == "f" and np.abs(other).max(initial=0) < 6e4:
                        assert apart(backend.to_host(one), other) < ROUNDING


MODULES = [one for one in CASES if not isinstance(one.make(), bp.Loss)]


@pytest.mark.parametrize("one", MODULES, ids=repr)
def test_modules_agree_with_float64(one, backend):
    """u, dz and dθ are float16 and those of float64, from the same θ and z; buffers are float32 windows, as in a network."""
    layout = Layout(one.make())
    theta, z = theta_of(one, layout).astype("float16"), [cast(x, "float16") for x in inputs_of(one)]
    runs = []
    for dtype, wide in (("float64", "float64"), ("float16", "float32")):
        vector = backend.asarray(theta[: layout.trained].astype(dtype))
        windows = layout.windows(vector, theta=backend.asarray(theta.astype(wide)))
        with computing_in("float16"):
            u, saved = layout.module.forward(windows, *(backend.asarray(cast(x, dtype)) for x in z), mode=Mode(**MODE))
            us = u if isinstance(u, tuple) else (u,)
            v = tuple(backend.asarray(x.astype(dtype)) for x in upstream(one, [x.shape for x in us]))
            gradient, spare = backend.zeros(layout.trained, dtype), backend.zeros(layout.spare, dtype)
            v = v if isinstance(u, tuple) else v[0]
            dz = layout.module.backward(windows, saved, v, layout.windows(gradient, spare))
            layout.add_home(gradient, spare)
        found = [x for x in (*us, *(dz if isinstance(dz, tuple) else (dz,)), gradient) if x is not None]
        assert all(x.dtype == dtype for x in found), f"{one}: {[x.dtype for x in found]}"
        runs.append([backend.to_host(x) for x in found])
    for exact, half in zip(*runs, strict=True):
        assert apart(half, exact) < 4 * ROUNDING


def test_norms_of_large_activations_do_not_overflow():
    """300² has no place in float16, the variance of z = ±300 has one in float32."""
    z = np.where(np.arange(64).reshape(4, 16) % 2 == 0, 300, -300).astype("float16")
    for module in (bp.LayerNorm(16), bp.RMSNorm(16), bp.BatchNorm(16), bp.GroupNorm(4, 16)):
        net = bp.Network(module, compute_dtype="float16")
        u = net(z + 100 * np.arange(4).reshape(4, 1), mode=Mode(True))
        assert 0.5 < np.abs(u).max() < 3


def transformer() -> bp.Module:
    first = bp.Embedding(11, 16), bp.PositionalEmbedding(12, 16)
    return bp.Sequential(*first, bp.TransformerBlock(16, 4, causal=True), bp.LayerNorm(16), bp.Linear(16, 5))


def convolutional() -> bp.Module:
    return bp.Sequential(bp.Conv2d(1, 4, 3), bp.BatchNorm(4), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten(), bp.Linear(36, 5))


NETWORKS = {  # and the shape of X; None for ids
    "MLP": (lambda: bp.MLP([20, 64, 5]), (64, 20)),
    "attention": (transformer, None),
    "images": (convolutional, (64, 8, 8, 1)),
}


def batch_for(name):
    """(a function that makes the module, X, y) of one of NETWORKS."""
    make, shape = NETWORKS[name]
    generator = np.random.default_rng(0)
    X = generator.integers(0, 11, (8, 12)) if shape is None else generator.standard_normal(shape)
    return make, X, generator.integers(0, 5, X.shape if shape is None else 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_gradient_agrees_with_float64(name, backend):
    make, X, y = batch_for(name)
    exact, net = bp.Network(make(), dtype="float64", seed=1), bp.Network(make(), backend, seed=1, compute_dtype="float16")
    before = backend.to_host(net.theta).copy()
    expected = exact.value_and_gradient(bp.CrossEntropy(), X, y, mode=Mode(True))
    J, gradient = map(backend.to_host, net.value_and_gradient(bp.CrossEntropy(), X, y, mode=Mode(True)))
    assert (J.dtype, gradient.dtype, net.theta.dtype, net(X).dtype) == ("float32",) * 4
    assert abs(J - expected[0]) < ROUNDING
    assert np.linalg.norm(gradient - expected[1]) < ROUNDING * np.linalg.norm(expected[1])
    np.testing.assert_array_equal(backend.to_host(net.theta), before)
    np.testing.assert_allclose(backend.to_host(net(X)), exact(X), atol=2e-2)
    assert all(window.dtype == "float32" for window in net.parameters().values())


def test_the_module_sees_float16_and_buffers_of_float32():
    seen = []

    class Probe(bp.BatchNorm):
        def forward(self, theta, z, mode):
            seen.extend((z.dtype, theta.gamma.dtype, theta.mean.dtype))
            return super().forward(theta, z, mode=mode)

    net = bp.Network(Probe(FEATURES), compute_dtype="float16")
    X = 1e3 + np.random.default_rng(0).standard_normal((50, FEATURES))
    run = bp.Trainer(net, bp.SquaredError(), bp.SGD(0.0))
    run.step(X, np.zeros_like(X))
    assert seen == ["float16", "float16", "float32"]
    mean = net.parameters()["mean"]
    np.testing.assert_allclose(mean, 0.1 * X.astype("float16").mean(axis=0, dtype="float64"), rtol=1e-6)
    assert np.any(mean != mean.astype("float16"))


def test_float32_is_computed_as_it_was():
    """A network that computes in its own dtype has no copy of θ, its trainer no scaling."""
    for more in ({}, {"compute_dtype": "float32"}):
        net = bp.Network(bp.MLP([4, 3]), **more)
        assert net._half is None
        assert net._computed is net.windows
        assert bp.Trainer(net, bp.CrossEntropy(), bp.SGD()).scaling is None
        assert "compute" not in repr(net)


# ---- training ----


def test_digits_are_learned_as_in_float32(backend):
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    train, test = (images[:1300] / 16, y[:1300]), (images[1300:] / 16, y[1300:])
    errors = []
    for compute_dtype in ("float32", "float16"):
        net = bp.Network(bp.MLP([64, 64, 10]), backend, seed=0, compute_dtype=compute_dtype)
        run = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(3e-3), metrics=["accuracy"])
        errors.append(1 - run.fit(train, test, epochs=8, batch_size=32)[-1]["test_accuracy"])
    assert errors[0] < 0.1
    assert abs(errors[1] - errors[0]) < 0.015


def half_trainer(**options) -> bp.Trainer:
    return trainer(dtype="float32", compute_dtype="float16", **options)


def test_gradients_too_small_for_float16_are_scaled():
    """∇J of about 1e-8 is lost without scaling, and kept to rounding by the trainer's step, in micro-batches too."""
    X = np.random.default_rng(0).standard_normal((64, FEATURES)).astype("float32")
    nets = [bp.Network(bp.Linear(FEATURES, 2), seed=1, compute_dtype=c) for c in ("float32", "float16", "float16", "float16")]
    y = nets[0](X)
    loss = Tiny()
    exact, lost = (net.value_and_gradient(loss, X, y)[1] for net in nets[:2])
    assert np.count_nonzero(lost) < len(lost)
    for net, accumulate in zip(nets[2:], (1, 3), strict=True):
        run = bp.Trainer(net, loss, bp.SGD(0.0), accumulate=accumulate)
        run.step(X, y)
        assert apart(run.gradient, exact) < ROUNDING


class Tiny(bp.Loss):
    """J = 1e-8 Σ t / n."""

    def forward(self, theta, t, y, weights=None, *, mode):
        return 1e-8 * t.sum() / len(t), (t.shape, y, weights)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return np.full(saved[0], 1e-8 * v / saved[0][0], "float32"), None


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_overflow_halves_the_scale_and_leaves_theta(accumulate, backend):
    """The step counts as one with ∇J = 0; steps go on until the scale fits, and then θ moves."""
    run = half_trainer(backend=backend, optimizer=bp.SGD(0.1), accumulate=accumulate)
    to_host, before = backend.to_host, backend.to_host(run.network.theta).copy()
    X, y = examples()
    run.scaling.S[...] = MOST
    run.step(X * 100, y)
    assert to_host(run.scaling.state).tolist() == [MOST / 2, 0]
    np.testing.assert_array_equal(to_host(run.network.theta), before)
    for _ in range(20):
        run.step(X, y)
    assert np.isfinite(to_host(run.network.theta)).all()
    assert np.any(to_host(run.network.theta) != before)
    S, good = to_host(run.scaling.state)
    assert S < MOST / 2
    assert good > 0


@dataclass(frozen=True)
class Own(bp.Optimizer):
    """A user's optimiser, which keeps the gradient that it gets."""

    moments = ("m",)

    def update(self, theta, gradient, state, step, lr, decayed):
        state["m"][...] = gradient
        theta[...] = theta - lr * gradient


def test_a_step_that_overflows_is_one_of_zeros(backend):
    """For bpcore's optimisers and for a user's, with a clip and without; and a step that does not is clipped for both."""
    X, y = examples()
    for clip_norm in (None, 1e-3):
        runs = [half_trainer(backend=backend, optimizer=o, clip_norm=clip_norm) for o in (Own(0.1), bp.SGD(0.1, momentum=0.5))]
        for run in runs:
            run.step(X, y)
        own, m = (backend.to_host(run.moments["m"]).copy() for run in runs)
        np.testing.assert_allclose(own, m, rtol=1e-6)
        norm = np.linalg.norm(backend.to_host(runs[1].gradient))
        assert norm > 1e-2
        assert np.linalg.norm(own) == pytest.approx(clip_norm or norm, rel=1e-5)
        for run in runs:
            run.scaling.S[...] = MOST
            run.step(X * 100, y)
            assert backend.to_host(run.scaling.state).tolist() == [MOST / 2, 0]
        assert not backend.to_host(runs[0].moments["m"]).any()
        np.testing.assert_allclose(backend.to_host(runs[1].moments["m"]), 0.5 * m, rtol=1e-6)


def test_fit_warns_of_no_overflow():
    """Warnings are errors here: infinities of a scale that is too large are the business of the scaling alone."""
    run = half_trainer()
    run.scaling.S[...] = MOST
    run.fit(examples(), examples(seed=1), epochs=3, batch_size=8)
    assert run.history[-1]["training_loss"] < run.history[0]["training_loss"]


@pytest.mark.parametrize("name", ["numpy", "array_api_strict:device1", "cupy"])
def test_the_scale_moves_on_the_device(name):
    """Doubled after `interval` good steps in a row, halved at once, within bounds; and no value is looked at."""
    from conftest import BackendUnderTest

    try:
        on = BackendUnderTest(name, bp.get_backend(name))
    except RuntimeError as error:
        missing(name.partition(":")[0], str(error))
    scaling = Scaling(on.backend, interval=3)
    good, bad = np.asarray([1.0, -2.0], "float32"), np.asarray([1.0, np.inf], "float32")
    seen = []
    for g in (good, good, good, good, bad, good, good, good):
        scale = float(on.to_host(scaling.state)[0])
        scaled, vector = on.asarray(g * scale), on.writable(0 * good)
        with on.guard():
            square = gathered(scaled, scaling.S, vector)
            factor = scaling.adapt(square, 0.5)
        np.testing.assert_array_equal(on.to_host(vector), g)
        assert float(on.to_host(square)) == np.sum(g * g)
        assert float(on.to_host(factor)) == (0.5 if g is good else 0)
        seen.append(on.to_host(scaling.state).tolist())
    assert seen == [[START, 1], [START, 2], [2 * START, 0], [2 * START, 1], [START, 0], [START, 1], [START, 2], [2 * START, 0]]
    for start, g, bound in ((MOST, good, MOST), (LEAST, bad, LEAST)):
        scaling = Scaling(on.backend, interval=1, start=start)
        scaling.adapt(squared_norm(on.asarray(g)), 1.0)
        assert on.to_host(scaling.state).tolist() == [bound, 0]
        assert scaling.exhausted() == (bound == LEAST)


class Broken(bp.Identity):
    """A backward function that gives infinity, be its input as small as it may."""

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v * float("inf")


def test_a_gradient_that_no_scale_can_help_is_an_error():
    run = half_trainer(module=bp.Sequential(bp.Linear(FEATURES, CLASSES), Broken()))
    X, y = examples()
    run.scaling.S[...] = 4 * LEAST
    run.step(X, y)
    expected = "its gradient is not finite in float16 even with the loss scaled by 1e-04. θ is at its last good values; lower lr"
    with pytest.raises(NonFiniteLoss, match=re.escape(expected)):
        run.step(X, y)


def test_a_loss_that_is_not_finite_is_the_guards():
    """Activations beyond 65504, not the scaling's business: the error names the module."""
    run = half_trainer(module=bp.Sequential(bp.Linear(FEATURES, 8), bp.Linear(8, CLASSES)))
    X, y = examples()
    run.step(X, y)
    run.network.theta[...] = run.network.theta * 1e4
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss, match="first module whose output is not finite is 1: Linear"):
        run.step(X, y)


# ---- what is refused, and what files say ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"compute_dtype": "int8"}, "must be 'float16', 'bfloat16', 'tf32' or dtype's own 'float32', got 'int8'"),
        ({"compute_dtype": "float64"}, "must be 'float16', 'bfloat16', 'tf32' or dtype's own 'float32', got 'float64'"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype='bfloat16' needs backend 'cupy', got 'numpy'; choose that, or"),
        ({"compute_dtype": "bfloat16", "backend": "torch"}, "needs backend 'cupy', got 'torch'; choose that, or"),
        ({"compute_dtype": "float16", "dtype": "float64"}, "needs a θ of dtype='float32', got 'float64'; leave one of them out"),
        ({"compute_dtype": "tf32"}, "compute_dtype='tf32' needs backend 'cupy', got 'numpy'; choose that, or leave it out"),
        (
            {"compute_dtype": np.float16, "backend": "array_api_strict"},
            "compute_dtype='float16' needs backend 'numpy' or 'cupy', got 'array_api_strict'; choose that, or leave it out",
        ),
        ({"compute_dtype": "float16", "backend": "torch"}, "needs backend 'numpy' or 'cupy', got 'torch'; choose that, or"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', got 'float16'"),
    ],
)
def test_what_cannot_be_is_refused(options, expected):
    try:
        bp.get_backend(options.get("backend"))
    except RuntimeError as error:
        missing(options["backend"], str(error))
    with pytest.raises(ValueError, match=re.escape(expected)):
        bp.Network(bp.MLP([4, 3]), **options)


def test_moving_where_float16_is_not_changes_nothing():
    net = bp.Network(bp.MLP([4, 3]), compute_dtype="float16")
    pytest.importorskip("array_api_strict")
    with pytest.raises(ValueError, match="compute_dtype='float16' needs backend 'numpy' or 'cupy'"):
        net.to("array_api_strict")
    assert net.backend.name == "numpy"
    assert net(np.ones((2, 4))).shape == (2, 3)


def test_a_file_holds_theta_and_the_reader_chooses(tmp_path):
    path = tmp_path / "net.safetensors"
    net = bp.Network(bp.MLP([4, 3]), compute_dtype="float16")
    net.save(path)
    again, wide = bp.Network.load(path, compute_dtype="float16"), bp.Network.load(path)
    assert (again.compute_dtype, wide.compute_dtype) == ("float16", "float32")
    X = np.random.default_rng(0).standard_normal((5, 4))
    np.testing.assert_array_equal(again(X), net(X))
    assert np.any(wide(X) != net(X))


@pytest.mark.parametrize(("writes", "reads"), [(None, "float16"), ("float16", None)])
def test_a_run_is_taken_up_only_as_it_was(writes, reads, tmp_path):
    path = tmp_path / "run.safetensors"
    trainer(dtype="float32", compute_dtype=writes).save(path)
    run = trainer(dtype="float32", compute_dtype=reads)
    with unchanged(run), pytest.raises(CheckpointError, match="expected computing in"):
        run.resume(path)


# ---- TF32 ----


def test_kernels_are_told_of_tf32(monkeypatch):
    """It is set while the module runs, each way, and neither in the loss nor after."""
    seen = []

    class Probe(bp.Linear):
        def forward(self, theta, z, mode):
            seen.append(tf32.get())
            return super().forward(theta, z, mode=mode)

        def backward(self, *args, **named):
            seen.append(tf32.get())
            return super().backward(*args, **named)

    class Loss(bp.SquaredError):
        def forward(self, *args, **named):
            seen.append(tf32.get())
            return super().forward(*args, **named)

    net = bp.Network(Probe(2, 2))
    X = np.ones((3, 2), "float32")
    plain = net.value_and_gradient(Loss(), X, X)
    net.__dict__["compute_dtype"] = "tf32"  # as on a GPU
    got = net.value_and_gradient(Loss(), X, X)
    assert seen == [False, False, False, True, False, True]
    assert not tf32.get()
    for one, other in zip(got, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_is_half():
    assert is_half(np.zeros(1, "float16"))
    assert is_half(np.zeros(1, np.dtype("<f2")))
    assert not is_half(np.zeros(1, "float32"))
