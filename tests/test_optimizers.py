"""Optimisers against PyTorch's, against their papers, and on every backend against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import BackendUnderTest, missing
from runs import assert_same, become, examples, trainer

import bpcore as bp
from bpcore import schedules
from bpcore.functional.updates import clip_norm, squared_norm

SIZE, DECAYED, STEPS = 101, 64, 100

# name: (optimiser, its namesake in torch.optim and the arguments that it takes there; None for what PyTorch has not)
TABLE = {
    "SGD": (bp.SGD(0.1), "SGD", {}),
    "SGD, momentum": (bp.SGD(0.1, momentum=0.9), "SGD", {"momentum": 0.9}),
    "SGD, nesterov": (bp.SGD(0.1, momentum=0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
    "SGD, decay": (bp.SGD(0.1, weight_decay=0.1), "SGD", {"weight_decay": 0.1}),
    "SGD, nesterov, decay": (
        bp.SGD(0.1, 0.8, nesterov=True, weight_decay=0.1),
        "SGD",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "RMSProp": (bp.RMSProp(0.01, rho=0.9), "RMSprop", {"alpha": 0.9}),
    "RMSProp, decay": (bp.RMSProp(0.01, eps=1e-3, weight_decay=0.1), "RMSprop", {"eps": 1e-3, "weight_decay": 0.1}),
    "Adagrad": (bp.Adagrad(0.1), "Adagrad", {}),
    "Adagrad, decay": (bp.Adagrad(0.1, eps=1e-3, weight_decay=0.1), "Adagrad", {"eps": 1e-3, "weight_decay": 0.1}),
    "Adam": (bp.Adam(0.01), "Adam", {}),
    "Adam, betas": (bp.Adam(0.01, betas=(0.5, 0.9), eps=1e-2), "Adam", {"betas": (0.5, 0.9), "eps": 1e-2}),
    "Adam, decay": (bp.Adam(0.01, weight_decay=0.1), "Adam", {"weight_decay": 0.1}),
    "AdamW": (bp.AdamW(0.01), "AdamW", {}),
    "AdamW, decay": (bp.AdamW(0.01, weight_decay=0.3), "AdamW", {"weight_decay": 0.3}),
    "Lion": (bp.Lion(0.01), None, {}),
    "Lion, decay": (bp.Lion(0.01, betas=(0.8, 0.95), weight_decay=0.3), None, {}),
}

# options of a trainer from a NumPy scalar for each number
SCALARS = {
    "SGD": lambda s: {"optimizer": bp.SGD(s(0.125), s(0.5), weight_decay=s(0.125))},
    "RMSProp": lambda s: {"optimizer": bp.RMSProp(s(0.125), s(0.5), s(2**-20), s(0.125))},
    "Adagrad": lambda s: {"optimizer": bp.Adagrad(s(0.125), s(2**-20), s(0.125))},
    "Adam": lambda s: {"optimizer": bp.Adam(s(0.125), (s(0.5), s(0.75)), s(2**-20), s(0.125))},
    "Adam, betas in a list": lambda s: {"optimizer": bp.Adam(s(0.125), [s(0.5), s(0.75)])},
    "AdamW": lambda s: {"optimizer": bp.AdamW(s(0.125), (s(0.5), s(0.75)), weight_decay=s(0.125))},
    "Lion": lambda s: {"optimizer": bp.Lion(s(0.125), (s(0.5), s(0.75)), s(0.125))},
    "clipped": lambda s: {"optimizer": bp.SGD(0.125), "clip_norm": s(0.0625)},
    "a schedule": lambda s: {"optimizer": bp.SGD(0.125), "schedule": lambda step: s(0.5)},
    "plateau": lambda s: {"optimizer": bp.SGD(0.125), "schedule": schedules.ReduceOnPlateau(s(0.5), 0, s(0.5), "training_loss")},
    "smoothing": lambda s: {"loss": bp.CrossEntropy(s(0.125))},
}
ORACLES = [name for name, (_, namesake, _) in TABLE.items() if namesake]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def start(dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    """θ, and the gradients of 100 steps, of sizes from 1e-3 to 10."""
    generator = np.random.default_rng(5)
    gradients = generator.standard_normal((STEPS, SIZE)) * 10.0 ** generator.uniform(-3, 1, (STEPS, SIZE))
    return generator.standard_normal(SIZE).astype(dtype), gradients.astype(dtype)


def train(optimizer: bp.Optimizer, on: BackendUnderTest, dtype: str = "float64", decayed: int = DECAYED) -> dict[str, np.ndarray]:
    """θ and the moments after 100 steps on a backend, under its guard; the gradients are left as they are."""
    theta, gradients = start(dtype)
    x = on.writable(theta)
    state = optimizer.start(x)
    for step, host in enumerate(gradients, 1):
        g = on.asarray(host)
        with on.guard():
            optimizer.update(x, g, state, step, optimizer.lr, decayed)
        np.testing.assert_array_equal(on.to_host(g), host)
    return {"theta": on.to_host(x), **{name: on.to_host(vector) for name, vector in state.items()}}


def assert_close(got: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.max(np.abs(expected)))


@pytest.fixture(scope="module")
def numpy() -> BackendUnderTest:
    return BackendUnderTest("numpy", bp.get_backend("numpy"))


def test_every_optimiser_is_in_the_table():
    optimisers = {
        name for name in bp.__all__ if isinstance(getattr(bp, name), type) and issubclass(getattr(bp, name), bp.Optimizer)
    }
    assert optimisers - {"Optimizer"} == {name.partition(",")[0] for name in TABLE}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ORACLES)
def test_equals_pytorch(name, dtype, numpy, torch):
    """Weight decay to θ[:decayed] alone: PyTorch has two groups for it."""
    optimizer, namesake, arguments = TABLE[name]
    theta, gradients = start(dtype)
    pieces = [torch.nn.Parameter(torch.tensor(x)) for x in (theta[:DECAYED], theta[DECAYED:])]
    groups = [{"params": [pieces[0]]}, {"params": [pieces[1]], "weight_decay": 0.0}]
    oracle = getattr(torch.optim, namesake)(groups, lr=optimizer.lr, **arguments)
    for g in torch.tensor(gradients):
        pieces[0].grad, pieces[1].grad = g[:DECAYED], g[DECAYED:]
        oracle.step()
    expected = torch.cat(pieces).detach().numpy()
    assert_close(train(optimizer, numpy, dtype)["theta"], expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ORACLES])
def test_lion_is_its_paper(name, numpy):
    """Algorithm 2 of Chen et al., 2023, written as it stands there."""
    optimizer = TABLE[name][0]
    theta, gradients = start()
    decay = np.where(np.arange(SIZE) < DECAYED, optimizer.weight_decay, 0.0)
    (beta1, beta2), m = optimizer.betas, np.zeros(SIZE)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        theta = theta - optimizer.lr * (np.sign(c) + decay * theta)
        m = beta2 * m + (1 - beta2) * g
    got = train(optimizer, numpy)
    assert_close(got["theta"], theta, 1e-12)
    assert_close(got["m"], m, 1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_every_backend_equals_the_definition(name, backend):
    """array_api_strict computes with NumPy and has no twins."""
    try:
        definition = BackendUnderTest("array_api_strict", bp.get_backend("array_api_strict"))
    except RuntimeError as error:
        missing("array_api_strict", str(error))
    got, expected = train(TABLE[name][0], backend), train(TABLE[name][0], definition)
    assert list(got) == list(expected)
    for vector, values in expected.items():
        assert_close(got[vector], values, 1e-12)


@pytest.mark.parametrize("name", [name for name in TABLE if "decay" in name])
@pytest.mark.parametrize("decayed", [0, DECAYED, SIZE])
def test_weight_decay_applies_to_the_decayed_alone(name, decayed, numpy):
    with_decay = TABLE[name][0]
    without = type(with_decay)(**{**vars(with_decay), "weight_decay": 0.0})
    got, plain = (train(optimizer, numpy, decayed=decayed)["theta"] for optimizer in (with_decay, without))
    np.testing.assert_array_equal(got[decayed:], plain[decayed:])
    assert np.all(got[:decayed] != plain[:decayed])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TABLE)
def test_moments_flush_subnormals(name, dtype, backend):
    """Under zero gradient moments fall to zero, and are never subnormal on the way; nor are squares of small gradients."""
    fast = {"momentum": 0.8, "rho": 0.8, "betas": (0.8, 0.8), "weight_decay": 0.0}
    given = vars(TABLE[name][0])
    optimizer = type(TABLE[name][0])(**{**given, **{k: x for k, x in fast.items() if given.get(k)}})
    smallest = float(np.finfo(dtype).smallest_normal)
    theta, g = backend.writable(np.ones(8), dtype), backend.writable(np.full(8, np.sqrt(smallest) * 4), dtype)
    state = optimizer.start(theta)
    if "v" in state:
        state["v"][...] = backend.asarray(np.full(8, smallest * 4096), dtype)
    for step in range(1, 100):
        optimizer.update(theta, g, state, step, optimizer.lr, 8)
        for vector, array in state.items():
            host = backend.to_host(array)
            assert np.all((host == 0) | (np.abs(host) >= smallest)), f"{vector} is subnormal in step {step}: {host[0]}"
        g = backend.asarray(np.zeros(8) if step > 1 else np.full(8, np.sqrt(smallest) / 30), dtype)
    if not isinstance(optimizer, bp.Adagrad):  # whose sum never falls
        assert not any(np.any(backend.to_host(array)) for array in state.values())


def test_adagrad_flushes_small_squares(backend):
    for dtype in TOLERANCE:
        smallest = float(np.finfo(dtype).smallest_normal)
        theta, v = backend.writable(np.ones(8), dtype), backend.writable(np.zeros(8), dtype)
        bp.Adagrad(0.1).update(theta, backend.asarray(np.full(8, np.sqrt(smallest) / 30), dtype), {"v": v}, 1, 0.1, 8)
        assert not np.any(backend.to_host(v))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("scale", "largest"), [(1.0, 2.0), (1.0, 1e3), (0.0, 1.0), (1e-3, 1e-6)])
def test_clip_norm(scale, largest, dtype, backend):
    """By the factor that makes the norm `largest`; not at all where it is below, to the bit."""
    host = (np.random.default_rng(1).standard_normal(SIZE) * scale).astype(dtype)
    norm = np.linalg.norm(host.astype("float64"))
    g, clipped = backend.asarray(host), backend.writable(np.full(SIZE, np.nan), dtype)
    with backend.guard():
        clip_norm(g, squared_norm(g), largest, clipped)
    np.testing.assert_array_equal(backend.to_host(g), host)
    got = backend.to_host(clipped)
    if norm <= largest:
        np.testing.assert_array_equal(got, host)
    else:
        assert_close(got, (host * (largest / norm)).astype(dtype), 1e-6 if dtype == "float32" else 1e-14)


def test_clip_norm_in_training():
    """With SGD at lr = 1 a step is as long as the clipped gradient."""
    lengths = {}
    for largest in (None, 1e-3, 1e3):
        run = trainer(optimizer=bp.SGD(1.0), clip_norm=largest)
        before = run.network.theta.copy()
        run.step(*examples())
        lengths[largest] = np.linalg.norm(run.network.theta - before)
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-12)
    assert lengths[1e3] == lengths[None] > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.SGD(-1.0), "lr must be a finite number with 0.0 <= lr, got -1.0"),
        (lambda: bp.SGD(float("nan")), "lr must be a finite number"),
        (lambda: bp.Adam(float("inf")), "lr must be a finite number"),
        (lambda: bp.Adam("fast"), "lr must be a finite number .* got 'fast'"),
        (lambda: bp.Adam(True), "lr must be a finite number .* got True"),
        (lambda: bp.SGD(momentum=1.0), "momentum must be .* 0.0 <= momentum < 1.0, got 1.0"),
        (lambda: bp.SGD(momentum=-0.1), "momentum must be"),
        (lambda: bp.SGD(nesterov=True), "nesterov=True needs momentum > 0"),
        (lambda: bp.SGD(weight_decay=-0.1), "weight_decay must be"),
        (lambda: bp.RMSProp(rho=1.5), "rho must be"),
        (lambda: bp.RMSProp(eps=-1e-8), "eps must be"),
        (lambda: bp.Adagrad(eps=None), "eps must be"),
        (lambda: bp.Adam(betas=0.9), r"betas must be two numbers, got 0.9; e.g. \(0.9, 0.999\)"),
        (lambda: bp.Adam(betas=(0.9,)), "betas must be two numbers"),
        (lambda: bp.AdamW(betas=(0.9, 1.0)), "betas must be .* got 1.0"),
        (lambda: bp.Lion(betas=(-0.1, 0.9)), "betas must be"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_optimisers_are_values():
    """They compare, print as they are written, and do not change."""
    assert bp.Adam(0.1) == bp.Adam(0.1) != bp.AdamW(0.1)
    assert repr(bp.SGD(0.1, 0.9)) == "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)"
    with pytest.raises(AttributeError):
        bp.Adam().lr = 1.0


@pytest.mark.parametrize("scalar", [np.float64, np.float32])
@pytest.mark.parametrize("name", SCALARS)
def test_numpy_scalars_are_numbers(name, scalar, backend, tmp_path):
    """A float32 network stays one, with the same θ to the bit, and the run goes into a file and out of it."""
    runs = [trainer(backend=backend.backend, dtype="float32", **SCALARS[name](kind)) for kind in (scalar, float)]
    X, y, w = examples(weights=True)
    for run in runs:
        run.fit((X, y, w), epochs=3, batch_size=16)
    J, gradient = runs[0].network.value_and_gradient(runs[0].loss, X, y, w)
    for array in (J, gradient, runs[0].step(X, y), runs[0].network.theta, *runs[0].moments.values()):
        assert str(backend.to_host(array).dtype) == "float32"
    runs[1].step(X, y)
    assert_same(become(runs[0]), become(runs[1]))
    runs[0].save(tmp_path / "run")
    again = trainer(backend=backend.backend, dtype="float32", **SCALARS[name](scalar))
    again.resume(tmp_path / "run")
    assert_same(become(again), become(runs[0]))


def test_numpy_whole_numbers_of_a_trainer(backend):
    """Sizes, counts and seeds."""
    n, run = np.int64, trainer(backend=backend.backend, accumulate=np.int64(2), seed=np.int64(3), metrics=bp.Accuracy())
    expected = trainer(backend=backend.backend, accumulate=2, seed=3, metrics=bp.Accuracy())
    run.fit(examples(), examples(seed=1), epochs=n(2), batch_size=n(16), training_sample=n(20))
    expected.fit(examples(), examples(seed=1), epochs=2, batch_size=16, training_sample=20)
    assert_same(become(run), become(expected))
