"""Initial values of parameters, drawn on the host in float64: `initializer(generator, shape)`.

For a weight of shape (..., n_in, n_out), fan_in is n_in and fan_out n_out, each times the sizes of the leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite, prod, sqrt

import numpy as np

from bpcore.arguments import number

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "LeCunNormal",
    "Normal",
    "Orthogonal",
    "Zeros",
]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of this shape; for a vector, both are its length."""
    if len(shape) < 2:
        return max(prod(shape), 1), max(prod(shape), 1)
    field = prod(shape[:-2])
    return max(field * shape[-2], 1), max(field * shape[-1], 1)


class Numbers:
    """Base of the initialisers whose fields are numbers. Raises ValueError unless they are finite."""

    def __post_init__(self) -> None:
        for declared in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = number(declared.name, getattr(self, declared.name), "finite", isfinite, of=self)
            object.__setattr__(self, declared.name, value)


@dataclass(frozen=True)
class HeNormal:
    """Normal with variance 2 / fan_in.

    He et al., 2015
    """

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape) * sqrt(2 / fans(shape)[0])


@dataclass(frozen=True)
class HeUniform:
    """Uniform with variance 2 / fan_in.

    He et al., 2015
    """

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        bound = sqrt(6 / fans(shape)[0])
        return generator.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class GlorotNormal:
    """Normal with variance 2 / (fan_in + fan_out).

    Glorot and Bengio, 2010
    """

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape) * sqrt(2 / sum(fans(shape)))


@dataclass(frozen=True)
class GlorotUniform:
    """Uniform with variance 2 / (fan_in + fan_out).

    Glorot and Bengio, 2010
    """

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        bound = sqrt(6 / sum(fans(shape)))
        return generator.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class LeCunNormal:
    """Normal with variance 1 / fan_in.

    LeCun et al., 1998
    """

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape) / sqrt(fans(shape)[0])


@dataclass(frozen=True)
class Normal(Numbers):
    """Normal with standard deviation `scale`."""

    scale: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape) * self.scale


@dataclass(frozen=True)
class Orthogonal(Numbers):
    """Orthonormal rows or columns (whichever are fewer) times `gain`, for a weight of at least two axes.

    Saxe et al., 2014
    """

    gain: float = 1.0

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) < 2:
            raise ValueError(f"Orthogonal expected a weight of at least two axes, got shape {shape}; choose another initializer")
        n, m = prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(generator.standard_normal((max(n, m), min(n, m))))
        q = q * np.sign(np.diagonal(r))  # makes the distribution uniform
        drawn: np.ndarray = self.gain * (q if n >= m else q.T).reshape(shape)
        return drawn


@dataclass(frozen=True)
class Constant(Numbers):
    """Every entry is `value`."""

    value: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, float(self.value))


@dataclass(frozen=True)
class Zeros:
    """Every entry is 0."""

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)
