"""The one table of optimisers, a row each: all that tests know of an optimiser comes from its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import bpcore as bp
from bpcore import optimizers

Options = dict[str, Any]
Vectors = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Row:
    """An optimiser, a learning rate, variants of its other hyperparameters (the fullest last), and what it is held against.

    torch: its name in torch.optim; renamed: our name -> PyTorch's of a hyperparameter. reference: where PyTorch does not have it,
    (optimizer, theta, gradients, decay) -> θ and the state after all gradients; decay: λ for each entry of θ.
    lasting: the vectors of the state that gradients of zero do not bring to zero. by_definition: whether its definition gives the
    same bits for numbers of the device.
    """

    make: type[bp.Optimizer]
    lr: float
    variants: tuple[Options, ...]
    torch: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    reference: Callable[[Any, np.ndarray, np.ndarray, np.ndarray], Vectors] | None = None
    lasting: tuple[str, ...] = ()
    by_definition: bool = False


def lion(optimizer: bp.Lion, theta: np.ndarray, gradients: np.ndarray, decay: np.ndarray) -> Vectors:
    """Algorithm 2 of Chen et al., 2023, written as it stands there."""
    (beta1, beta2), m = optimizer.betas, np.zeros_like(theta)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        theta = theta - optimizer.lr * (np.sign(c) + decay * theta)
        m = beta2 * m + (1 - beta2) * g
    return {"theta": theta, "m": m}


ROWS = (
    Row(
        bp.SGD,
        0.1,
        (
            {},
            {"weight_decay": 0.1},
            {"momentum": 0.9},
            {"momentum": 0.9, "weight_decay": 0.1},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        ),
        torch="SGD",
    ),
    Row(bp.RMSProp, 0.01, ({"rho": 0.9}, {"eps": 1e-3, "weight_decay": 0.1}), torch="RMSprop", renamed={"rho": "alpha"}),
    Row(bp.Adagrad, 0.1, ({}, {"eps": 1e-3, "weight_decay": 0.1}), torch="Adagrad", lasting=("v",)),
    Row(bp.Adam, 0.01, ({}, {"betas": (0.5, 0.9), "eps": 1e-2}, {"weight_decay": 0.1}), torch="Adam"),
    Row(bp.AdamW, 0.01, ({}, {"weight_decay": 0.3}), torch="AdamW"),
    Row(
        bp.NAdam,
        0.01,
        ({}, {"betas": (0.5, 0.9), "momentum_decay": 0.1}, {"eps": 1e-3, "weight_decay": 0.1}),
        torch="NAdam",
        lasting=("c",),
        by_definition=True,
    ),
    Row(bp.Lion, 0.01, ({}, {"betas": (0.8, 0.95), "weight_decay": 0.3}), reference=lion),
)


@dataclass(frozen=True, eq=False)
class Variant:
    """One variant of a row."""

    row: Row
    options: Options

    @property
    def optimizer(self) -> bp.Optimizer:
        return self.row.make(self.row.lr, **self.options)

    def oracle(self, torch: Any, groups: list[dict[str, Any]]) -> Any:
        """PyTorch's optimiser with the same hyperparameters, of these groups of parameters."""
        assert self.row.torch is not None
        named = {self.row.renamed.get(name, name): value for name, value in self.options.items()}
        return getattr(torch.optim, self.row.torch)(groups, lr=self.row.lr, **named)


VARIANTS = {", ".join((row.make.__name__, *options)): Variant(row, options) for row in ROWS for options in row.variants}
FULLEST = {row.make.__name__: row.make(row.lr, **row.variants[-1]) for row in ROWS}


def primitive_call(
    optimizer: bp.Optimizer, g: Any, theta: Any, state: dict[str, Any], step: Any = 1, lr: Any = None, factor: Any = 1.0
) -> tuple[str, tuple]:
    """(name, arguments) of the primitive that `optimizer.update` calls, which is not run. Weight decay is for all of θ."""
    calls: list[tuple[str, tuple]] = []

    class Updates:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args: calls.append((name, args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "updates", Updates())
        optimizer.update(theta, g, state, step, optimizer.lr if lr is None else lr, g.shape[0], factor)
    (call,) = calls
    return call


def update_of(optimizer: bp.Optimizer) -> str:
    """The name of the primitive that updates θ."""
    vector = np.ones(1)
    return primitive_call(optimizer, vector, vector, optimizer.start(vector))[0]


UPDATES = {name: update_of(variant.optimizer) for name, variant in VARIANTS.items()}  # the primitive of each variant


def rows_of(primitive: str) -> Callable[[Any], list[tuple]]:
    """Arguments of an update for each variant that calls it, at several steps, sizes of the gradient and factors of it.

    They are a function of what draws: `d.vector(scale)` for g, θ and first moments, `d.squares()` for the rest of the state.
    """
    variants = [VARIANTS[name].optimizer for name, called in UPDATES.items() if called == primitive]

    def draw(d: Any) -> list[tuple]:
        rows = []
        for optimizer in variants:
            for step, scale, factor in ((1, 1.0, 1.0), (7, 1e-3, 0.37), (16, 1.0, 0.0)):
                names = optimizer.start(np.ones(1))
                state = {name: d.vector() if name == "m" else d.squares() for name in names}
                rows.append(primitive_call(optimizer, d.vector(scale), d.vector(), state, step, factor=factor)[1])
        return rows

    return draw
