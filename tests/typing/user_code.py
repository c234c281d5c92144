"""Code as users write it, for `mypy --strict` and `pyright` to check. No test imports it, and it runs too.

A module, a loss, an optimiser, a metric, a callback and a schedule of one's own; training; evaluate; an equation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import bpcore as bp
from bpcore.expect import expect_features
from bpcore.functional.linear import linear, linear_backward
from bpcore.functional.losses import example_weights, weighted_mean
from bpcore.initializers import HeNormal, Zeros


class Product(bp.Module):
    """u = z W + b, with an optional mask of rows."""

    rows_independent = True
    further = ("mask",)

    def __init__(self, n: int, m: int) -> None:
        self.n = n
        self.m = m
        self.parameters = {
            "W": bp.Parameter((n, m), HeNormal()),
            "b": bp.Parameter((m,), Zeros(), decay=False),
        }

    def forward(
        self, theta: bp.Windows, z: bp.Array, mask: bp.Array | None = None, *, mode: bp.Mode
    ) -> tuple[bp.Array, tuple[bp.Array, bp.Array | None]]:
        expect_features(self, theta, z, self.n, theta.W, "n")
        u: bp.Array = linear(z, theta.W, theta.b)
        return u if mask is None else u * mask, (z, mask)

    def backward(
        self,
        theta: bp.Windows,
        saved: tuple[bp.Array, bp.Array | None],
        v: bp.Array,
        gradient: bp.Windows,
        need_dz: bool = True,
    ) -> bp.Array | tuple[bp.Array | None, None] | None:
        z, mask = saved
        dz = linear_backward(z, theta.W, v if mask is None else v * mask, gradient.W, gradient.b, need_dz)
        return dz if mask is None else (dz, None)


class Around(bp.Module):
    """u = tanh(M(z)): a container of one's own."""

    def __init__(self, body: bp.Module) -> None:
        self.body = body
        self.children = {"body": body}

    def forward(self, theta: bp.Windows, z: bp.Array, mode: bp.Mode) -> tuple[bp.Array, list[object]]:
        a, saved = self.children["body"].forward(theta["body"], z, mode=mode)
        u: bp.Array = bp.namespace(z).tanh(a)
        return u, [saved, u]

    def backward(
        self, theta: bp.Windows, saved: list[object], v: bp.Array, gradient: bp.Windows, need_dz: bool = True
    ) -> bp.Array | None:
        u = saved.pop()
        assert isinstance(u, type(v))
        v = v * (1 - u * u)
        dz: bp.Array | None = self.children["body"].backward(theta[0], saved.pop(), v, gradient["body"], need_dz)
        return dz


class Quartic(bp.Loss):
    """ℓ = ¼ (z - y)⁴, one output an example."""

    def forward(
        self, theta: bp.Windows, z: bp.Array, y: bp.Array, weights: bp.Array | None = None, *, mode: bp.Mode
    ) -> tuple[bp.Array, tuple[bp.Array, bp.Array, bp.Array | None]]:
        self.expect(theta, z, y, weights)
        J: bp.Array = weighted_mean((z - y) ** 4 / 4, weights)
        return J, (z, y, weights)

    def backward(
        self,
        theta: bp.Windows,
        saved: tuple[bp.Array, bp.Array, bp.Array | None],
        v: bp.Array,
        gradient: bp.Windows,
        need_dz: bool = True,
    ) -> tuple[bp.Array | None, ...]:
        z, y, weights = saved
        dz: bp.Array = (z - y) ** 3 * example_weights(v, weights, z.shape, z.ndim)
        return (dz, None) if weights is None else (dz, None, None)


@dataclass(frozen=True)
class SignDescent(bp.Optimizer):
    """θ moves by lr against the sign of a running mean of ∇J."""

    lr: float = 1e-3
    momentum: float = 0.9

    moments = ("m",)

    def update(self, theta: bp.Array, gradient: bp.Array, state: dict[str, bp.Array], step: int, lr: float, decayed: int) -> None:
        m = state["m"]
        m[...] = self.momentum * m + (1 - self.momentum) * gradient
        theta[...] = theta - lr * bp.namespace(theta).sign(m)


class Largest(bp.Metric):
    """The mean of the largest absolute error of each example."""

    name = "largest"

    def scores(self, t: bp.Array, y: bp.Array) -> bp.Array:
        self.expect(t.shape == y.shape, t, y)
        errors: bp.Array = bp.namespace(t).abs(t - y)
        return errors


class Stop(bp.Callback):
    """Stops after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step(self, trainer: bp.Run, J: bp.Array) -> None:
        if trainer.steps >= self.after:
            trainer.finished = f"{self.after} steps"

    def on_epoch(self, trainer: bp.Run, record: dict[str, float]) -> None:
        print(record["training_loss"])


class Inverse(bp.schedules.Schedule):
    """1 / (1 + step)."""

    def __call__(self, step: int) -> float:
        return 1 / (1 + step)


def train() -> bp.History:
    """Training, saving and loading."""
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((64, 4)), generator.standard_normal(64)
    module = bp.Sequential(Product(4, 8), Around(bp.Linear(8, 8)), bp.Linear(8, 1), bp.Reshape(()))
    bp.check_module(module, (5, 4))
    net = bp.Network(module, dtype="float32", seed=1)
    trainer = bp.Trainer(
        net,
        Quartic(),
        SignDescent(),
        metrics=[Largest()],
        callbacks=[Stop(100)],
        schedule=Inverse(),
    )
    history = trainer.fit((X[:48], y[:48]), (X[48:], y[48:]), epochs=2, batch_size=16)
    J, gradient = net.value_and_gradient(bp.SquaredError(), X, y)
    net.theta[...] = net.theta - 0.1 * gradient
    print(float(J), net.theta.shape, net.parameters()["0.W"].dtype, bp.cost(module, (5, 4)).ratio)
    return history


def by_hand() -> bp.Array:
    """The notes' B, curried; and equations with their arguments by name."""
    layer = bp.Linear(4, 3)
    theta = bp.initialize(layer, seed=1, dtype="float64")
    z = np.ones((5, 4))
    u, B = bp.evaluate(layer, theta, z)
    dz, dtheta = B(u)
    t: bp.Array = linear(z=z, W=theta.W, b=theta.b)
    print(u.shape, dz.shape, dtheta.W.shape, bp.initialize(bp.MLP([4, 3, 2]))[0].b.dtype)
    return bp.functional.relu(t) + theta.b * 2.0


if __name__ == "__main__":
    print(train())
