"""The logistic function, tanh and log(1 + eˣ), for compiled code, that the compiler can vectorise in float64 too, with errors up
to 3 units in the last place there. libm computes one number at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import overload

from bpcore.kernels.fast.engine import exponential
from bpcore.kernels.fast.engine.exponential import _cast, sigmoid_of, tanh_of

LOG2_E = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 6.93145751953125e-1, 1.42860682030941723212e-6  # Cody and Waite: their sum is ln 2 beyond float64
ROUND = 1.5 * 2.0**52  # after adding this, the lowest bits of the sum are the whole number nearest to x
ROUND_BITS = np.int64(np.float64(ROUND).view(np.int64))
SMALLEST = -708.0  # below, eˣ counts as 0
TAYLOR = tuple(1 / math.factorial(n) for n in range(13, 1, -1))  # of e^r for |r| <= ½ ln 2: what is left is below 1e-17

# tanh(x) = x + x³ P(x²) / Q(x²) for |x| < 0.625, from the highest power down: from tanh of Cephes
NEAR = 0.625
P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
Q = (1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)

# log(1 + x) = 2 atanh(r) with r = x / (2 + x) <= 1/3, and atanh(r) = r + r³ / 3 + r⁵ / 5 + ...
A = tuple(1 / k for k in range(33, 1, -2))

# A loop that calls a function is not vectorised. Without "reassoc", which would undo the rounding
INLINED: Any = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}

bits = _cast(types.float64, types.int64, ir.IntType(64))
number = _cast(types.int64, types.float64, ir.DoubleType())


@numba.njit(**INLINED)
def exp_below(x):
    """eˣ for x <= 0."""
    shifted = x * LOG2_E + ROUND
    whole = shifted - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = TAYLOR[0]
    p = p * r + TAYLOR[1]
    p = p * r + TAYLOR[2]
    p = p * r + TAYLOR[3]
    p = p * r + TAYLOR[4]
    p = p * r + TAYLOR[5]
    p = p * r + TAYLOR[6]
    p = p * r + TAYLOR[7]
    p = p * r + TAYLOR[8]
    p = p * r + TAYLOR[9]
    p = p * r + TAYLOR[10]
    p = p * r + TAYLOR[11]
    p = p * r * r + r + 1.0
    u = p * number((bits(shifted) - ROUND_BITS + np.int64(1023)) << np.int64(52))
    return 0.0 if x < SMALLEST else u


def logistic(x):
    """1 / (1 + e⁻ˣ) in float32 or float64."""
    return sigmoid_of(x)


def hyperbolic(x):
    """tanh(x) in float32 or float64."""
    return tanh_of(x)


def log1p_exp(x):
    """log(1 + eˣ) for x <= 0, in float32 or float64."""
    return math.log1p(math.exp(x))


@overload(log1p_exp, jit_options=INLINED)
def _log1p_exp(x):
    def log1p_exp64(x):
        e = exp_below(x)
        r = e / (2.0 + e)
        s = r * r
        p = (((((((A[0] * s + A[1]) * s + A[2]) * s + A[3]) * s + A[4]) * s + A[5]) * s + A[6]) * s + A[7]) * s + A[8]
        p = ((((((p * s + A[9]) * s + A[10]) * s + A[11]) * s + A[12]) * s + A[13]) * s + A[14]) * s + A[15]
        return (r + r * s * p) * 2.0

    return (lambda x: exponential.log1p_of(exponential.exp_below(x))) if x == types.float32 else log1p_exp64


@overload(logistic, jit_options=INLINED)
def _logistic(x):
    def logistic64(x):
        e = exp_below(-abs(x))
        return (1.0 if x >= 0 else e) / (1.0 + e)

    return (lambda x: sigmoid_of(x)) if x == types.float32 else logistic64


@overload(hyperbolic, jit_options=INLINED)
def _hyperbolic(x):
    def tanh64(x):
        s = x * x
        near = x + x * s * (((P[0] * s + P[1]) * s + P[2]) / (((s + Q[0]) * s + Q[1]) * s + Q[2]))
        e = exp_below(-abs(x + x))
        far = (1.0 - e) / (1.0 + e)
        return near if abs(x) < NEAR else (far if x >= 0 else -far)

    return (lambda x: tanh_of(x)) if x == types.float32 else tanh64
