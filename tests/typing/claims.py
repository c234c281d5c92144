"""What type checkers must say of code that uses bpcore: the types of what it gives, and the mistakes that they must refuse.

`nox -s types` holds this file to mypy --strict and to pyright. An ignore is a claim too: both complain of one that hides nothing.
Nothing here is run.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import bpcore as bp
from bpcore import functional
from bpcore.training.step import Outcome, Step


def windows(theta: bp.Windows) -> None:
    """A parameter is an array, at any depth."""
    assert_type(theta.W, bp.Array)
    assert_type(theta[0].W, bp.Array)
    assert_type(theta.path, str)


def equations(z: bp.Array, W: bp.Array, b: bp.Array) -> bp.Array:
    """Equations by position and by name."""
    u = functional.linear(z, W, b)
    assert_type(u, bp.Array)
    assert_type(functional.linear(z=z, W=W, b=None), bp.Array)
    assert_type(functional.linear_backward(z, W, u, W, b, need_dz=True), bp.Array | None)
    assert_type(functional.softmax(u, axis=-1), bp.Array)
    return functional.relu_backward(u, v=u)


def arrays_of_numpy(a: np.ndarray, b: npt.NDArray[np.float32], c: npt.NDArray[np.int64], d: npt.NDArray[Any]) -> bp.Array:
    """NumPy's arrays are arrays; pyright must not take minutes to see it."""
    functional.relu(np.ones((5, 4)))
    return functional.relu(a) + functional.relu(b) * functional.relu(c) - 2.0 * functional.relu(d)


def network(X: np.ndarray, y: np.ndarray) -> float:
    """Training, by a trainer and by a loop of one's own."""
    net = bp.Network(bp.MLP([3, 4, 2]), backend="numpy")
    assert_type(net.theta, bp.Array)
    assert_type(net.parameters()["0.W"], bp.Array)
    trainer = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(), metrics=["accuracy"], callbacks=[bp.EarlyStopping()])
    assert_type(trainer.step(X, y), bp.Array)
    assert_type(trainer.fit((X, y), epochs=1), bp.History)
    assert_type(trainer.evaluate((X, y)), dict[str, float])
    assert_type(trainer.steps, int)
    assert_type(trainer.lr, float)
    step = Step(net, bp.CrossEntropy(), bp.SGD())
    batch, labels = step.place(X, y)
    assert_type(step(batch, labels, number=0, lr=1e-3), Outcome)
    J, gradient = net.value_and_gradient(bp.CrossEntropy(), X, y)
    assert_type(gradient, bp.Array)
    return float(J)


def by_hand(z: np.ndarray) -> bp.Windows:
    """The notes' B."""
    layer = bp.Linear(3, 2)
    _, B = bp.evaluate(layer, bp.initialize(layer), z)
    _, dtheta = B(z)
    return dtheta


def mistakes(z: bp.Array, theta: bp.Windows) -> None:
    """What must be refused."""
    functional.linear(z, theta.W)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    functional.linear(z, theta.W, bias=theta.b)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    functional.softmax(z, "last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bp.Linear("3", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bp.Network(bp.Linear)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bp.Relu()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
