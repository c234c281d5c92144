"""Activation modules σ, without parameters, for inputs of any shape.        (7.69)

What each saves for the backward pass is u or z, whichever its derivative is written in.
"""

from __future__ import annotations

import math

from bpcore.functional import activations as f
from bpcore.module import Module


class Identity(Module):
    """u = z."""

    rows_independent = True

    def forward(self, theta, z, mode):
        return z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


class ReLU(Module):
    """u = max(z, 0). The derivative at 0 is taken as 0."""

    rows_independent = True

    def forward(self, theta, z, mode):
        u = f.relu(self.expect_floats(theta, z))
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.relu_backward(saved, v)


class LeakyReLU(Module):
    """u = z where z > 0, slope · z elsewhere; 0 <= slope < 1."""

    rows_independent = True

    def __init__(self, slope: float = 0.01):
        self.slope = self.number("slope", slope, "0 <= slope < 1", lambda slope: 0 <= slope < 1)

    def forward(self, theta, z, mode):
        u = f.leaky_relu(self.expect_floats(theta, z), self.slope)
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.leaky_relu_backward(saved, self.slope, v)


class ELU(Module):
    """u = z where z > 0, α (eᶻ - 1) elsewhere; α > 0.        Clevert et al., 2016"""

    rows_independent = True

    def __init__(self, alpha: float = 1.0):
        self.alpha = self.number("alpha", alpha, "alpha > 0 and finite", lambda alpha: 0 < alpha < math.inf)

    def forward(self, theta, z, mode):
        u = f.elu(self.expect_floats(theta, z), self.alpha)
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.elu_backward(saved, self.alpha, v)


class GELU(Module):
    """u = z Φ(z), Φ the normal distribution function; approximate="tanh": its approximation.        Hendrycks and Gimpel, 2016"""

    rows_independent = True

    def __init__(self, approximate: str = "none"):
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU's approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, theta, z, mode):
        self.expect_floats(theta, z)
        return (f.gelu(z) if self.approximate == "none" else f.gelu_tanh(z)), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.gelu_backward(saved, v) if self.approximate == "none" else f.gelu_tanh_backward(saved, v)


class SiLU(Module):
    """u = z / (1 + e⁻ᶻ).        Elfwing et al., 2018"""

    rows_independent = True

    def forward(self, theta, z, mode):
        return f.silu(self.expect_floats(theta, z)), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.silu_backward(saved, v)


class Sigmoid(Module):
    """u = 1 / (1 + e⁻ᶻ)."""

    rows_independent = True

    def forward(self, theta, z, mode):
        u = f.sigmoid(self.expect_floats(theta, z))
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.sigmoid_backward(saved, v)


class Tanh(Module):
    """u = tanh(z)."""

    rows_independent = True

    def forward(self, theta, z, mode):
        u = f.tanh(self.expect_floats(theta, z))
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.tanh_backward(saved, v)


class Softplus(Module):
    """u = log(1 + eᶻ)."""

    rows_independent = True

    def forward(self, theta, z, mode):
        return f.softplus(self.expect_floats(theta, z)), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.softplus_backward(saved, v)


class AlongAxis(Module):
    """What softmax and its logarithm share: the axis, and whether rows stay independent."""

    def __init__(self, axis: int = -1):
        self.axis = self.axis_number(axis)
        self.rows_independent = self.axis == -1

    def expect(self, theta, z):
        self.expect_axis(theta, z, self.axis)
        return self.expect_floats(theta, z)


class Softmax(AlongAxis):
    """u = eᶻ / Σ eᶻ along axis. Its backward function is the whole Jacobian's; for training use CrossEntropy on logits."""

    def forward(self, theta, z, mode):
        u = f.softmax(self.expect(theta, z), self.axis)
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.softmax_backward(saved, self.axis, v)


class LogSoftmax(AlongAxis):
    """u = z - log Σ eᶻ along axis."""

    def forward(self, theta, z, mode):
        u = f.log_softmax(self.expect(theta, z), self.axis)
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.log_softmax_backward(saved, self.axis, v)
