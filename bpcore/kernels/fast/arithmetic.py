"""Arithmetic and sums of large arrays of float32, which threads share; NumPy, in one thread, keeps the others. Powers by
multiplications, and products of batches of matrices by oneDNN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bpcore.functional import arithmetic
from bpcore.functional.arithmetic import axes_of, joined, kept, matmul, power, summation
from bpcore.functional.numerics import PART, sum_over
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine import elementwise, exponential
from bpcore.kernels.fast.engine.elementwise import large, loop, pass_over, repeated_loop
from bpcore.kernels.fast.engine.onednn import LIBRARY, MAXIMUM, SMALL, batched_plan, execute
from bpcore.kernels.fast.engine.threads import compiled, remembered, share, team, wide
from bpcore.primitive import twin

SHORT = 16  # numbers; of shorter rows a pass would be slow
WIDE = 128  # numbers that a row should have where rows are added: shorter rows are joined
BLOCK = 1 << 14  # numbers that one thread adds: the sums do not depend on the number of threads
MANY = 16  # matrices: each is work for one thread, in the longest blocks that may be added row by row
PIECE = 1 << 12  # the same where they are neighbours, one after the other


def large_pair(a, b, /) -> bool:
    """Whether a, which is `large`, and b, which is dense, have one shape, or that of a ends in that of b, long enough."""
    if a.size <= elementwise.MANY or not large(a) or type(b) is not np.ndarray or not COMPILED.dense(a, b):
        return False  # most often at the first question
    return a.shape == b.shape or (b.size >= SHORT and a.shape[a.ndim - b.ndim :] == b.shape and a.ndim > b.ndim)


def register(primitive: Any, f: Any) -> None:
    """Register f(a, b, ·) as the twin of a primitive of (a, b), f(z, ·, ·) of one of (z)."""
    run = repeated_loop(f)

    def of_pair(a, b, /):
        return pass_over(run, False, a, b)

    def of_z(z, /):
        return pass_over(run, False, z, z)

    if primitive in (arithmetic.negative, arithmetic.exp, arithmetic.log):
        twin(primitive, serves=large)(of_z)
    else:
        twin(primitive, serves=large_pair)(of_pair)


def _add(a, b, c):
    return a + b


def _subtract(a, b, c):
    return a - b


def _multiply(a, b, c):
    return a * b


def _divide(a, b, c):
    return a / b


def _negative(z, v, c):
    return -z


def _exp(z, v, c):
    return exponential.exp(z)


def _log(z, v, c):
    return exponential.log_of(z)


register(arithmetic.add, _add)
register(arithmetic.subtract, _subtract)
register(arithmetic.multiply, _multiply)
register(arithmetic.divide, _divide)
register(arithmetic.negative, _negative)
register(arithmetic.exp, _exp)
register(arithmetic.log, _log)


def few_products(z, exponent) -> bool:
    """Whether the exponent is 2, 3 or 4, and z is dense."""
    return exponent in (2, 3, 4) and COMPILED.dense(z)


def _power(z, v, exponent):
    square = z * z
    return square if exponent == 2 else square * (z if exponent == 3 else square)


run_power = loop(_power)


@twin(power, serves=few_products)
def _(z, exponent):
    return pass_over(run_power, False, z, z, exponent)


@compiled
def _copy(start, stop, z, at, u):
    while start < stop:
        row, first = start // z.shape[1], start % z.shape[1]
        n = min(stop - start, z.shape[1] - first)
        source, out = z[row, first : first + n], u[row, at + first : at + first + n]
        for j in range(n):
            out[j] = source[j]
        start += n


@compiled
def copy(z, at, u):
    """Writes z (n, k) to the columns of u (n, ...) from `at` on."""
    share(_copy, z.size, team(u, u.size), (z, at, u))


def long_rows(a, b, axis) -> bool:
    """Whether a is `large`, b is dense and fits it, and what is copied in one piece is not too short."""
    if not large(a) or not COMPILED.dense(a, b) or a.ndim != b.ndim or not -a.ndim <= axis < a.ndim:
        return False
    axis %= a.ndim
    fits = all(n == m or i == axis for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))
    return fits and min(math.prod(x.shape[axis:]) for x in (a, b)) >= SHORT


@twin(joined, serves=long_rows)
def _(a, b, axis):
    axis %= a.ndim
    before, after = a.shape[:axis], a.shape[axis + 1 :]
    u = np.empty((*before, a.shape[axis] + b.shape[axis], *after), a.dtype)
    n = math.prod(before)
    a, b, rows = a.reshape(n, -1), b.reshape(n, -1), u.reshape(n, -1)
    copy(a, 0, rows)
    copy(b, a.shape[1], rows)
    return u


@compiled
def _sum_rows(start, stop, z, sums):
    for k in range(start, stop):
        n, block = k // sums.shape[1], k % sums.shape[1]
        row = z[n, block * PIECE : (block + 1) * PIECE]
        total = z.dtype.type(0)
        for j in range(row.shape[0]):
            total += row[j]
        sums[n, block] = total


@compiled
def sum_rows(z, sums):
    """Writes the sums over blocks of each row of z (n, k) to sums (n, blocks)."""
    share(_sum_rows, sums.size, team(z, z.size), (z, sums))


@compiled
def _sum_columns(start, stop, z, size, parts, lanes, sums):
    wide()
    m, width = sums.shape[2], lanes.shape[2]
    rows = z.shape[1] // width
    for k in range(start, stop):
        n, block, part = k // parts // sums.shape[1], k // parts % sums.shape[1], k % parts
        first, last = part * width // parts, (part + 1) * width // parts
        total, out = lanes[n, block, first:last], sums[n, block]
        total[:] = 0
        i, end = block * size, min((block + 1) * size, rows)
        while i + 4 <= end:  # four at once: fewer loads and stores of the total
            x = z[n, i * width : (i + 4) * width]
            a, b, c, d = x[first:last], x[width + first :], x[2 * width + first :], x[3 * width + first :]
            for j in range(total.shape[0]):
                total[j] += (a[j] + b[j]) + (c[j] + d[j])
            i += 4
        for i in range(i, end):
            x = z[n, i * width + first : i * width + last]
            for j in range(total.shape[0]):
                total[j] += x[j]
        if width > m:
            out[:] = 0
            for i in range(0, width, m):
                for j in range(m):
                    out[j] += total[i + j]
            for i in range(rows * width if block == sums.shape[1] - 1 else z.shape[1], z.shape[1], m):
                for j in range(m):
                    out[j] += z[n, i + j]


@compiled
def sum_columns(z, size, parts, lanes, sums):
    """Writes the sums over blocks of rows of each matrix in z (n, k · m) to sums (n, blocks, m).

    Rows are joined to the width of lanes (n, blocks, width), which is scratch, or sums if that is m; `size` of them are a block.
    parts: of the columns, one if rows are joined.
    """
    share(_sum_columns, sums.shape[0] * sums.shape[1] * parts, team(z, z.size), (z, size, parts, lanes, sums))


def adjacent_axes(z, axis, keepdims) -> bool:
    """Whether z is `large`, and its axes are neighbours of each other."""
    if not large(z):
        return False
    axes = axes_of(z, axis)
    return len(axes) > 0 and axes[0] >= 0 and axes[-1] < z.ndim and axes == [*range(axes[0], axes[-1] + 1)]


def sums_of(z):
    """The sums over the second axis of z (n, k, m): (n, m)."""
    n, k, m = z.shape
    if m == 1:
        sums = np.empty((n, -(-k // PIECE)), z.dtype)
        sum_rows(z.reshape(n, k), sums)
    else:
        width = m
        while width < WIDE and k * m >= 4 * width:
            width *= 2
        size = PART if n >= MANY else min(PART, max(16, BLOCK // width))
        sums = np.empty((n, -(-(k * m // width) // size), m), z.dtype)
        lanes = sums if width == m else np.empty((*sums.shape[:2], width), z.dtype)
        sum_columns(z.reshape(n, -1), size, -(-m // BLOCK), lanes, sums)
    return sums if sums.shape[1] == 1 else sum_over(sums, 1)


@twin(summation, serves=adjacent_axes)
def _(z, axis, keepdims):
    axes, shape = axes_of(z, axis), z.shape
    before, along, after = shape[: axes[0]], shape[axes[0] : axes[-1] + 1], shape[axes[-1] + 1 :]
    u = sums_of(z.reshape(math.prod(before), math.prod(along), math.prod(after)))
    return u.reshape(kept(shape, axis) if keepdims else before + after)


def matrices(a, b):
    """Whether a and b are batches of float32 matrices with the same leading axes, each or its transpose C-contiguous."""
    if not (a.dtype.char == b.dtype.char == "f" and 2 < a.ndim == b.ndim <= MAXIMUM and a.shape[:-2] == b.shape[:-2]):
        return False
    large = a.shape[-1] == b.shape[-2] and a.size * b.shape[-1] > 8 * SMALL
    return large and in_rows(a) is not None and in_rows(b) is not None


def in_rows(x):
    """x or its transpose, the one that is C-contiguous, as a vector; None if neither is."""
    if not x.flags.carray:
        x = x.swapaxes(-1, -2)
    return x.reshape(-1) if x.flags.carray else None


@remembered(256)
def matmul_plan(a, b, of_a, of_b):
    """The plan for shapes a and b with these strides in numbers."""
    u = (*a[:-1], b[-1])
    return batched_plan((a, of_a), (b, of_b), (u, tuple(math.prod(u[i + 1 :]) for i in range(len(u)))))


def product(a, b):
    """u = a @ b."""
    u = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    plan = matmul_plan(a.shape, b.shape, *(tuple(n // x.itemsize for n in x.strides) for x in (a, b)))
    flat = u.reshape(-1)
    status = execute(plan.numbers, in_rows(a), in_rows(b), flat, flat)
    if status:
        raise OSError(f"oneDNN's matmul of {a.shape} and {b.shape} returned status {status}")
    return u


if LIBRARY is not None:
    twin(matmul, serves=matrices)(product)
