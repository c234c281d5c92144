"""A step without a trainer: what it returns, the seam where replicas sum, and a loop of one's own."""

from __future__ import annotations

import doctest
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from runs import CLASSES, FEATURES, ROWS, examples, trainer

import bpcore as bp
from bpcore.training import step as module
from bpcore.training.guard import Counters, Guard
from bpcore.training.step import Outcome, Step

TAIL = 3  # J and two flags, behind ∇J


def made(
    backend: Any = "numpy", dtype: str = "float64", compute_dtype: str | None = None, dropout: float = 0.0, **options: Any
) -> Step:
    """A step of a small MLP, with Adam unless told otherwise."""
    net = bp.Network(
        bp.MLP([FEATURES, 8, CLASSES], dropout=dropout), backend=backend, dtype=dtype, seed=1, compute_dtype=compute_dtype
    )
    return Step(net, bp.CrossEntropy(), options.pop("optimizer", bp.Adam(0.01)), **options)


def take(step: Step, *data: Any, number: int = 0, **named: Any) -> Outcome:
    """One step on host data."""
    return step(*step.place(*data), number, step.optimizer.lr, **named)


def written(step: Step) -> dict[str, np.ndarray]:
    """All that steps write, as host copies."""
    return {name: step.network.backend.to_host(vector).copy() for name, vector in step.vectors.items()}


def expect_same(one: Step, other: Step) -> None:
    for name, array in written(one).items():
        np.testing.assert_array_equal(array, written(other)[name], err_msg=name)


def test_the_example_of_the_docstring():
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 5


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_outcome_is_of_before_the_update(accumulate):
    """J, ‖∇J‖² and ∇J of the whole batch, before the clip; and the mode of the forward pass."""
    step = made(clip_norm=1e-3, accumulate=accumulate, seed=7)
    J, gradient = step.network.value_and_gradient(step.loss, *examples())
    outcome = take(step, *examples(), number=5)
    np.testing.assert_allclose(outcome.J, J, rtol=1e-12)
    np.testing.assert_allclose(outcome.square, np.sum(gradient**2), rtol=1e-12)
    np.testing.assert_allclose(step.gradient, gradient, rtol=1e-12)
    assert (outcome.mode.training, outcome.mode.seed, outcome.mode.step, outcome.mode.micro) == (True, 7, 5, 0)
    assert outcome.outputs == CLASSES


@dataclass(frozen=True)
class Own(bp.Adam):
    """An optimiser with an update of its own, which keeps the gradient that it gets."""

    moments = ("m", "v", "got")

    def update(self, theta, gradient, state, step, lr, decayed):
        state["got"][...] = gradient
        super().update(theta, gradient, state, step, lr, decayed)


def test_an_update_of_its_own_gets_the_clipped_gradient(backend):
    """And then takes the same step as bpcore's, which is told of the factor."""
    steps = [made(backend.backend, optimizer=o, clip_norm=1e-3) for o in (bp.Adam(0.01), Own(0.01))]
    for number in range(3):
        for step in steps:
            take(step, *examples(), number=number)
    plain, own = map(written, steps)
    assert np.linalg.norm(own["got"]) == pytest.approx(1e-3, rel=1e-10)
    for name, array in plain.items():
        np.testing.assert_allclose(own[name], array, rtol=1e-10, atol=1e-14)


def test_nobody_looks_on_a_device():
    """The square of the norm is left out where nothing needs it."""
    pytest.importorskip("array_api_strict")
    assert take(made("array_api_strict:device1"), *examples()).square == 0.0
    clipped = take(made("array_api_strict:device1", clip_norm=1.0), *examples())
    assert float(bp.backend_of(clipped.square).to_host(clipped.square)) > 0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_look_that_raises_leaves_all_as_it_was(accumulate):
    step, seen = made(accumulate=accumulate, clip_norm=1e-3), []

    def refuse(outcome, batch):
        seen.append((outcome, batch, np.linalg.norm(step.gradient)))
        raise LookupError

    before = written(step)
    batch, labels = step.place(*examples())
    with pytest.raises(LookupError):
        step(batch, labels, 0, 0.01, refuse)
    for name, array in written(step).items():
        np.testing.assert_array_equal(array, before[name])
    ((outcome, given, norm),) = seen
    assert given is batch
    assert norm**2 == pytest.approx(outcome.square, rel=1e-12)  # not clipped yet


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loop_of_ones_own_is_the_trainers(accumulate, backend):
    """With dropout: steps by hand end where the trainer's do, to the bit."""
    step = made(backend.backend, dropout=0.3, accumulate=accumulate, clip_norm=0.5, seed=2)
    run = trainer(backend=backend.backend, dropout=0.3, accumulate=accumulate, clip_norm=0.5, seed=2)
    for number in range(5):
        outcome = take(step, *examples(weights=True), number=number)
        assert backend.to_host(outcome.J) == backend.to_host(run.step(*examples(weights=True)))
    expect_same(step, run.training_step)


