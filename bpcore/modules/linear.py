"""The module MM, and a parameter as an operand."""

from __future__ import annotations

from typing import Any

from bpcore.functional.linear import linear, linear_backward, linear_relu, linear_relu_backward
from bpcore.initializers import HeNormal, Zeros
from bpcore.module import Module, Parameter


class Linear(Module):
    """MM: u = z W + b over the last axis.        section 7.4.3, rows as in 7.5

    z (..., n_in), u (..., n_out). Parameters: W (n_in, n_out), drawn by `initializer` (He's normal unless given), and b
    (n_out,), zeros, without weight decay; `bias=False` leaves b out.
    """

    rows_independent = True

    def __init__(self, n_in: int, n_out: int, bias: bool = True, initializer: Any = None):
        self.n_in, self.n_out, self.bias = self.whole("n_in", n_in), self.whole("n_out", n_out), bias
        self.initializer = initializer
        self.parameters = {
            "W": Parameter((self.n_in, self.n_out), initializer or HeNormal()),
            "b": Parameter((self.n_out,), Zeros(), decay=False) if bias else None,
        }

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.n_in, theta.W, "n_in")
        return linear(z, theta.W, theta.b), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return linear_backward(saved, theta.W, v, gradient.W, gradient.b, need_dz)


class LinearReLU(Module):
    """A Linear and the ReLU after it as one: u = max(z W + b, 0). The windows are the Linear's."""

    def __init__(self, linear: Linear):
        self.linear = linear

    def forward(self, theta, z, mode):
        self.linear.expect_features(theta, z, self.linear.n_in, theta.W, "n_in")
        u = linear_relu(z, theta.W, theta.b)
        return u, (z, u)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u = saved
        return linear_relu_backward(z, theta.W, u, v, gradient.W, gradient.b, need_dz)


class Weight(Module):
    """A parameter W of the given shape as a module without input, u = W: an operand of a circuit.

    `initializer`: He's normal unless given; decay: whether weight decay applies to it. B[Weight, W](v) = v.
    """

    def __init__(self, shape: tuple[int, ...], initializer: Any = None, decay: bool = True):
        if not isinstance(shape, (tuple, list)):
            raise ValueError(f"Weight's shape must be a tuple, got {shape!r}; e.g. (64, 10)")
        self.shape, self.initializer, self.decay = tuple(self.whole("shape", n) for n in shape), initializer, decay
        self.parameters = {"W": Parameter(self.shape, initializer or HeNormal(), decay)}

    def forward(self, theta, mode):
        return theta.W, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = v
        return ()
