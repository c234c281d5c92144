"""The atomic modules of Remark 7.4.3: operands of circuits. Broadcasting is undone in the backward functions."""

from __future__ import annotations

import math
from typing import Any

from bpcore.backend import namespace
from bpcore.functional import arithmetic as f
from bpcore.module import Module


class Add(Module):
    """u = a + b."""

    rows_independent = True

    def forward(self, theta, a, b, mode):
        self.expect_operands(theta, a, b)
        return f.add(a, b), (a.shape, b.shape)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        shape_a, shape_b = saved
        return f.add_backward(shape_a, shape_b, v)


class Subtract(Module):
    """u = a - b."""

    rows_independent = True

    def forward(self, theta, a, b, mode):
        self.expect_operands(theta, a, b)
        return f.subtract(a, b), (a.shape, b.shape)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        shape_a, shape_b = saved
        return f.subtract_backward(shape_a, shape_b, v)


class Multiply(Module):
    """u = a ⊙ b."""

    rows_independent = True

    def forward(self, theta, a, b, mode):
        self.expect_operands(theta, a, b)
        return f.multiply(a, b), (a, b)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        a, b = saved
        return f.multiply_backward(a, b, v)


class Divide(Module):
    """u = a / b, b ≠ 0."""

    rows_independent = True

    def forward(self, theta, a, b, mode):
        self.expect_operands(theta, a, b)
        u = f.divide(a, b)
        return u, (a.shape, b, u)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        shape_a, b, u = saved
        return f.divide_backward(shape_a, b, u, v)


class MatMul(Module):
    """u = a @ b: matrices in the last two axes of each, leading axes broadcast."""

    def forward(self, theta, a, b, mode):
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            got = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ValueError(f"{self.name(theta)} expected shapes (..., n, m) and (..., m, k), got {got}; reshape one of them")
        self.expect_operands(theta, a, b, apart=2)
        return f.matmul(a, b), (a, b)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        a, b = saved
        return f.matmul_backward(a, b, v)


class Exp(Module):
    """u = eᶻ."""

    rows_independent = True

    def forward(self, theta, z, mode):
        u = f.exp(self.expect_floats(theta, z))
        return u, u

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.exp_backward(saved, v)


class Log(Module):
    """u = log z, z > 0."""

    rows_independent = True

    def forward(self, theta, z, mode):
        return f.log(self.expect_floats(theta, z)), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.log_backward(saved, v)


class Power(Module):
    """u = z^exponent for a constant exponent; without one, u = a^b of two inputs, a > 0."""

    rows_independent = True

    def __init__(self, exponent: float | None = None):
        rule = "or None for two inputs"
        self.exponent = None if exponent is None else self.number("exponent", exponent, rule, math.isfinite)

    def forward(self, theta, a, *b, mode):
        self.expect_floats(theta, a)
        if len(b) != (self.exponent is None):
            wanted = "two inputs" if self.exponent is None else "one input"
            raise ValueError(f"{self.name(theta)} expected {wanted}, got {1 + len(b)}; an exponent is given for one input only")
        if self.exponent is not None:
            return f.power(a, self.exponent), a
        self.expect_operands(theta, a, *b)
        u = f.binary_power(a, *b)
        return u, (a, *b, u)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        if self.exponent is not None:
            return f.power_backward(saved, self.exponent, v)
        a, b, u = saved
        return f.binary_power_backward(a, b, u, v)


class Reduction(Module):
    """What Sum and Mean share: axis (one, a tuple, or None for all) and keepdims."""

    def __init__(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
        if isinstance(axis, (list, tuple)):
            self.axis: Any = tuple(map(self.axis_number, axis))
        else:
            self.axis = None if axis is None else self.axis_number(axis)
        self.keepdims = keepdims

    def axes(self, ndim):
        return range(ndim) if self.axis is None else self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def expect_axes(self, theta, z):
        axes = self.axes(z.ndim)
        for axis in axes:
            self.expect_axis(theta, z, axis)
        if len({axis % z.ndim for axis in axes}) < len(axes):
            raise ValueError(f"{self.name(theta)} expected axes that differ, got {axes} for z of {z.ndim} axes; name each once")
        return self.expect_floats(theta, z)


class Sum(Reduction):
    """u = Σ z over axis; over all axes, a scalar, unless given."""

    def forward(self, theta, z, mode):
        return f.summation(self.expect_axes(theta, z), self.axis, self.keepdims), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.summation_backward(v, saved, self.axis, self.keepdims)


class Mean(Reduction):
    """u = the mean of z over axis; over all axes, a scalar, unless given."""

    def forward(self, theta, z, mode):
        return f.mean(self.expect_axes(theta, z), self.axis, self.keepdims), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.mean_backward(v, saved, self.axis, self.keepdims)


class Concatenate(Module):
    """u = the inputs, one or more, joined along axis."""

    def __init__(self, axis: int = -1):
        self.axis = self.axis_number(axis)

    def forward(self, theta, *z, mode):
        self.expect_axis(theta, z[0], self.axis)
        axis = self.axis % z[0].ndim
        if len({(*one.shape[:axis], *one.shape[axis + 1 :]) for one in z}) > 1 or len({one.dtype for one in z}) > 1:
            got = ", ".join(f"{tuple(one.shape)} of {one.dtype}" for one in z)
            raise ValueError(f"{self.name(theta)} expected arrays that differ in axis {self.axis} alone, got {got}; reshape them")
        return f.concatenate(z, self.axis), tuple(one.shape for one in z)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.concatenate_backward(saved, self.axis, v)


class Reshape(Module):
    """Each row reshaped: (n, ...) to (n, *shape). One entry of shape may be -1."""

    rows_independent = True

    def __init__(self, shape: tuple[int, ...]):
        if not isinstance(shape, (tuple, list)):
            raise ValueError(f"Reshape's shape must be a tuple, got {shape!r}; e.g. (28, 28, 1)")
        self.shape = tuple(-1 if n == -1 else self.whole("shape", n) for n in shape)
        if self.shape.count(-1) > 1:
            raise ValueError(f"Reshape's shape must leave one size open at most, got {shape!r}")

    def forward(self, theta, z, mode):
        try:
            return namespace(z).reshape(z, (z.shape[0], *self.shape)), z.shape
        except (ValueError, RuntimeError, IndexError) as error:
            got = f"z of shape {tuple(z.shape)}"
            repair = "choose a shape of as many entries, or fix the data"
            raise ValueError(f"{self.name(theta)} expected rows that reshape to {self.shape}, got {got}; {repair}") from error

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return namespace(v).reshape(v, saved)


class Flatten(Reshape):
    """Each row as a vector: (n, ...) to (n, features)."""

    def __init__(self) -> None:
        super().__init__((-1,))
