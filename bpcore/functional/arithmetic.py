"""Atomic operations of Remark 7.4.3, and the care that small numbers need."""

from __future__ import annotations

import math
from typing import Any

from bpcore.backend import is_half, namespace
from bpcore.functional.primitive import in_float32, primitive

_smallest: dict[tuple[type, Any], float] = {}


def smallest_normal(z):
    """The smallest normal number of the dtype of z, a Python float, remembered."""
    key = type(z), z.dtype  # the type first: dtypes of two libraries do not compare
    found = _smallest.get(key)
    if found is None:
        found = _smallest[key] = float(namespace(z).finfo(z.dtype).smallest_normal)
    return found


def flush(z):
    """z with everything below the square root of the smallest normal number set to zero.

    Products of two numbers that survive are normal: a GEMM with subnormal inputs can run a hundred times slower. float16 is
    let be: that root is 0.008, and hardware that computes in float16 has no such trouble.
    """
    if is_half(z):
        return z
    xp = namespace(z)
    return z * xp.astype(xp.abs(z) >= math.sqrt(smallest_normal(z)), z.dtype)


def sum_over(x, axis):
    """Σ x over an axis or some; float16 is added up in float32, and the sum is float32."""
    xp = namespace(x)
    return xp.sum(x, axis=axis, dtype=xp.float32) if is_half(x) else xp.sum(x, axis=axis)


def unbroadcast(v, shape):
    """The adjoint of broadcasting from `shape` to v.shape: v summed over the axes that were stretched."""
    if tuple(v.shape) == tuple(shape):
        return v
    xp = namespace(v)
    extra = v.ndim - len(shape)
    stretched = [i + extra for i, n in enumerate(shape) if n == 1 and v.shape[i + extra] != 1]
    return xp.reshape(xp.astype(sum_over(v, (*range(extra), *stretched)), v.dtype, copy=False), tuple(shape))


def add(a, b):
    """a + b, broadcasting."""
    return a + b


def add_backward(shape_a, shape_b, v):
    """B[+, (a, b)](v) = (v, v), each summed over the axes that its operand was stretched along."""
    return unbroadcast(v, shape_a), unbroadcast(v, shape_b)


def subtract(a, b):
    """a - b, broadcasting."""
    return a - b


def subtract_backward(shape_a, shape_b, v):
    """B[-, (a, b)](v) = (v, -v)."""
    return unbroadcast(v, shape_a), unbroadcast(-v, shape_b)


def multiply(a, b):
    """a ⊙ b, broadcasting."""
    return a * b


def multiply_backward(a, b, v):
    """B[⊙, (a, b)](v) = (b ⊙ v, a ⊙ v)."""
    return unbroadcast(v * b, a.shape), unbroadcast(v * a, b.shape)


def divide(a, b):
    """a / b, broadcasting."""
    return a / b


def divide_backward(shape_a, b, u, v):
    """B[/, (a, b)](v) = (v / b, -u v / b) with u = a / b."""
    da = v / b
    return unbroadcast(da, shape_a), unbroadcast(-u * da, b.shape)


@primitive
def matmul(a, b):
    """a @ b: matrices in the last two axes, leading axes broadcast."""
    return a @ b


def matmul_backward(a, b, v):
    """B[@, (a, b)](v) = (v bᵀ, aᵀ v).        (7.63), (7.65)"""
    xp = namespace(a)
    da, db = matmul(v, xp.matrix_transpose(b)), matmul(xp.matrix_transpose(a), v)
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


def exp(z):
    """eᶻ."""
    return namespace(z).exp(z)


def exp_backward(u, v):
    """B[exp, z](v) = u ⊙ v with u = eᶻ."""
    return u * v


def log(z):
    """The natural logarithm; z > 0."""
    return namespace(z).log(z)


def log_backward(z, v):
    """B[log, z](v) = v / z."""
    return v / z


def power(z, exponent):
    """z to a constant exponent, a Python number; z > 0 unless the exponent is a whole number."""
    return z**exponent


def power_backward(z, exponent, v):
    """B[z^c, z](v) = c z^(c-1) v; a constant (c = 0) has gradient zero."""
    return v * (exponent * z ** (exponent - 1)) if exponent else namespace(z).zeros_like(v)


def binary_power(a, b):
    """a to the power b, broadcasting; a > 0."""
    return a**b


def binary_power_backward(a, b, u, v):
    """B[a^b, (a, b)](v) = (b a^(b-1) v, u log(a) v) with u = a^b."""
    xp = namespace(a)
    return unbroadcast(v * b * a ** (b - 1), a.shape), unbroadcast(v * u * xp.log(a), b.shape)


@in_float32
def summation(z, axis, keepdims):
    """Σ z over an axis, a tuple of them, or all (None)."""
    return namespace(z).sum(z, axis=axis, keepdims=keepdims)


def summation_backward(v, shape, axis, keepdims):
    """B[Σ, z](v): v spread over the axes that were summed, a view of v in the shape of z."""
    xp = namespace(v)
    if not keepdims:
        axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
        summed = {i % len(shape) for i in axes} if shape else set()
        v = xp.reshape(v, tuple(1 if i in summed else n for i, n in enumerate(shape)))
    return xp.broadcast_to(v, tuple(shape))


def mean(z, axis, keepdims):
    """The mean of z over an axis, a tuple of them, or all (None)."""
    return namespace(z).mean(z, axis=axis, keepdims=keepdims)


def mean_backward(v, shape, axis, keepdims):
    """B[mean, z](v): v over the number of entries that each mean is of, spread over them."""
    return summation_backward(v * (math.prod(v.shape) / max(1, math.prod(shape))), shape, axis, keepdims)


def concatenate(arrays, axis):
    """The arrays joined along an axis."""
    return namespace(arrays[0]).concat(arrays, axis=axis)


def concatenate_backward(shapes, axis, v):
    """B[concatenate, (z, ...)](v): the slices of v that each input became."""
    axis = axis % v.ndim
    parts, start = [], 0
    for shape in shapes:
        stop = start + shape[axis]
        parts.append(v[(*(slice(None) for _ in range(axis)), slice(start, stop), ...)])
        start = stop
    return tuple(parts)
