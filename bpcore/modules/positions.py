"""Positions of tokens in sequences (n, tokens, features): learned, sinusoidal, rotary."""

from __future__ import annotations

from math import prod
from typing import Any

from bpcore.arguments import show, whole
from bpcore.array import Array, namespace
from bpcore.expect import expect_features, expect_floats
from bpcore.functional.arithmetic import add, sum_of
from bpcore.functional.positions import add_sinusoids, rotate
from bpcore.initializers import Normal
from bpcore.module import Initializer, Mode, Module, Parameter, Windows

__all__ = ["PositionalEmbedding", "RotaryPositions", "SinusoidalPositions"]


class PositionalEmbedding(Module):
    """u = z + W[:tokens of z], a learned row for each position. z (n, tokens, d), with at most `tokens` tokens.

    Parameter: W (tokens, d), by default normal with standard deviation 0.02.
    """

    rows_independent = True

    def __init__(self, tokens: int, d: int, initializer: Initializer | None = None):
        self.tokens = whole("tokens", tokens, of=self)
        self.d = whole("d", d, of=self)
        self.initializer = initializer
        self.parameters = {"W": Parameter((self.tokens, self.d), Normal(0.02) if initializer is None else initializer)}

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[int, ...]]:
        z = expect_features(self, theta, z, self.d, theta.W, "d")
        if z.ndim < 2 or z.shape[-2] > self.tokens:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(
                f"{self.name(theta)} has {self.tokens} positions, got {got}; make tokens larger or cut the sequences"
            )
        return add(z, theta.W[: z.shape[-2], :]), z.shape

    def backward(self, theta: Windows, saved: tuple[int, ...], v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        tokens = saved[-2]
        gradient.W[:tokens, :] = sum_of(namespace(v).reshape(v, (prod(saved[:-2]), tokens, self.d)), 0)
        gradient.W[tokens:, :] = 0.0
        return v


class FixedPositions(Module):
    """Base of positions without parameters: z (..., tokens, d), d even."""

    rows_independent = True

    def __init__(self, d: int):
        self.d = even("d", d, of=self)

    def expect_tokens(self, theta: Windows, z: Array) -> Array:
        """z, or an error unless it is (..., tokens, d) of floats."""
        if z.ndim < 2 or z.shape[-1] != self.d:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected (..., tokens, {self.d}), got {got}; pass d={z.shape[-1]} or reshape")
        return expect_floats(self, theta, z)


class SinusoidalPositions(FixedPositions):
    """u = z + sines and cosines of the position, with d / 2 wavelengths; no parameters, d even.

    Vaswani et al., 2017
    """

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, None]:
        return add_sinusoids(self.expect_tokens(theta, z)), None

    def backward(self, theta: Windows, saved: None, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return v


class RotaryPositions(FixedPositions):
    """u = z with each pair of features rotated by an angle that grows with the position; d even.

    Su et al., 2021
    """

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, None]:
        return rotate(self.expect_tokens(theta, z), 1.0), None

    def backward(self, theta: Windows, saved: None, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return rotate(v, -1.0)


def even(name: str, value: Any, of: Module) -> int:
    """value as an int, or a ValueError unless it is an even whole number from 2 up. of: the module whose argument it is."""
    n = whole(name, value, of=of)
    if n % 2:
        raise ValueError(f"{type(of).__name__}'s {name} must be even, got {show(value)}")
    return n
