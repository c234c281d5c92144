"""The atomic operations of Remark 7.4.3. Operands broadcast; backward functions sum over the axes that were broadcast."""

from __future__ import annotations

import math

from bpcore.array import Array, is_half, namespace
from bpcore.functional.numerics import Axes, masked, sum_over
from bpcore.primitive import primitive

__all__ = [
    "add",
    "add_backward",
    "binary_power",
    "binary_power_backward",
    "concatenate",
    "concatenate_backward",
    "divide",
    "divide_backward",
    "exp",
    "exp_backward",
    "joined",
    "log",
    "log_backward",
    "matmul",
    "matmul_backward",
    "mean",
    "mean_backward",
    "multiply",
    "multiply_backward",
    "negative",
    "power",
    "power_backward",
    "sparse_product",
    "subtract",
    "subtract_backward",
    "sum_of",
    "summation",
    "summation_backward",
]


def unbroadcast(v: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of broadcasting from `shape` to v.shape: v summed over the axes that were broadcast."""
    if tuple(v.shape) == tuple(shape):
        return v
    xp = namespace(v)
    extra = v.ndim - len(shape)
    broadcast = [i + extra for i, n in enumerate(shape) if n == 1 and v.shape[i + extra] != 1]
    return xp.reshape(summation(v, (*range(extra), *broadcast), False), tuple(shape))


def in_dtype_of(like: Array, x: Array) -> Array:
    """x in the dtype of `like`: on CuPy a bfloat16 array times a Python number is float32."""
    return x if x.dtype == like.dtype else namespace(x).astype(x, like.dtype)


@primitive()
def add(a: Array, b: Array) -> Array:
    """a + b, broadcasting."""
    return a + b


def add_backward(shape_a: tuple[int, ...], shape_b: tuple[int, ...], v: Array) -> tuple[Array, Array]:
    """B[+, (a, b)](v) = (v, v), each summed over the axes along which its operand was broadcast."""
    return unbroadcast(v, shape_a), unbroadcast(v, shape_b)


@primitive()
def subtract(a: Array, b: Array) -> Array:
    """a - b, broadcasting."""
    return a - b


def subtract_backward(shape_a: tuple[int, ...], shape_b: tuple[int, ...], v: Array) -> tuple[Array, Array]:
    """B[-, (a, b)](v) = (v, -v)."""
    return unbroadcast(v, shape_a), unbroadcast(negative(v), shape_b)


@primitive()
def negative(z: Array) -> Array:
    """-z."""
    return -z


@primitive()
def multiply(a: Array, b: Array) -> Array:
    """a ⊙ b, broadcasting."""
    return a * b


def multiply_backward(a: Array, b: Array, v: Array) -> tuple[Array, Array]:
    """B[⊙, (a, b)](v) = (b ⊙ v, a ⊙ v)."""
    return unbroadcast(multiply(v, b), a.shape), unbroadcast(multiply(v, a), b.shape)


@primitive()
def divide(a: Array, b: Array) -> Array:
    """a / b, broadcasting."""
    return a / b


def divide_backward(shape_a: tuple[int, ...], b: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """B[/, (a, b)](v) = (v / b, -u v / b) with u = a / b."""
    da = divide(v, b)
    return unbroadcast(da, shape_a), unbroadcast(multiply(negative(u), da), b.shape)


@primitive()
def matmul(a: Array, b: Array) -> Array:
    """a @ b: matrices are in the last two axes, and leading axes broadcast."""
    return a @ b


def matmul_backward(a: Array, b: Array, v: Array) -> tuple[Array, Array]:
    """B[@, (a, b)](v) = (v bᵀ, aᵀ v).

    (7.63), (7.65)
    """
    xp = namespace(a)
    da, db = matmul(v, xp.matrix_transpose(b)), matmul(xp.matrix_transpose(a), v)
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


@primitive()
def sparse_product(A: Array, x: Array) -> Array:
    """A @ x, A >= 0 (..., n, m), x (..., m, k): an entry 0 of A leaves its row of x out, whatever that holds.

    Elsewhere 0 times an infinity or NaN is NaN. The leading axes of A and x are the same.
    """
    xp = namespace(A)
    u = A @ masked(x, xp.isfinite(x))
    taken = xp.astype(A != 0, x.dtype)
    for value, there in ((math.inf, x == math.inf), (-math.inf, x == -math.inf), (math.nan, xp.isnan(x))):
        u = xp.where(taken @ xp.astype(there, x.dtype) > 0, u + value, u)
    return u


@primitive()
def exp(z: Array) -> Array:
    """eᶻ."""
    return namespace(z).exp(z)


def exp_backward(u: Array, v: Array) -> Array:
    """B[exp, z](v) = u ⊙ v with u = eᶻ."""
    return multiply(u, v)


@primitive()
def log(z: Array) -> Array:
    """The natural logarithm; z > 0."""
    return namespace(z).log(z)


def log_backward(z: Array, v: Array) -> Array:
    """B[log, z](v) = v / z."""
    return divide(v, z)


@primitive()
def power(z: Array, exponent: float) -> Array:
    """z^c for a constant exponent c, a Python number; z > 0 unless c is a whole number."""
    return in_dtype_of(z, z**exponent)


def power_backward(z: Array, v: Array, exponent: float) -> Array:
    """B[z^c, z](v) = c z^(c-1) v; 0 where c = 0, since z^0 is constant."""
    return in_dtype_of(v, v * (exponent * power(z, exponent - 1))) if exponent else namespace(z).zeros_like(v)


def binary_power(a: Array, b: Array) -> Array:
    """a^b, broadcasting; a > 0."""
    return a**b


def binary_power_backward(a: Array, b: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """B[a^b, (a, b)](v) = (b a^(b-1) v, u log(a) v) with u = a^b."""
    xp = namespace(a)
    return unbroadcast(in_dtype_of(v, v * b * a ** (b - 1)), a.shape), unbroadcast(v * u * xp.log(a), b.shape)


@primitive(float32=True)
def summation(z: Array, axis: Axes, keepdims: bool) -> Array:
    """Σ z over an axis, a tuple of axes, or all axes (None)."""
    total = sum_over(z, axis)
    return namespace(z).reshape(total, kept(z.shape, axis)) if keepdims else total


def sum_of(z: Array, axis: Axes) -> Array:
    """Σ z over an axis, a tuple of axes, or all axes; of float16 in float32, which `summation` would round again."""
    return sum_over(z, axis) if is_half(z) else summation(z, axis, False)


def axes_of(z: Array, axis: Axes) -> list[int]:
    """The axes of a reduction, counted from the first one, in order; one that z does not have stays as it is."""
    axes = range(z.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return sorted(i % z.ndim if -z.ndim <= i < z.ndim else i for i in axes)


def kept(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape with length 1 in the axes of a reduction."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    summed = {i % len(shape) for i in axes} if shape else set()
    return tuple(1 if i in summed else n for i, n in enumerate(shape))


def summation_backward(shape: tuple[int, ...], v: Array, axis: Axes, keepdims: bool) -> Array:
    """B[Σ, z](v): v broadcast along the axes that were summed, a view in the shape of z."""
    xp = namespace(v)
    if not keepdims:
        v = xp.reshape(v, kept(shape, axis))
    return xp.broadcast_to(v, tuple(shape))


def mean(z: Array, axis: Axes, keepdims: bool) -> Array:
    """The mean of z over an axis, a tuple of axes, or all axes (None)."""
    xp, shape = namespace(z), kept(z.shape, axis)
    u = xp.astype(sum_of(z, axis) * (math.prod(shape) / max(1, math.prod(z.shape))), z.dtype, copy=False)
    return xp.reshape(u, shape) if keepdims else u


def mean_backward(shape: tuple[int, ...], v: Array, axis: Axes, keepdims: bool) -> Array:
    """B[mean, z](v): v divided by the number of entries in each mean, broadcast to the shape of z."""
    part = in_dtype_of(v, v * (math.prod(v.shape) / max(1, math.prod(shape))))
    return summation_backward(shape, part, axis, keepdims)


def concatenate(arrays: tuple[Array, ...], axis: int) -> Array:
    """The arrays joined along an axis that they have."""
    return joined(*arrays, axis) if len(arrays) == 2 else namespace(arrays[0]).concat(arrays, axis=axis)


@primitive(float32=None)
def joined(a: Array, b: Array, axis: int) -> Array:
    """Two arrays joined along an axis that they have."""
    return namespace(a).concat((a, b), axis=axis)


def concatenate_backward(shapes: tuple[tuple[int, ...], ...], v: Array, axis: int) -> tuple[Array, ...]:
    """B[concatenate, (z, ...)](v): for each input, the slice of v in its place."""
    axis = axis % v.ndim
    parts, start = [], 0
    for shape in shapes:
        stop = start + shape[axis]
        parts.append(v[(*(slice(None) for _ in range(axis)), slice(start, stop), ...)])
        start = stop
    return tuple(parts)
