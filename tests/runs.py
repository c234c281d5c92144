"""Small runs that the tests of training share: data, a trainer, and all that it has become, as host values to compare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import bpcore as bp

ROWS, FEATURES, CLASSES = 40, 5, 3


def examples(n: int = ROWS, seed: int = 0, weights: bool = False) -> tuple[np.ndarray, ...]:
    """(X, y) or (X, y, weights): floats and class indices, with something to learn that no seed changes."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, FEATURES))
    y = np.argmax(X @ np.random.default_rng(99).standard_normal((FEATURES, CLASSES)), axis=1)
    return (X, y, generator.uniform(0, 2, n)) if weights else (X, y)


def trainer(
    module: bp.Module | None = None,
    *,
    backend: Any = "numpy",
    dtype: str = "float64",
    compute_dtype: str | None = None,
    dropout: float = 0.0,
    loss: bp.Loss | None = None,
    optimizer: bp.Optimizer | None = None,
    **options: Any,
) -> bp.Trainer:
    """A trainer of a small MLP on a backend, with Adam unless told otherwise."""
    module = module or bp.MLP([FEATURES, 8, CLASSES], dropout=dropout)
    net = bp.Network(module, backend=backend, dtype=dtype, seed=1, compute_dtype=compute_dtype)
    return bp.Trainer(net, loss or bp.CrossEntropy(), optimizer or bp.Adam(lr=0.01), **options)


def records(trainer: bp.Trainer) -> list[dict[str, Any]]:
    """The history without the time that it took."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in trainer.history]


def become(trainer: bp.Trainer) -> dict[str, Any]:
    """All that the next step depends on, and the history, as host values."""
    to_host = trainer.network.backend.to_host
    schedule = trainer.schedule
    return {
        "theta": to_host(trainer.network.theta).copy(),
        **{f"moment {name}": to_host(vector).copy() for name, vector in trainer.moments.items()},
        "counters": (trainer.steps, trainer.epoch, trainer.position, trainer.seed, trainer.finished),
        "position of": trainer.position_of if trainer.position else None,
        "scaling": None if trainer.scaling is None else to_host(trainer.scaling.state).copy(),
        "schedule": schedule.state() if isinstance(schedule, bp.schedules.Schedule) else None,
        "callbacks": [callback.state(trainer) for callback in trainer.callbacks],
        "history": records(trainer),
    }


def assert_same(got: Any, expected: Any, rtol: float = 0.0, where: str = "") -> None:
    """Nested dicts, lists and arrays are equal: bit for bit, or to rtol where one is given."""
    assert type(got) is type(expected), f"{where}: {got!r} and {expected!r}"
    if isinstance(got, dict):
        assert list(got) == list(expected), where
        for name in got:
            assert_same(got[name], expected[name], rtol, f"{where} {name}")
    elif isinstance(got, (list, tuple)):
        assert len(got) == len(expected), f"{where}: {got!r} and {expected!r}"
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same(a, b, rtol, f"{where} {i}")
    elif isinstance(got, np.ndarray):
        assert got.dtype == expected.dtype, where
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol, err_msg=where)
    elif isinstance(got, float) and rtol:
        np.testing.assert_allclose(got, expected, rtol=rtol, err_msg=where)
    else:
        assert got == expected or (got != got and expected != expected), f"{where}: {got!r} and {expected!r}"


def assert_close_runs(got: dict[str, Any], expected: dict[str, Any], rtol: float) -> None:
    """Two results of `become` are equal to rtol, but for the gap of each epoch: it is of two numbers nearly equal."""
    pair = []
    for run in (got, expected):
        pair.append({**run, "history": [{k: v for k, v in record.items() if k != "gap"} for record in run["history"]]})
    assert_same(*pair, rtol)


@contextlib.contextmanager
def unchanged(trainer: bp.Trainer) -> Iterator[None]:
    """What happens within leaves θ, the optimiser's vectors, the counters and the history as they were."""
    before = become(trainer)
    yield
    assert_same(become(trainer), before)


class Call(bp.Callback):
    """Calls `what(trainer, J)` after each step, once the other callbacks were told."""

    last = True

    def __init__(self, what: Any):
        self.what = what

    def on_step(self, trainer: Any, J: Any) -> None:
        self.what(trainer, J)


class Shift(bp.Module):
    """u = z + b, b a number that is 0 to begin with."""

    def __init__(self):
        self.parameters = {"b": bp.Parameter((1,), bp.initializers.Zeros())}

    def forward(self, theta, z, mode):
        return z + theta.b, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.b[...] = bp.backend_of(v).xp.sum(v)
        return v if need_dz else None
