"""The atomic modules of Remark 7.4.3, for circuits. Operands broadcast; the backward functions sum over broadcast axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bpcore import arguments
from bpcore.arguments import show
from bpcore.array import Array, namespace
from bpcore.expect import expect_axis, expect_entries, expect_floats, expect_operands
from bpcore.functional import arithmetic as f
from bpcore.module import Mode, Module, Windows

__all__ = [
    "Add",
    "Concatenate",
    "Divide",
    "Exp",
    "Flatten",
    "Log",
    "MatMul",
    "Mean",
    "Multiply",
    "Power",
    "Reshape",
    "Subtract",
    "Sum",
]

Shape = tuple[int, ...]
Pair = tuple[Array, Array]


class Add(Module):
    """u = a + b."""

    rows_independent = True

    def forward(self, theta: Windows, a: Array, b: Array, mode: Mode) -> tuple[Array, tuple[Shape, Shape]]:
        a, b = expect_operands(self, theta, a, b)
        return f.add(a, b), (a.shape, b.shape)

    def backward(self, theta: Windows, saved: tuple[Shape, Shape], v: Array, gradient: Windows, need_dz: bool = True) -> Pair:
        shape_a, shape_b = saved
        return f.add_backward(shape_a, shape_b, v)


class Subtract(Module):
    """u = a - b."""

    rows_independent = True

    def forward(self, theta: Windows, a: Array, b: Array, mode: Mode) -> tuple[Array, tuple[Shape, Shape]]:
        a, b = expect_operands(self, theta, a, b)
        return f.subtract(a, b), (a.shape, b.shape)

    def backward(self, theta: Windows, saved: tuple[Shape, Shape], v: Array, gradient: Windows, need_dz: bool = True) -> Pair:
        shape_a, shape_b = saved
        return f.subtract_backward(shape_a, shape_b, v)


class Multiply(Module):
    """u = a ⊙ b."""

    rows_independent = True

    def forward(self, theta: Windows, a: Array, b: Array, mode: Mode) -> tuple[Array, Pair]:
        a, b = expect_operands(self, theta, a, b)
        return f.multiply(a, b), (a, b)

    def backward(self, theta: Windows, saved: Pair, v: Array, gradient: Windows, need_dz: bool = True) -> Pair:
        a, b = saved
        return f.multiply_backward(a, b, v)


class Divide(Module):
    """u = a / b, b ≠ 0."""

    rows_independent = True

    def forward(self, theta: Windows, a: Array, b: Array, mode: Mode) -> tuple[Array, tuple[Shape, Array, Array]]:
        a, b = expect_operands(self, theta, a, b)
        u = f.divide(a, b)
        return u, (a.shape, b, u)

    def backward(
        self, theta: Windows, saved: tuple[Shape, Array, Array], v: Array, gradient: Windows, need_dz: bool = True
    ) -> Pair:
        shape_a, b, u = saved
        return f.divide_backward(shape_a, b, u, v)


class MatMul(Module):
    """u = a @ b: matrices in the last two axes of a and b; leading axes broadcast."""

    def forward(self, theta: Windows, a: Array, b: Array, mode: Mode) -> tuple[Array, Pair]:
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            got = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ValueError(f"{self.name(theta)} expected shapes (..., n, m) and (..., m, k), got {got}; reshape one of them")
        a, b = expect_operands(self, theta, a, b, apart=2)
        return f.matmul(a, b), (a, b)

    def backward(self, theta: Windows, saved: Pair, v: Array, gradient: Windows, need_dz: bool = True) -> Pair:
        a, b = saved
        return f.matmul_backward(a, b, v)


class Exp(Module):
    """u = eᶻ."""

    rows_independent = True

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        u = f.exp(expect_floats(self, theta, z))
        return u, u

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.exp_backward(saved, v)


class Log(Module):
    """u = log z, z > 0."""

    rows_independent = True

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_floats(self, theta, z)
        return f.log(z), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.log_backward(saved, v)


class Power(Module):
    """u = z^exponent for a constant exponent; with exponent=None, u = a^b of two inputs, a > 0."""

    rows_independent = True

    def __init__(self, exponent: float | None = None):
        rule = "or None for two inputs"
        self.exponent = None if exponent is None else arguments.number("exponent", exponent, rule, math.isfinite, of=self)

    def forward(self, theta: Windows, a: Array, *others: Array, mode: Mode) -> tuple[Array, Any]:
        a = expect_floats(self, theta, a)
        if len(others) != (self.exponent is None):
            wanted = "two inputs" if self.exponent is None else "one input"
            got = 1 + len(others)
            raise ValueError(f"{self.name(theta)} expected {wanted}, got {got}; pass an exponent for one input, None for two")
        if self.exponent is not None:
            return f.power(a, self.exponent), a
        (b,) = others
        a, b = expect_operands(self, theta, a, b)
        u = f.binary_power(a, b)
        return u, (a, b, u)

    def backward(self, theta: Windows, saved: Any, v: Array, gradient: Windows, need_dz: bool = True) -> Array | Pair:
        if self.exponent is not None:
            return f.power_backward(saved, v, self.exponent)
        a, b, u = saved
        return f.binary_power_backward(a, b, u, v)


class Reduction(Module):
    """Base of Sum and Mean. axis: a number, a tuple of numbers, or None for all axes. keepdims: keep them with length 1."""

    def __init__(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
        self.axis: int | tuple[int, ...] | None
        if isinstance(axis, (list, tuple)):
            self.axis = tuple(arguments.axis("axis", number, of=self) for number in axis)
        else:
            self.axis = None if axis is None else arguments.axis("axis", axis, of=self)
        self.keepdims = arguments.flag("keepdims", keepdims, of=self)

    def axes(self, ndim: int) -> Sequence[int]:
        """The axes to sum over, in an array with ndim axes."""
        if self.axis is None:
            return range(ndim)
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def expect_axes(self, theta: Windows, z: Array) -> Array:
        """z, or an error unless it holds floats and has the axes, and none of them is named twice."""
        axes = self.axes(z.ndim)
        for axis in axes:
            expect_axis(self, theta, z, axis)
        if len({axis % z.ndim for axis in axes}) < len(axes):
            raise ValueError(f"{self.name(theta)} expected distinct axes, got {axes} for z of {z.ndim} axes; give each axis once")
        return expect_floats(self, theta, z)


class Sum(Reduction):
    """u = Σ z over `axis`; by default over all axes, so u is a scalar."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Shape]:
        return f.summation(self.expect_axes(theta, z), self.axis, self.keepdims), z.shape

    def backward(self, theta: Windows, saved: Shape, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.summation_backward(saved, v, self.axis, self.keepdims)


class Mean(Reduction):
    """u = the mean of z over `axis`; by default over all axes, so u is a scalar."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Shape]:
        self.expect_axes(theta, z)
        expect_entries(self, theta, z, self.axes(z.ndim))
        return f.mean(z, self.axis, self.keepdims), z.shape

    def backward(self, theta: Windows, saved: Shape, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return f.mean_backward(saved, v, self.axis, self.keepdims)


class Concatenate(Module):
    """u = the inputs, one or more, joined along `axis`."""

    def __init__(self, axis: int = -1):
        self.axis = arguments.axis("axis", axis, of=self)

    def forward(self, theta: Windows, z: Array, *others: Array, mode: Mode) -> tuple[Array, tuple[Shape, ...]]:
        expect_axis(self, theta, z, self.axis)
        inputs = (z, *others)
        if len({x.dtype for x in inputs}) > 1:
            inputs = tuple(expect_floats(self, theta, x) for x in inputs)
        axis = self.axis % z.ndim
        if len({(*x.shape[:axis], *x.shape[axis + 1 :]) for x in inputs}) > 1 or len({x.dtype for x in inputs}) > 1:
            got = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in inputs)
            raise ValueError(f"{self.name(theta)} expected arrays that differ in axis {self.axis} alone, got {got}; reshape them")
        return f.concatenate(inputs, self.axis), tuple(x.shape for x in inputs)

    def backward(
        self, theta: Windows, saved: tuple[Shape, ...], v: Array, gradient: Windows, need_dz: bool = True
    ) -> tuple[Array, ...]:
        return f.concatenate_backward(saved, v, self.axis)


class Reshape(Module):
    """Reshapes each row: (n, ...) to (n, *shape). One entry of shape may be -1."""

    rows_independent = True

    def __init__(self, shape: tuple[int, ...]):
        if not isinstance(shape, (tuple, list)):
            raise ValueError(f"Reshape's shape must be a tuple, got {show(shape)}; e.g. (28, 28, 1)")
        self.shape = tuple(-1 if n == -1 else arguments.whole("shape", n, of=self) for n in shape)
        if self.shape.count(-1) > 1:
            raise ValueError(f"Reshape's shape must have at most one -1, got {show(shape)}")

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Shape]:
        shape = self.shape
        if -1 in shape and 0 in z.shape[:1]:  # no rows tell nothing about -1
            known = math.prod(n for n in shape if n != -1)
            shape = tuple(math.prod(z.shape[1:]) // max(1, known) if n == -1 else n for n in shape)
        try:
            return namespace(z).reshape(z, (z.shape[0], *shape)), z.shape
        except (ValueError, RuntimeError, IndexError) as error:
            got = f"z of shape {tuple(z.shape)}"
            repair = "choose a shape of as many entries, or fix the data"
            raise ValueError(f"{self.name(theta)} expected rows that reshape to {self.shape}, got {got}; {repair}") from error

    def backward(self, theta: Windows, saved: Shape, v: Array, gradient: Windows, need_dz: bool = True) -> Array:
        return namespace(v).reshape(v, saved)


class Flatten(Reshape):
    """Makes each row a vector: (n, ...) to (n, features)."""

    def __init__(self) -> None:
        super().__init__((-1,))
