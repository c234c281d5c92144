"""Products of batches of matrices by oneDNN, and powers by multiplications."""

from __future__ import annotations

from math import prod

import numpy as np

from bpcore.functional.arithmetic import matmul, power
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.activations import loop, pass_over
from bpcore.kernels.fast.engine.onednn import LIBRARY, MAXIMUM, SMALL, batched_plan, execute
from bpcore.kernels.fast.engine.threads import remembered
from bpcore.primitive import twin


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
    return batched_plan((a, of_a), (b, of_b), (u, tuple(prod(u[i + 1 :]) for i in range(len(u)))))


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
