"""Optimisers: hyperparameters, and an update of θ, which is arithmetic on vectors.

The state of an optimiser is vectors as long as the trained part of θ. `start` makes the state; `update` writes θ and the state in
place. The optimiser itself never changes.

The update of bpcore's own optimisers also takes a `factor`, by which it multiplies the gradient as it reads it: a step clips the
gradient this way. An optimiser with another update gets the gradient clipped.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from bpcore.arguments import bounded, flag, is_number, number, show, users_level
from bpcore.array import Array, namespace
from bpcore.functional import updates
from bpcore.library import is_array

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "Optimizer", "RMSProp"]

ORDER = ("theta", "gradient", "state", "step", "lr", "decayed")  # the arguments of an update
State = dict[str, Array]
Value = TypeVar("Value", float, tuple[float, float])


def hyperparameter(default: Value, low: float = 0.0, below: float = math.inf) -> Value:
    """A dataclass field for a number, or for a pair of numbers. Optimizer checks low <= number < below for each of them."""
    return field(default=default, metadata={"low": low, "below": below})


@dataclass(frozen=True)
class Optimizer:
    """An optimiser: hyperparameters as fields, and the update of θ. To write one, subclass this as a frozen dataclass.

    lr: the learning rate, >= 0, without the schedule's factor.

    A subclass defines `update`, and sets `moments`: the names of the vectors that it needs from one step to the next. A field
    with bounds is `name: float = hyperparameter(default, low=0.0, below=math.inf)`, with low <= value < below; a subclass that
    changes the default keeps the bounds. A field annotated `float` without bounds must be a finite number. The constructor checks
    the fields, and raises ValueError.

    >>> from dataclasses import dataclass
    >>> from bpcore.optimizers import hyperparameter
    >>> @dataclass(frozen=True)
    ... class HeavyBall(bp.Optimizer):
    ...     mu: float = hyperparameter(0.9, below=1.0)
    ...     moments = ("m",)
    ...     def update(self, theta, gradient, state, step, lr, decayed):
    ...         state["m"][...] = self.mu * state["m"] + gradient
    ...         theta[...] = theta - lr * state["m"]
    >>> trainer = bp.Trainer(bp.Network(bp.Linear(2, 1)), bp.SquaredError(), HeavyBall(lr=0.1))
    >>> J = [float(trainer.step([[1.0, 2.0]], [[3.0]])) for step in range(20)]
    >>> J[-1] < J[0]
    True
    """

    lr: float = field(metadata={"low": 0.0, "below": math.inf})
    moments: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = vars(cls).get("__init__")  # that of a dataclass comes later
        if own is not None and not {"super", "__setattr__"} & set(
            getattr(own, "__code__", compile("super", "", "eval")).co_names
        ):
            raise TypeError(
                f"{cls.__name__} has an __init__ of its own, and an optimiser is a frozen dataclass: declare hyperparameters as "
                "fields, such as lr: float = 0.1, under @dataclass(frozen=True)"
            )
        update = vars(cls).get("update")
        names = list(inspect.signature(update).parameters)[1:] if inspect.isfunction(update) else []
        if any(name in names and names.index(name) != i for i, name in enumerate(ORDER)):
            got = f"got update(self, {', '.join(names)}); order them so"
            raise TypeError(f"{cls.__name__} must define update(self, {', '.join(ORDER)}), {got}")
        if names and not fits(update):
            raise TypeError(f"{cls.__name__} must define update(self, {', '.join(ORDER)}), got update(self, {', '.join(names)})")
        if isinstance(vars(cls).get("moments"), str):
            raise TypeError(f"{cls.__name__}'s moments must be a tuple of names, got a text; write moments = ({cls.moments!r},)")

    def __post_init__(self) -> None:
        for declared in fields(self):
            name = declared.name
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))  # Python numbers: NumPy's would promote

    def _checked(self, name: str, value: Any) -> Any:
        """The value of a field as one or two Python numbers, or a ValueError."""
        declared = self._declared(name)
        if declared is None:
            own = type(self).__dataclass_fields__[name]
            if own.type in ("bool", bool):
                return flag(name, value)
            if own.type in ("float", float) or is_number(value):
                return number(name, value, "finite", math.isfinite)
            return value
        low, below = declared.metadata["low"], declared.metadata["below"]
        if not isinstance(declared.default, tuple):
            return bounded(name, value, low, below)
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{name} must be two numbers, got {show(value)}; e.g. {declared.default}")
        return tuple(bounded(f"{name}[{i}]", entry, low, below) for i, entry in enumerate(value))

    @classmethod
    def _declared(cls, name: str) -> Any:
        """The field `name` with bounds, from this class or from the nearest base that declares them; None if no class does."""
        declarations = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
        return next((declared for declared in declarations if declared is not None and "low" in declared.metadata), None)

    def start(self, theta: Array) -> State:
        """The state before the first step: zeros like theta, for each name in `moments`. theta: the trained part of θ, (n,)."""
        return {name: namespace(theta).zeros_like(theta) for name in self.moments}

    def update(self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int) -> None:
        """Take one step: write theta and the vectors in `state` in place.

        theta: the trained part of θ, (n,). gradient: ∇J(θ), (n,); do not write to it. state: name to vector (n,), first from
        `start`, then as the last step left them; write to them, and replace none. step: 1, 2, ... lr: the learning rate times the
        schedule's factor. decayed: weight decay applies to theta[:decayed] only.
        """
        raise TypeError(f"{type(self).__name__} must define update(self, theta, gradient, state, step, lr, decayed)")


def fits(update: Any) -> bool:
    """Whether a function can be called as `update` is."""
    try:
        inspect.signature(update).bind(None, *ORDER)
    except TypeError:
        return False
    return True


def started(optimizer: Optimizer, theta: Array) -> State:
    """The state before the first step. Raises an error unless it is vectors like theta, by name."""
    name, state = type(optimizer).__name__, optimizer.start(theta)
    if not isinstance(state, dict):
        raise TypeError(f"{name}.start must return a dictionary, got {show(state)}; e.g. {{'m': xp.zeros_like(theta)}}")
    for key, vector in state.items():
        if not is_array(vector) or vector.shape != theta.shape or vector.dtype != theta.dtype:
            wanted = f"of shape {tuple(theta.shape)} and dtype {theta.dtype}, as theta is"
            raise ValueError(f"{name}.start must return vectors {wanted}, got {show(vector)} for {key!r}; xp.zeros_like(theta)")
    return state


def first_update(optimizer: Optimizer, theta: Array, gradient: Array, state: State, lr: float, decayed: int) -> None:
    """A user's update in step 1: its mistakes are a TypeError, and a θ that stays as it was is a warning."""
    name, vectors, before = type(optimizer).__name__, dict(state), namespace(theta).asarray(theta, copy=True)
    try:
        optimizer.update(theta, gradient, state, 1, lr, decayed)
    except KeyError as error:
        missing = f"state[{error}], which is not among moments = {optimizer.moments}"
        raise TypeError(f"{name}.update takes {missing}; add it") from error
    except (AttributeError, TypeError) as error:
        what = "theta and gradient are vectors, and state is a dictionary of vectors by name"
        raise TypeError(f"{name}.update raised {type(error).__name__}: {error}; {what}") from error
    for key, vector in vectors.items():
        if state.get(key) is not vector:
            raise TypeError(f"{name}.update replaced state[{key!r}]; write in place: state[{key!r}][...] = ...")
    if len(state) > len(vectors):
        raise TypeError(f"{name}.update added {sorted(set(state) - set(vectors))} to the state; declare them in moments")
    xp = namespace(theta)
    if lr and xp.all(theta == before) and xp.any(gradient != 0):
        message = f"{name}.update left θ as it was in step 1; if that is a mistake, write in place: theta[...] = ..."
        warnings.warn(message, RuntimeWarning, stacklevel=users_level())


