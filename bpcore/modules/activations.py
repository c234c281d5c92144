"""Activation modules σ, without parameters, for inputs of any shape.

Each saves u or z for the backward pass: the one in which its derivative is written.

(7.69)
"""

from __future__ import annotations

import math

from bpcore import arguments
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.expect import expect_floats
from bpcore.functional import activations as f
from bpcore.module import Mode, Module, Windows

__all__ = [
    "ELU",
    "GELU",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class Elementwise(Module):
    """Base of the activations that map each entry by itself. MLP takes those in `__all__` by their names in snake_case."""

    rows_independent = True


class ReLU(Elementwise):
    """u = max(z, 0). The derivative at 0 is taken as 0."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.relu(expect_floats(self, theta, z))
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.relu_backward(saved, v)


class LeakyReLU(Elementwise):
    """u = z where z > 0, slope · z elsewhere; 0 <= slope < 1."""

    def __init__(self, slope: float = 0.01):
        self.slope = arguments.number("slope", slope, "0 <= slope < 1", lambda slope: 0 <= slope < 1, of=self)

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.leaky_relu(expect_floats(self, theta, z), self.slope)
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.leaky_relu_backward(saved, v, self.slope)


class ELU(Elementwise):
    """u = z where z > 0, α (eᶻ - 1) elsewhere; α > 0.

    Clevert et al., 2016
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = arguments.number("alpha", alpha, "alpha > 0 and finite", lambda alpha: 0 < alpha < math.inf, of=self)

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.elu(expect_floats(self, theta, z), self.alpha)
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.elu_backward(saved, v, self.alpha)


class GELU(Elementwise):
    """u = z Φ(z), Φ the standard normal distribution function; approximate="tanh": its approximation by tanh.

    Hendrycks and Gimpel, 2016
    """

    def __init__(self, approximate: str = "none"):
        if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
            raise ValueError(f"GELU's approximate must be 'none' or 'tanh', got {show(approximate)}")
        self.approximate = approximate

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_floats(self, theta, z)
        return (f.gelu(z) if self.approximate == "none" else f.gelu_tanh(z)), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.gelu_backward(saved, v) if self.approximate == "none" else f.gelu_tanh_backward(saved, v)


class SiLU(Elementwise):
    """u = z / (1 + e⁻ᶻ).

    Elfwing et al., 2018
    """

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_floats(self, theta, z)
        return f.silu(z), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.silu_backward(saved, v)


class Mish(Elementwise):
    """u = z tanh(log(1 + eᶻ)).

    Misra, 2020
    """

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_floats(self, theta, z)
        return f.mish(z), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.mish_backward(saved, v)


class Sigmoid(Elementwise):
    """u = 1 / (1 + e⁻ᶻ)."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.sigmoid(expect_floats(self, theta, z))
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.sigmoid_backward(saved, v)


class Tanh(Elementwise):
    """u = tanh(z)."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.tanh(expect_floats(self, theta, z))
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.tanh_backward(saved, v)


class Softplus(Elementwise):
    """u = log(1 + eᶻ)."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_floats(self, theta, z)
        return f.softplus(z), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.softplus_backward(saved, v)


class Identity(Elementwise):
    """u = z."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, None]:
        return z, None

    def backward(self, theta: Windows, saved: None, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return v
