"""What users write, with types: `nox -s types` holds this file to mypy --strict and to pyright. A test runs it too.

An ignore here is a claim: both checkers complain of an ignore that hides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_type

import numpy as np

import bpcore as bp
from bpcore import functional
from bpcore.array import namespace
from bpcore.expect import expect_features
from bpcore.functional.losses import share, weighted_mean
from bpcore.initializers import HeNormal, Zeros
from bpcore.optimizers import hyperparameter
from bpcore.training.step import Outcome, Step


class Gated(bp.Module):
    """u = (z W + b) ⊙ z."""

    rows_independent = True

    def __init__(self, n: int):
        self.n = n
        self.parameters = {"W": bp.Parameter((n, n), HeNormal()), "b": bp.Parameter((n,), Zeros(), decay=False)}

    def forward(self, theta: bp.Windows, z: bp.Array, mode: bp.Mode) -> tuple[bp.Array, tuple[bp.Array, bp.Array]]:
        assert_type(theta.W, bp.Array)
        expect_features(self, theta, z, self.n, theta.W, "n")
        gate = functional.linear(z, theta.W, theta.b)
        return gate * z, (z, gate)

    def backward(
        self,
        theta: bp.Windows,
        saved: tuple[bp.Array, bp.Array],
        v: bp.Array,
        gradient: bp.Windows,
        need_dz: bool = True,
    ) -> bp.Array | None:
        z, gate = saved
        dz = functional.linear_backward(z, theta.W, v * z, gradient.W, gradient.b, need_dz)
        assert_type(dz, bp.Array | None)
        return None if dz is None else dz + v * gate


class Both(bp.Module):
    """A container: u = a(z) + b(z)."""

    def __init__(self, a: bp.Module, b: bp.Module):
        self.a = a
        self.b = b
        self.children = {"a": a, "b": b}

    def forward(self, theta: bp.Windows, z: bp.Array, mode: bp.Mode) -> tuple[bp.Array, tuple[object, object]]:
        u, first = self.children["a"].forward(theta["a"], z, mode=mode)
        w, second = self.children["b"].forward(theta["b"], z, mode=mode)
        return u + w, (first, second)

    def backward(
        self,
        theta: bp.Windows,
        saved: tuple[object, object],
        v: bp.Array,
        gradient: bp.Windows,
        need_dz: bool = True,
    ) -> bp.Array | None:
        first, second = saved
        dz: bp.Array = self.children["a"].backward(theta["a"], first, v, gradient["a"], need_dz)
        dw: bp.Array = self.children["b"].backward(theta["b"], second, v, gradient["b"], need_dz)
        return dz + dw if need_dz else None


class Quartic(bp.Loss):
    """ℓ = ¼ (z - y)⁴, one output an example."""

    def forward(
        self, theta: bp.Windows, z: bp.Array, y: bp.Array, weights: bp.Array | None = None, *, mode: bp.Mode
    ) -> tuple[bp.Array, tuple[bp.Array, bp.Array, bp.Array | None]]:
        self.expect(theta, z, y, weights)
        return weighted_mean((z - y) ** 4 / 4, weights), (z, y, weights)

    def backward(
        self,
        theta: bp.Windows,
        saved: tuple[bp.Array, bp.Array, bp.Array | None],
        v: bp.Array,
        gradient: bp.Windows,
        need_dz: bool = True,
    ) -> tuple[bp.Array | None, ...]:
        z, y, weights = saved
        dz = (z - y) ** 3 * share(v, weights, z.shape, z.ndim)
        return (dz, None) if weights is None else (dz, None, None)


@dataclass(frozen=True)
class HeavyBall(bp.Optimizer):
    """m = μ m + g; θ -= lr m."""

    lr: float = 0.01
    mu: float = hyperparameter(0.9, below=1.0)
    moments = ("m",)

    def update(self, theta: bp.Array, gradient: bp.Array, state: dict[str, bp.Array], step: int, lr: float, decayed: int) -> None:
        state["m"][...] = self.mu * state["m"] + gradient
        theta[...] = theta - lr * state["m"]


class Within(bp.Metric):
    """The part of the examples whose outputs are all within `tolerance` of the labels."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.name = f"within_{tolerance}"

    def scores(self, t: bp.Array, y: bp.Array) -> bp.Array:
        xp = namespace(t)
        return xp.astype(xp.max(xp.abs(t - y), axis=-1) < self.tolerance, t.dtype)