def has_own_update(optimizer: Optimizer) -> bool:
    """Whether the update is a user's: it takes no factor, and may need numbers on the host."""
    return type(optimizer).update.__module__ != Optimizer.__module__


def pieces(decay: float, decayed: int, gradient: Array, *vectors: Array | None) -> Iterator[tuple[Any, ...]]:
    """(decay, gradient, *vectors) of θ[:decayed], then (0, gradient, *vectors) of the rest; one piece if they do not differ."""
    if not decay or decayed in (0, gradient.shape[0]):
        yield (decay if decayed else 0.0, gradient, *vectors)
        return
    yield (decay, gradient[:decayed], *(None if x is None else x[:decayed] for x in vectors))
    yield (0.0, gradient[decayed:], *(None if x is None else x[decayed:] for x in vectors))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum μ: m = μ m + g; θ -= lr m, or θ -= lr (g + μ m) with nesterov=True.

    weight_decay: λ; g is ∇J + λ θ.

    Sutskever et al., 2013
    """

    lr: float = 0.01
    momentum: float = hyperparameter(0.0, below=1.0)
    nesterov: bool = False
    weight_decay: float = hyperparameter(0.0)
    moments = ("m",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs momentum > 0; e.g. momentum=0.9")

    def start(self, theta: Array) -> State:
        """Zeros for m; nothing without momentum."""
        return super().start(theta) if self.momentum else {}

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        for decay, g, x, m in pieces(self.weight_decay, decayed, gradient, theta, state.get("m")):
            updates.sgd(g, factor, lr, self.momentum, self.nesterov, decay, x, m)


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v = ρ v + (1 - ρ) g²; θ -= lr g / (√v + ε).

    weight_decay: λ; g is ∇J + λ θ.

    Tieleman and Hinton, 2012
    """

    lr: float = 0.01
    rho: float = hyperparameter(0.99, below=1.0)
    eps: float = hyperparameter(1e-8)
    weight_decay: float = hyperparameter(0.0)
    moments = ("v",)

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        for decay, g, x, v in pieces(self.weight_decay, decayed, gradient, theta, state["v"]):
            updates.rmsprop(g, factor, lr, self.rho, self.eps, decay, x, v)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """v += g²; θ -= lr g / (√v + ε).

    weight_decay: λ; g is ∇J + λ θ.

    Duchi et al., 2011
    """

    lr: float = 0.01
    eps: float = hyperparameter(1e-10)
    weight_decay: float = hyperparameter(0.0)
    moments = ("v",)

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        for decay, g, x, v in pieces(self.weight_decay, decayed, gradient, theta, state["v"]):
            updates.adagrad(g, factor, lr, self.eps, decay, x, v)


