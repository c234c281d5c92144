"""Optimisers against PyTorch's, against their papers, and on every backend against their definitions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from conftest import BackendUnderTest, missing
from optimizer_cases import ROWS, VARIANTS
from runs import assert_same, become, examples, trainer

import bpcore as bp
from bpcore import optimizers, schedules
from bpcore.functional.updates import clip_factor, squared_norm, times
from bpcore.optimizers import hyperparameter

SIZE, DECAYED, STEPS = 101, 64, 100


def with_scalars(make: type[bp.Optimizer], scalar: type) -> bp.Optimizer:
    """An optimiser with a NumPy scalar for each number: 0.5 where it must be below 1, else 0.125."""
    options: dict[str, Any] = {}
    for declared in fields(make):
        if isinstance(declared.default, tuple):
            options[declared.name] = scalar(0.5), scalar(0.75)
        elif isinstance(declared.default, float):
            options[declared.name] = scalar(0.5 if declared.metadata.get("below") == 1 else 0.125)
    return make(**options)


# options of a trainer from a NumPy scalar for each number
SCALARS = {
    **{row.make.__name__: lambda s, make=row.make: {"optimizer": with_scalars(make, s)} for row in ROWS},
    "Adam, betas in a list": lambda s: {"optimizer": bp.Adam(s(0.125), [s(0.5), s(0.75)])},
    "clipped": lambda s: {"optimizer": bp.SGD(0.125), "clip_norm": s(0.0625)},
    "a schedule": lambda s: {"optimizer": bp.SGD(0.125), "schedule": lambda step: s(0.5)},
    "plateau": lambda s: {"optimizer": bp.SGD(0.125), "schedule": schedules.ReduceOnPlateau(s(0.5), 0, s(0.5), "training_loss")},
    "smoothing": lambda s: {"loss": bp.CrossEntropy(s(0.125))},
}
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


@pytest.fixture
def wide(torch):
    """PyTorch with float64 for scalars of its own, such as a product of momentum factors: they are float32 otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def test_every_optimiser_has_a_row():
    assert {*optimizers.__all__} - {"Optimizer"} == {row.make.__name__ for row in ROWS}
    assert {*optimizers.__all__} <= {*bp.__all__}
    assert all(row.torch or row.reference for row in ROWS)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.row.torch])
def test_equals_pytorch(name, dtype, numpy, wide):
    """Weight decay to θ[:decayed] alone: PyTorch has two groups for it."""
    torch = wide
    theta, gradients = start(dtype)
    pieces = [torch.nn.Parameter(torch.tensor(x)) for x in (theta[:DECAYED], theta[DECAYED:])]
    oracle = VARIANTS[name].oracle(torch, [{"params": [pieces[0]]}, {"params": [pieces[1]], "weight_decay": 0.0}])
    for g in torch.tensor(gradients):
        pieces[0].grad, pieces[1].grad = g[:DECAYED], g[DECAYED:]
        oracle.step()
    expected = torch.cat(pieces).detach().numpy()
    assert_close(train(VARIANTS[name].optimizer, numpy, dtype)["theta"], expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.row.reference])
def test_equals_its_paper(name, numpy):
    optimizer, reference = VARIANTS[name].optimizer, VARIANTS[name].row.reference
    theta, gradients = start()
    expected = reference(optimizer, theta, gradients, np.where(np.arange(SIZE) < DECAYED, optimizer.weight_decay, 0.0))
    got = train(optimizer, numpy)
    assert list(got) == list(expected)
    for vector, values in expected.items():
        assert_close(got[vector], values, 1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_backend_equals_the_definition(name, backend):
    """array_api_strict computes with NumPy and has no twins."""
    try:
        definition = BackendUnderTest("array_api_strict", bp.get_backend("array_api_strict"))
    except RuntimeError as error:
        missing("array_api_strict", str(error))
    got, expected = train(VARIANTS[name].optimizer, backend), train(VARIANTS[name].optimizer, definition)
    assert list(got) == list(expected)
    for vector, values in expected.items():
        assert_close(got[vector], values, 1e-12)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "weight_decay" in name])
@pytest.mark.parametrize("decayed", [0, DECAYED, SIZE])
def test_weight_decay_applies_to_the_decayed_alone(name, decayed, numpy):
    with_decay = VARIANTS[name].optimizer
    without = type(with_decay)(**{**vars(with_decay), "weight_decay": 0.0})
    got, plain = (train(optimizer, numpy, decayed=decayed)["theta"] for optimizer in (with_decay, without))
    np.testing.assert_array_equal(got[decayed:], plain[decayed:])
    assert np.all(got[:decayed] != plain[:decayed])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", VARIANTS)
