"""Optimisers: hyperparameters, and an update that is arithmetic on vectors. Their state is vectors of θ's trained length.

`start` gives the state, `update` writes θ and the state in place; the object itself never changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from bpcore.backend import namespace
from bpcore.functional import updates
from bpcore.module import Array

State = dict[str, Array]


def at_least(name: str, value: Any, low: float, below: float = math.inf) -> None:
    """A ValueError unless low <= value < below."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) < below:
        bound = f"{low} <= {name}" if below == math.inf else f"{low} <= {name} < {below}"
        raise ValueError(f"{name} must be a finite number with {bound}, got {value!r}")


@dataclass(frozen=True)
class Optimizer:
    """What optimisers share. lr: the learning rate, which a schedule multiplies."""

    lr: float

    def __post_init__(self) -> None:
        for name, low, below in (
            ("lr", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("eps", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("rho", 0.0, 1.0),
        ):
            if hasattr(self, name):
                at_least(name, getattr(self, name), low, below)
                object.__setattr__(self, name, float(getattr(self, name)))  # a NumPy scalar would promote
        betas = getattr(self, "betas", (0.0, 0.0))
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}; e.g. (0.9, 0.999)")
        for beta in betas:
            at_least("betas", beta, 0.0, 1.0)
        if hasattr(self, "betas"):
            object.__setattr__(self, "betas", tuple(map(float, betas)))

    @property
    def moments(self) -> tuple[str, ...]:
        """The names of the vectors of the state."""
        return ()

    def start(self, theta: Array) -> State:
        """The state before the first step: zeros, shaped like the trained part of θ."""
        return {name: namespace(theta).zeros_like(theta) for name in self.moments}

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        """Step number 1, 2, ...: write θ's trained part and the state. Weight decay applies to θ[:decayed] only."""
        raise TypeError(f"{type(self).__name__} must define update(self, theta, gradient, state, step, lr, decayed)")


def pieces(decay: float, decayed: int, *vectors: Array | None) -> Iterator[tuple[Any, ...]]:
    """(decay, *vectors) where it applies and (0, *vectors) where not: slices, or the whole where there is no difference."""
    length = vectors[0].shape[0]  # type: ignore[union-attr]  # the gradient comes first
    if not decay or decayed in (0, length):
        yield (decay if decayed else 0.0, *vectors)
        return
    yield (decay, *(None if x is None else x[:decayed] for x in vectors))
    yield (0.0, *(None if x is None else x[decayed:] for x in vectors))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with momentum μ, Nesterov's if asked: m = μ m + g; θ -= lr m, or lr (g + μ m).

    weight_decay: λ of g + λ θ.        Sutskever et al., 2013
    """

    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs momentum > 0; e.g. momentum=0.9")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m",) if self.momentum else ()

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        for decay, g, x, m in pieces(self.weight_decay, decayed, gradient, theta, state.get("m")):
            updates.sgd(g, lr, self.momentum, self.nesterov, decay, x, m)


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v = ρ v + (1 - ρ) g²; θ -= lr g / (√v + ε). weight_decay: λ of g + λ θ.        Tieleman and Hinton, 2012"""

    lr: float = 0.01
    rho: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        return ("v",)

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        for decay, g, x, v in pieces(self.weight_decay, decayed, gradient, theta, state["v"]):
            updates.rmsprop(g, lr, self.rho, self.eps, decay, x, v)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """v += g²; θ -= lr g / (√v + ε). weight_decay: λ of g + λ θ.        Duchi et al., 2011"""

    lr: float = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        return ("v",)

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        for decay, g, x, v in pieces(self.weight_decay, decayed, gradient, theta, state["v"]):
            updates.adagrad(g, lr, self.eps, decay, x, v)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, with betas (β₁, β₂). weight_decay: λ of g + λ θ.        Kingma and Ba, 2015"""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled = False  # not a field: AdamW's difference

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m", "v")

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        beta1, beta2 = self.betas
        for decay, g, x, m, v in pieces(self.weight_decay, decayed, gradient, theta, state["m"], state["v"]):
            updates.adam(g, step, lr, beta1, beta2, self.eps, decay, self.decoupled, x, m, v)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: θ -= lr λ θ beside Adam's step.        Loshchilov and Hutter, 2019"""

    weight_decay: float = 0.01
    decoupled = True


@dataclass(frozen=True)
class Lion(Optimizer):
    """θ -= lr (sign(β₁ m + (1 - β₁) g) + λ θ); m = β₂ m + (1 - β₂) g. weight_decay is λ.        Chen et al., 2023"""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m",)

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        beta1, beta2 = self.betas
        for decay, g, x, m in pieces(self.weight_decay, decayed, gradient, theta, state["m"]):
            updates.lion(g, lr, beta1, beta2, decay, x, m)