@dataclass(frozen=True)
class Adam(Optimizer):
    """m = β₁ m + (1 - β₁) g; v = β₂ v + (1 - β₂) g²; θ -= lr m̂ / (√v̂ + ε), where m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ).

    betas: (β₁, β₂). weight_decay: λ; g is ∇J + λ θ.

    Kingma and Ba, 2015
    """

    lr: float = 1e-3
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), below=1.0)
    eps: float = hyperparameter(1e-8)
    weight_decay: float = hyperparameter(0.0)
    moments = ("m", "v")
    decoupled = False  # not a field; AdamW sets it

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        beta1, beta2 = self.betas
        for decay, g, x, m, v in pieces(self.weight_decay, decayed, gradient, theta, state["m"], state["v"]):
            updates.adam(g, factor, step, lr, beta1, beta2, self.eps, decay, self.decoupled, x, m, v)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: g is ∇J, and θ -= lr λ θ before Adam's step. weight_decay: λ.

    Loshchilov and Hutter, 2019
    """

    weight_decay: float = 0.01
    decoupled = True


@dataclass(frozen=True)
class NAdam(Optimizer):
    """Adam with Nesterov's momentum, whose factor rises to β₁: μ_t = β₁ (1 - ½ 0.96^(t ψ)). See `functional.updates.nadam`.

    betas: (β₁, β₂). weight_decay: λ; g is ∇J + λ θ. momentum_decay: ψ.

    Dozat, 2016
    """

    lr: float = 2e-3
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), below=1.0)
    eps: float = hyperparameter(1e-8)
    weight_decay: float = hyperparameter(0.0)
    momentum_decay: float = hyperparameter(4e-3)
    moments = ("m", "v", "c")

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        beta1, beta2 = self.betas
        vectors = gradient, theta, *(state[name] for name in self.moments)
        for decay, g, *written in pieces(self.weight_decay, decayed, *vectors):
            updates.nadam(g, factor, step, lr, beta1, beta2, self.eps, decay, self.momentum_decay, *written)


@dataclass(frozen=True)
class Lion(Optimizer):
    """θ -= lr (sign(β₁ m + (1 - β₁) g) + λ θ); m = β₂ m + (1 - β₂) g.

    betas: (β₁, β₂). weight_decay: λ.

    Chen et al., 2023
    """

    lr: float = 1e-4
    betas: tuple[float, float] = hyperparameter((0.9, 0.99), below=1.0)
    weight_decay: float = hyperparameter(0.0)
    moments = ("m",)

    def update(
        self, theta: Array, gradient: Array, state: State, step: int, lr: float, decayed: int, factor: float | Array = 1.0
    ) -> None:
        beta1, beta2 = self.betas
        for decay, g, x, m in pieces(self.weight_decay, decayed, gradient, theta, state["m"]):
            updates.lion(g, factor, lr, beta1, beta2, decay, x, m)