def test_moments_flush_subnormals(name, dtype, backend):
    """Under zero gradient moments fall to zero, and are never subnormal on the way; nor are squares of small gradients."""
    fast = {"momentum": 0.8, "rho": 0.8, "betas": (0.8, 0.8), "weight_decay": 0.0}
    slow = vars(VARIANTS[name].optimizer)
    optimizer = VARIANTS[name].row.make(**{**slow, **{k: x for k, x in fast.items() if slow.get(k)}})
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
    falling = [array for vector, array in state.items() if vector not in VARIANTS[name].row.lasting]
    assert not any(np.any(backend.to_host(array)) for array in falling)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.row.by_definition])
def test_step_and_lr_on_the_device_give_the_same_bits(name, dtype, backend):
    """As in a recorded step: where no kernel reads them from the device, the definition must."""
    optimizer, found = VARIANTS[name].optimizer, []
    theta, gradients = start(dtype)
    for on_device in (False, True):
        x = backend.writable(theta)
        state = optimizer.start(x)
        for step, g in enumerate(gradients, 1):
            numbers = (step, optimizer.lr / step)
            if on_device:
                numbers = tuple(backend.asarray(n, kind) for n, kind in zip(numbers, ("int64", "float64"), strict=True))
            optimizer.update(x, backend.asarray(g), state, *numbers, DECAYED)
        found.append([backend.to_host(vector).tobytes() for vector in (x, *state.values())])
    assert found[0] == found[1]


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
    g = backend.asarray(host)
    with backend.guard():
        clipped = times(g, clip_factor(g, squared_norm(g), largest))
    np.testing.assert_array_equal(backend.to_host(g), host)
    got = backend.to_host(clipped)
    if norm <= largest:
        np.testing.assert_array_equal(got, host)
    else:
        assert_close(got, (host * (largest / norm)).astype(dtype), 1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_not_hidden(bad, backend):
    g = backend.asarray(np.asarray([1.0, bad], "float32"))
    assert np.isnan(backend.to_host(times(g, clip_factor(g, squared_norm(g), 1.0)))).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_factor_is_that_of_a_scaled_gradient(name, dtype, backend):
    """To the bit, as if the product had been stored; and with 0, up to rounding, what is not finite counts as zeros."""
    optimizer, (theta, (g, *_)) = VARIANTS[name].optimizer, start(dtype)
    third = float(np.float32(1 / 3))  # in float32 and in double the product is rounded once
    bad = np.where(np.arange(SIZE) % 3, g, np.inf).astype(dtype)
    for factor, host, product in ((third, g, g * np.dtype(dtype).type(third)), (1.0, g, g), (0.0, bad, 0 * g)):
        found = []
        for x, scalar in ((product, 1.0), (host, factor), (host, backend.asarray(factor))):
            if hasattr(scalar, "dtype") and not backend.backend.asynchronous:
                continue
            theta_, gradient = backend.writable(theta), backend.asarray(x)
            state = optimizer.start(theta_)
            for step in (1, 2):
                with backend.guard():
                    optimizer.update(theta_, gradient, state, step, optimizer.lr, DECAYED, scalar)
            found.append([backend.to_host(vector) for vector in (theta_, *state.values())])
        for other in found[1:]:
            for got, expected in zip(other, found[0], strict=True):
                assert_close(got, expected, 0.0 if factor else TOLERANCE[dtype])


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
        (lambda: bp.AdamW(betas=(0.9, 1.0)), r"betas\[1\] must be .* got 1.0"),
        (lambda: bp.Lion(betas=(-0.1, 0.9)), r"betas\[0\] must be .* got -0.1"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@dataclass(frozen=True)
class Own(bp.Adam):
    """An optimiser of a user's own: defaults anew, a bound of its own, numbers without bounds, and what is no number."""

    lr: float = 0.5
    betas: tuple[float, float] = (0.8, 0.9)
    beta3: float = hyperparameter(0.9, below=1.0)
    between: tuple[float, float] = hyperparameter((-1.0, 1.0), low=-2.0, below=2.0)
    gain: float = -1.0
    every: int = 3
    kind: str = "own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number with 0.0 <= lr, got -1.0"),
        ({"betas": (0.8, 1.0)}, r"betas\[1\] must be a finite number with 0.0 <= betas\[1\] < 1.0, got 1.0"),
        ({"betas": 0.8}, r"betas must be two numbers, got 0.8; e.g. \(0.9, 0.999\)"),
        ({"beta3": 5.0}, "beta3 must be a finite number with 0.0 <= beta3 < 1.0, got 5.0"),
        ({"between": (-3, 0)}, r"between\[0\] must be a finite number with -2.0 <= between\[0\] < 2.0, got -3"),
        ({"gain": np.inf}, "gain must be a number, finite, got inf"),
        ({"gain": "large"}, "gain must be a number, finite, got 'large'"),
        ({"gain": True}, "gain must be a number, finite, got True"),
        ({"every": np.nan}, "every must be a number, finite, got nan"),
    ],
)
def test_bad_hyperparameters_of_a_subclass(options, message):
    """A new default keeps the bounds; a number that declares none must be finite."""
    assert Own().beta3 == 0.9
    with pytest.raises(ValueError, match=message):
        Own(**options)