class InverseTime(bp.schedules.Schedule):
    """1 / (1 + rate · step)."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, step: int) -> float:
        return 1 / (1 + self.rate * step)

    def state(self) -> dict[str, float]:
        return {"rate": self.rate}

    def restore(self, state: Mapping[str, float]) -> None:
        self.rate = state["rate"]


class StopBelow(bp.Callback):
    """Stops once the watched column is below a limit."""

    def __init__(self, limit: float, column: str = "test_loss"):
        self.limit = limit
        self.column = column
        self.monitor = column
        self.smallest = math.inf

    def on_step(self, trainer: bp.Run, J: bp.Array) -> None:
        assert trainer.steps_per_epoch is None or trainer.position <= trainer.steps_per_epoch

    def on_epoch(self, trainer: bp.Run, record: dict[str, float]) -> None:
        self.smallest = min(self.smallest, record[self.column])
        if record[self.column] < self.limit:
            trainer.finished = f"{self.column} fell below {self.limit} in epoch {trainer.epoch}"


def train(X: np.ndarray, y: np.ndarray) -> bp.History:
    """A network of one's own modules, bound and trained."""
    body = bp.Sequential(Both(Gated(3), bp.MLP([3, 4, 3])), bp.ReLU(), bp.Linear(3, 1), bp.Reshape(()))
    net = bp.Network(body, backend="numpy", seed=1)
    trainer = bp.Trainer(
        net,
        Quartic(),
        HeavyBall(lr=1e-3),
        schedule=InverseTime(0.01),
        metrics=["mse"],
        callbacks=[StopBelow(1e-3), bp.EarlyStopping(patience=5)],
        clip_norm=1.0,
    )
    assert_type(trainer.step(X[:4], y[:4]), bp.Array)
    assert_type(trainer.lr, float)
    history = trainer.fit((X, y), (X, y), epochs=2, batch_size=8)
    assert_type(net.theta, bp.Array)
    window = net.parameters()["2.W"]
    assert_type(window, bp.Array)
    assert_type(trainer.evaluate((X, y)), dict[str, float])
    return history


def by_hand(z: np.ndarray) -> bp.Array:
    """A module without a network: the notes' B."""
    module = Gated(3)
    theta = bp.initialize(module, seed=0, dtype="float64")
    u, B = bp.evaluate(module, theta, z)
    dz, dtheta = B(np.ones_like(z))
    assert dz.shape == z.shape
    assert u.shape == z.shape
    assert_type(dtheta, bp.Windows)
    bp.check_module(module, z.shape)
    return dtheta.W


def own_loop(X: np.ndarray, y: np.ndarray) -> float:
    """A step without a trainer."""
    net = bp.Network(bp.MLP([3, 4, 2]), backend="numpy")
    step = Step(net, bp.CrossEntropy(), bp.Adam())
    batch, labels = step.place(X, y)
    outcome = step(batch, labels, number=0, lr=1e-3)
    assert_type(outcome, Outcome)
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y)
    assert_type(gradient, bp.Array)
    return float(J)


def equations(z: bp.Array, W: bp.Array, b: bp.Array) -> bp.Array:
    """Equations by position and by keyword keep their types."""
    u = functional.linear(z, W, b)
    assert_type(u, bp.Array)
    assert_type(functional.linear(z=z, W=W, b=None), bp.Array)
    assert_type(functional.softmax(u, axis=-1), bp.Array)
    return functional.relu_backward(u, v=u)


def mistakes(z: bp.Array, theta: bp.Windows) -> None:
    """What a checker must refuse. Never called."""
    functional.linear(z, theta.W)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    functional.linear(z, theta.W, bias=theta.b)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    functional.softmax(z, "last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bp.Linear("3", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bp.Network(bp.Linear)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def main() -> None:
    """All of it, once."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((16, 3))
    history = train(X, X[:, 0])
    assert len(history) == 2
    assert by_hand(X).shape == (3, 3)
    assert math.isfinite(own_loop(X, np.arange(16) % 2))
    assert equations(X, X[:3, :], X[0]).shape == (16, 3)


if __name__ == "__main__":
    main()
