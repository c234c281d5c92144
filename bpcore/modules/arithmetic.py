"""The atomic modules of Remark 7.4.3: operands of circuits. Broadcasting is undone in the backward functions."""

from __future__ import annotations

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
        if isinstance(exponent, bool) or not (exponent is None or isinstance(exponent, (int, float))):
            raise ValueError(f"Power's exponent must be a number, or None for two inputs; got {exponent!r}")
        self.exponent = exponent

    def forward(self, theta, a, *b, mode):
        self.expect_floats(theta, a)
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
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        if any(isinstance(i, bool) or not isinstance(i, int) for i in self.axes(0)):
            raise ValueError(f"{type(self).__name__}'s axis must be a whole number, a tuple of them, or None, got {axis!r}")
        self.keepdims = keepdims

    def axes(self, ndim):
        return range(ndim) if self.axis is None else self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def expect_axes(self, theta, z):
        for axis in self.axes(z.ndim):
            self.expect_axis(theta, z, axis)
        return self.expect_floats(theta, z)


class Sum(Reduction):
    """u = Σ z over axis; over all axes, a scalar, unless given."""

    def forward(self, theta, z, mode):
        return namespace(z).sum(self.expect_axes(theta, z), axis=self.axis, keepdims=self.keepdims), z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.sum_backward(v, saved, self.axis, self.keepdims)


class Mean(Reduction):
    """u = the mean of z over axis; over all axes, a scalar, unless given."""

    def forward(self, theta, z, mode):
        u = namespace(z).mean(self.expect_axes(theta, z), axis=self.axis, keepdims=self.keepdims)
        return u, (z.shape, f.ratio(u.shape, z.shape))

    def backward(self, theta, saved, v, gradient, need_dz=True):
        shape, ratio = saved
        return f.sum_backward(v * ratio, shape, self.axis, self.keepdims)


class Concatenate(Module):
    """u = the inputs, one or more, joined along axis."""

    def __init__(self, axis: int = -1):
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ValueError(f"Concatenate's axis must be a whole number, got {axis!r}")
        self.axis = axis

    def forward(self, theta, *z, mode):
        self.expect_axis(theta, z[0], self.axis)
        axis = self.axis % z[0].ndim
        if len({(*one.shape[:axis], *one.shape[axis + 1 :]) for one in z}) > 1 or len({one.dtype for one in z}) > 1:
            got = ", ".join(f"{tuple(one.shape)} of {one.dtype}" for one in z)
            raise ValueError(f"{self.name(theta)} expected arrays that differ in axis {self.axis} alone, got {got}; reshape them")
        return namespace(z[0]).concat(z, axis=self.axis), tuple(one.shape for one in z)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.concatenate_backward(saved, self.axis, v)


class Reshape(Module):
    """Each row reshaped: (n, ...) to (n, *shape). One entry of shape may be -1."""

    rows_independent = True

    def __init__(self, shape: tuple[int, ...]):
        if not isinstance(shape, (tuple, list)):
            raise ValueError(f"Reshape's shape must be a tuple, got {shape!r}; e.g. (28, 28, 1)")
        self.shape = tuple(n if n == -1 else self.whole("shape", n) for n in shape)
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