def test_hyperparameters_are_plain_numbers():
    own = Own(np.float32(0.5), [np.float64(0), 0], beta3=np.float32(0), gain=np.float32(2), every=np.int64(4), kind="new")
    assert [type(value) for value in vars(own).values()] == [float, tuple, float, float, float, tuple, float, int, str]
    assert [type(beta) for beta in own.betas] == [float, float]


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


def test_a_constructor_of_its_own():
    with pytest.raises(TypeError, match=r"Plain has an __init__ of its own, and an optimiser is a frozen dataclass: declare"):

        class Plain(bp.Optimizer):
            def __init__(self, lr):
                self.lr = lr


def test_a_constructor_that_calls_the_inherited_one():
    class Slow(bp.Optimizer):
        def __init__(self):
            super().__init__(0.1)

    assert Slow().lr == 0.1


def test_swapped_arguments_of_an_update():
    with pytest.raises(
        TypeError, match=r"Swapped must define update\(self, theta, gradient, state, step, lr, decayed\), got .*; order"
    ):

        class Swapped(bp.Optimizer):
            def update(self, theta, gradient, state, lr, step, decayed):
                theta[...] = theta - lr * gradient


@dataclass(frozen=True)
class Rebinding(bp.Optimizer):
    """wrong: what is bound to a new array, where it should be written."""

    wrong: str = "theta"
    moments = ("m",)

    def update(self, theta, gradient, state, step, lr, decayed):
        if self.wrong == "theta":
            theta = theta - lr * gradient
        elif self.wrong == "m":
            state["m"] = 0.9 * state["m"] + gradient
        else:
            theta[...] = theta - lr * gradient


def test_an_update_that_writes_nothing_warns_in_the_first_step():
    def step(optimizer, schedule=None, X=((1.0, 2.0),)):
        trainer = bp.Trainer(bp.Network(bp.Linear(2, 1), "numpy"), bp.SquaredError(), optimizer, schedule)
        trainer.step(np.array(X), np.ones((1, 1)))
        return trainer

    with pytest.warns(RuntimeWarning, match=r"Rebinding.update left θ as it was in step 1; .*theta\[\.\.\.\] = "):
        trainer = step(Rebinding(0.1))
    trainer.step(np.ones((1, 2)), np.ones((1, 1)))  # once
    with pytest.raises(TypeError, match=r"Rebinding.update replaced state\['m'\]; write in place: state\['m'\]\[\.\.\.\] = "):
        step(Rebinding(0.1, wrong="m"))
    step(Rebinding(0.1, wrong=""))
    step(Rebinding(0.1), lambda step: 0.0)  # θ should stay


class OwnScale(bp.Optimizer):
    """A user's base with a further argument, and a child that writes θ."""

    def update(self, theta, gradient, state, step, lr, decayed, scale=1.0):
        theta[...] = theta - scale * lr * gradient


class OwnHalf(OwnScale):
    def update(self, theta, gradient, state, step, lr, decayed):
        super().update(theta, gradient, state, step, lr, decayed, scale=0.5)


def test_a_hierarchy_of_own_optimisers(recwarn):
    def first(optimizer):
        run = trainer(optimizer=optimizer)
        before = run.network.theta.copy()
        run.step(*examples())
        return run.network.theta - before

    np.testing.assert_allclose(first(OwnHalf(0.1)), first(bp.SGD(0.05)), rtol=1e-6)
    assert not recwarn.list


WRONG = [  # what a class of an optimiser defines, and the error
    ({"update": lambda self, theta, gradient: None}, r"must define update\(self, theta, .*, got update\(self, theta, gradient\)"),
    ({"moments": "velocity"}, r"moments must be a tuple of names, got a text; write moments = \('velocity',\)"),
    ({"start": lambda self, theta: theta}, r"start must return a dictionary, got"),
    (
        {"start": lambda self, theta: {"m": np.zeros(theta.shape)}},
        r"start must return vectors of .* float32, .* 'm'; .*zeros",
    ),
    ({"start": lambda self, theta: {"t": np.zeros_like(theta[:1])}}, r"start must return vectors of shape .* 't'"),
    ({"update": lambda self, theta, gradient, state, step, lr, decayed: state["m"]}, r"state\['m'\], .* moments = \(\); add it"),
    (
        {"update": lambda self, theta, g, state, step, lr, decayed: theta.W},
        "update raised AttributeError.*; theta and gradient",
    ),
    (
        {"update": lambda self, theta, g, state, step, lr, decayed: state.setdefault("m", 0 * theta)},
        r"update added \['m'\] to the state; declare",
    ),
]


@pytest.mark.parametrize(("defined", "says"), WRONG)
def test_mistakes_in_an_own_optimiser(defined, says):
    """At the door, or in the first step."""
    with pytest.raises((TypeError, ValueError), match=f"Mine.*{says}"):
        trainer(optimizer=type("Mine", (bp.Optimizer,), defined)(lr=0.1), dtype="float32").step(*examples())