def test_a_guard_without_a_trainer():
    """It looks at outcomes, and writes the counters that it was given when it goes back."""
    step, counters = made(optimizer=bp.SGD(1e300)), Counters()
    guard = Guard(step, counters)
    before = written(step)
    batch, labels = step.place(*examples())

    def loop():
        for _ in range(3):
            guard.begin()
            step(batch, labels, counters.steps, 1e300, guard.look)
            counters.steps += 1
            counters.position += 1

    with np.errstate(all="ignore"), pytest.raises(bp.NonFiniteLoss, match="at step 1: the first module whose output is not"):
        loop()
    assert counters == Counters(0, 0, 0)
    np.testing.assert_array_equal(step.network.theta, before["theta"])


# the seam where replicas sum


@pytest.mark.parametrize("compute_dtype", [None, "float16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_reduce_is_called_once_with_one_vector(accumulate, compute_dtype):
    """[∇J, J, flags], contiguous, after the backward pass and before the clip; a sum over one replica changes no bit."""
    seen = []

    def record(vector):
        assert vector.flags.c_contiguous
        seen.append(vector.copy())

    dtype = "float64" if compute_dtype is None else "float32"
    options = {"dtype": dtype, "compute_dtype": compute_dtype, "dropout": 0.3, "accumulate": accumulate, "clip_norm": 1e-3}
    one, other = made(**options, reduce=record), made(**options)
    for number in range(4):
        J = [take(step, *examples(weights=True), number=number).J for step in (one, other)]
        assert J[0] == J[1]
        assert len(seen) == number + 1
        n = one.network.n_parameters
        assert seen[-1].shape == (n + TAIL,)
        assert seen[-1][n] == J[0]
        assert np.linalg.norm(seen[-1][:n]) > 1.1e-3
        np.testing.assert_array_equal(seen[-1][n + 1 :], 0)
    expect_same(one, other)


def test_what_reduce_writes_is_the_gradient():
    """A function that doubles: J and ∇J are twice theirs, flags too. J is no view of what the next step writes."""

    def double(vector):
        vector *= 2

    step = made(reduce=double)
    J, gradient = step.network.value_and_gradient(step.loss, *examples())
    step.flags[...] = [1, 3]
    outcome = take(step, *examples())
    np.testing.assert_allclose(outcome.J, 2 * J, rtol=1e-12)
    np.testing.assert_allclose(outcome.square, 4 * np.sum(gradient**2), rtol=1e-12)
    np.testing.assert_allclose(step.gradient, 2 * gradient, rtol=1e-12)
    assert step.flags.tolist() == [2, 6]
    step.flags[...] = 0
    first = float(outcome.J)
    take(step, *examples(), number=1)
    assert float(outcome.J) == first
    assert step.flags.tolist() == [0, 0]


def test_reduce_on_every_backend(backend):
    """It gets an array of the backend, and J is a scalar there."""

    def double(vector):
        assert backend.backend.owns(vector)
        vector[...] = vector + vector

    outcome, plain = (take(made(backend.backend, reduce=reduce), *examples()) for reduce in (double, None))
    assert backend.backend.owns(outcome.J)
    assert outcome.J.shape == ()
    assert float(backend.to_host(outcome.J)) == 2 * float(backend.to_host(plain.J))


def test_without_reduce_nothing_is_added():
    step = made()
    assert step.flags is None
    assert step.gradient is step.summed
    assert step.gradient.shape == (step.network.n_parameters,)


class Ranks:
    """Replicas as threads, that call `step` together on their parts of a batch."""

    def __init__(self, cuts: list[int], **options: Any):
        self.parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        self.barrier = threading.Barrier(len(self.parts), timeout=60)
        self.vectors: dict[int, np.ndarray] = {}
        self.steps = [made(reduce=self.reduce_of(rank), **options) for rank in range(len(self.parts))]

    def reduce_of(self, rank: int) -> Any:
        def add(vector: np.ndarray) -> None:
            self.vectors[rank] = vector.copy()
            self.barrier.wait()
            vector[...] = sum(self.vectors[i] for i in range(len(self.parts)))  # in one order: the same bits on each
            self.barrier.wait()

        return add

    def take(self, number: int, total: float, *data: np.ndarray) -> list[Outcome]:
        """A step of all on one batch."""
        outcomes: dict[int, Outcome] = {}

        def work(rank: int) -> None:
            rows = (x[self.parts[rank]] for x in data)
            outcomes[rank] = take(self.steps[rank], *rows, number=number, total=total)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(self.parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [outcomes[rank] for rank in range(len(self.parts))]


@pytest.mark.parametrize("cuts", [[ROWS // 2], [7], [7, 9, 30]], ids=repr)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_steps_on_parts_are_one_step_on_the_whole_batch(weighted, accumulate, cuts):
    """Each part counts by its Σ w over that of the whole batch. The bits of θ are the same on all."""
    options = {"clip_norm": 0.3, "accumulate": accumulate}
    whole, ranks = made(**options), Ranks(cuts, **options)
    for number in range(10):
        data = examples(seed=number, weights=weighted)
        total = float(np.sum(data[2])) if weighted else ROWS
        expected, outcomes = take(whole, *data, number=number), ranks.take(number, total, *data)
        for outcome in outcomes:
            np.testing.assert_allclose(outcome.J, expected.J, rtol=1e-12)
            np.testing.assert_allclose(outcome.square, expected.square, rtol=1e-11)
    for step in ranks.steps:
        np.testing.assert_allclose(step.network.theta, whole.network.theta, rtol=0, atol=1e-12)
        expect_same(step, ranks.steps[0])


def test_replicas_scale_the_loss_alike():
    """float16: summed first, unscaled then. If S ∇J overflows on one, all halve S, and no θ moves."""
    ranks = Ranks([ROWS // 2], dtype="float32", compute_dtype="float16", optimizer=bp.SGD(0.1))
    exact = made(dtype="float32", compute_dtype="float16", optimizer=bp.SGD(0.1))
    X, y = examples()
    ranks.take(0, ROWS, X, y)
    take(exact, X, y)
    np.testing.assert_allclose(ranks.steps[0].gradient, exact.gradient, rtol=2e-2, atol=1e-3)
    before = ranks.steps[0].network.theta.copy()
    for step in ranks.steps:
        step.scaling.S[...] = 2.0**24
    X[0] *= 100  # of the first part
    ranks.take(1, ROWS, X, y)
    assert not np.isfinite(ranks.vectors[0]).all()
    for step in ranks.steps:
        assert step.scaling.state.tolist() == [2.0**23, 0]
        np.testing.assert_array_equal(step.network.theta, before)


# what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": None}, TypeError, "network must be a bpcore Network, got None"),
        ({"loss": "cross-entropy"}, TypeError, "loss must be a bpcore Loss, got 'cross-entropy'"),
        ({"optimizer": bp.SGD}, TypeError, "optimizer must be a bpcore Optimizer, got <class"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be a finite number with 1e-30 <= clip_norm, got 0.0"),
        ({"accumulate": 0}, ValueError, "accumulate must be a whole number from 1 up, got 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number from 0"),
        ({"network": bp.Network(bp.ReLU())}, ValueError, r"ReLU\(\) has no trained parameter; there is nothing to train"),
    ],
)
def test_what_a_step_refuses(options, error, message):
    named = {"network": bp.Network(bp.Linear(2, 2)), "loss": bp.CrossEntropy(), "optimizer": bp.SGD(), **options}
    with pytest.raises(error, match=message):
        Step(**named)
