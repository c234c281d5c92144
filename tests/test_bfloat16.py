"""Computing in bfloat16 on CuPy while θ stays float32: agreement with float64, training, checkpoints, what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import missing
from harness import MODE, inputs_of, theta_of, upstream
from primitive_cases import TABLE, Draw, family
from runs import CLASSES, FEATURES, assert_same, become, examples, trainer, unchanged
from test_half import MODULES, NETWORKS, apart, batch_for, cast

import bpcore as bp
from bpcore.array import is_bfloat16, is_floating, is_half, kind
from bpcore.checkpoint import CheckpointError
from bpcore.layout import Layout
from bpcore.module import Mode
from bpcore.primitive import PRIMITIVES, in_float32, load

ROUNDING = 4e-2  # ten units in the last place of the largest entry


@pytest.fixture
def backend():
    """The backend that computes in bfloat16."""
    try:
        found = bp.get_backend("cupy")
    except RuntimeError as error:
        return missing("cupy", str(error))
    found.check_compute("bfloat16", "float32")
    return found


def rounded(x):
    """Floating numbers that bfloat16 has, in float32; what else there is, as it is."""
    if not (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
        return x
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def place(backend, x):
    """x on the backend, floating numbers in bfloat16."""
    if not isinstance(x, np.ndarray):
        return x
    return backend.asarray(x, "bfloat16" if x.dtype.kind == "f" else None)


def close(got, expected, where):
    """Numbers within ROUNDING of the largest; what is below 1e-18 may be 0."""
    assert got.shape == expected.shape, where
    if np.abs(expected).max(initial=0) < 1e-18:
        assert np.abs(got).max(initial=0) < 1e-18, where
        return
    assert apart(got, expected) < ROUNDING, where


@pytest.mark.parametrize("name", [name for name in TABLE if family(name) not in ("losses", "updates")])
def test_primitives_agree_with_float64(name, backend):
    """On the same numbers, with twins and without."""
    record = PRIMITIVES[name]
    plain = in_float32(record.definition, record.writes, is_bfloat16) if record.widens else record.definition
    for shape in ((13, 7), (40, 70)):
        with np.errstate(divide="ignore"):
            rows = [[rounded(x) for x in args] for args in TABLE[name](Draw(*shape, "float32"))]
        for args in rows:
            exact = [cast(x, "float64") for x in args]
            expected = record.definition(*exact)
            for run in (record.call, plain):
                here = [place(backend, x) for x in args]
                got = run(*here)
                several = isinstance(got, tuple)
                first = got[0] if several else got
                if name != "batch_statistics" and hasattr(first, "dtype") and is_floating(first):
                    assert str(first.dtype) == "bfloat16"
                pairs = [*(zip(got, expected, strict=True) if several else [(got, expected)]), *zip(here, exact, strict=True)]
                for i, (one, other) in enumerate(pairs):
                    if isinstance(other, np.ndarray) and other.dtype.kind == "f":
                        close(backend.to_host(one), other, f"{name} {shape} {i}")


@pytest.mark.parametrize("name", TABLE)
def test_twins_serve_bfloat16_as_float16(name, backend):
    """No primitive is left to its definition because of the dtype."""
    load("kernels.cuda")
    twin = PRIMITIVES[name].twins.get("kernels.cuda")
    if twin is None or twin.serves is None:
        pytest.skip("no condition")
    with np.errstate(divide="ignore"):
        rows = [[rounded(x) for x in args] for args in TABLE[name](Draw(13, 7, "float32"))]
    for args in rows:
        served = []
        for dtype in ("float16", "bfloat16"):
            here = [backend.asarray(x, dtype if x.dtype.kind == "f" else None) if isinstance(x, np.ndarray) else x for x in args]
            served.append(twin.serves(*here))
        assert served[0] == served[1]


@pytest.mark.parametrize("one", MODULES, ids=repr)
def test_modules_agree_with_float64(one, backend):
    """u, dz and dθ are bfloat16 and those of float64, from the same θ and z; buffers are float32 windows."""
    layout = Layout(one.make())
    theta, z = rounded(theta_of(one, layout)), [rounded(x) for x in inputs_of(one)]
    runs = []
    for dtype, wide in (("float64", "float64"), ("bfloat16", "float32")):
        vector = backend.asarray(theta[: layout.trained].astype("float32"), dtype)
        windows = layout.windows(vector, theta=backend.asarray(theta, wide))
        inputs = [backend.asarray(x, dtype if x.dtype.kind == "f" else None) for x in z]
        u, saved = layout.module.forward(windows, *inputs, mode=Mode(**MODE))
        us = u if isinstance(u, tuple) else (u,)
        v = tuple(backend.asarray(rounded(x), dtype) for x in upstream(one, [x.shape for x in us]))
        gradient, spare = backend.zeros(layout.trained, dtype), backend.zeros(layout.spare, dtype)
        dz = layout.module.backward(windows, saved, v if isinstance(u, tuple) else v[0], layout.windows(gradient, spare))
        layout.add_home(gradient, spare)
        found = [x for x in (*us, *(dz if isinstance(dz, tuple) else (dz,)), gradient) if x is not None]
        assert [str(x.dtype) for x in found] == [dtype] * len(found)
        runs.append([backend.to_host(x) for x in found])
    for exact, half in zip(*runs, strict=True):
        assert apart(half, exact) < 2 * ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_gradient_agrees_with_float64(name, backend):
    make, X, y = batch_for(name)
    exact, net = bp.Network(make(), dtype="float64", seed=1), bp.Network(make(), backend, seed=1, compute_dtype="bfloat16")
    expected = exact.value_and_gradient(bp.CrossEntropy(), X, y, mode=Mode(True))
    J, gradient = map(backend.to_host, net.value_and_gradient(bp.CrossEntropy(), X, y, mode=Mode(True)))
    assert [str(x.dtype) for x in (net.theta, net(X), net.value_and_gradient(bp.CrossEntropy(), X, y)[0])] == ["float32"] * 3
    assert abs(J - expected[0]) < ROUNDING
    assert np.linalg.norm(gradient - expected[1]) < ROUNDING * np.linalg.norm(expected[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_training_follows_float32(name, backend):
    """The same losses to 5 %, without scaling, with micro-batches and a clip."""
    make, shape = NETWORKS[name]
    generator = np.random.default_rng(0)
    X = generator.integers(0, 11, (16, 12)) if shape is None else generator.standard_normal((16, *shape[1:]))
    y = generator.integers(0, 5, X.shape if shape is None else 16)
    losses = []
    for compute_dtype in ("float32", "bfloat16"):
        net = bp.Network(make(), backend, seed=1, compute_dtype=compute_dtype)
        run = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(3e-3), clip_norm=1.0, accumulate=2)
        assert run.scaling is None
        losses.append([float(run.step(X, y)) for _ in range(12)])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


def half_trainer(**options) -> bp.Trainer:
    return trainer(backend="cupy", dtype="float32", compute_dtype="bfloat16", **options)


def test_a_run_goes_on_bit_for_bit(backend, tmp_path):
    """From a checkpoint and from a pickle."""
    X, y = examples()
    run = half_trainer(dropout=0.2)
    run.step(X, y)
    run.save(tmp_path / "run.safetensors")
    again, pickled = half_trainer(dropout=0.2), pickle.loads(pickle.dumps(run))
    again.resume(tmp_path / "run.safetensors")
    for one in (run, again, pickled):
        assert one.network.compute_dtype == "bfloat16"
        one.step(X, y)
    assert_same(become(again), become(run))
    assert_same(become(pickled), become(run))


OTHERS = [(None, "bfloat16"), ("bfloat16", None), ("float16", "bfloat16"), ("bfloat16", "float16")]


@pytest.mark.parametrize(("writes", "reads"), OTHERS)
def test_a_run_is_taken_up_only_as_it_was(writes, reads, backend, tmp_path):
    path = tmp_path / "run.safetensors"
    trainer(backend="cupy", dtype="float32", compute_dtype=writes).save(path)
    run = trainer(backend="cupy", dtype="float32", compute_dtype=reads)
    with unchanged(run), pytest.raises(CheckpointError, match="expected computing in"):
        run.resume(path)


def test_arrays_of_bfloat16(backend):
    x = backend.asarray([1.0, 2.0, 1 + 2**-9], "bfloat16")
    assert (str(x.dtype), kind(x), is_floating(x), is_half(x)) == ("bfloat16", "real floating", True, True)
    host = backend.to_host(x)
    assert host.dtype == "float32"
    assert host.tolist() == [1.0, 2.0, 1.0]


def test_data_beyond_float16_are_taken(backend):
    net = bp.Network(bp.Linear(2, 1), backend, compute_dtype="bfloat16")
    assert np.isfinite(backend.to_host(net(np.full((1, 2), 1e30)))).all()
    run = bp.Trainer(net, bp.SquaredError(), bp.SGD(0.0))
    run.fit((np.full((4, 2), 1e6), np.zeros((4, 1))), epochs=1)
    assert len(run.history) == 1


def test_what_is_too_old_is_told(backend, monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.1")
    with pytest.raises(ValueError, match=r"needs NumPy from 2\.1\.2, a CuPy that knows bfloat16, and ml_dtypes, got ImportError"):
        bp.Network(bp.MLP([FEATURES, CLASSES]), backend, compute_dtype="bfloat16")
