"""eˣ, eˣ - 1, tanh, log x and log(1 + x) that the compiler can vectorise, for compiled code.

libm computes one number at a time, which takes ten times as long. float64 is left to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from bpcore.kernels.fast.engine.arrays import exact

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # Cody and Waite: their sum is ln 2 beyond float32
ROUND = np.float32(1.5 * 2**23)  # after adding this, the lowest bits of the sum are the whole number nearest to x
ROUND_BITS = np.int32(ROUND.view(np.int32))
LARGEST = np.float32(88.72283)  # beyond, eˣ is infinite
SMALLEST = np.float32(-87.33654)  # below, eˣ is no normal number
FLAT = np.float32(-30)  # below, eˣ - 1 is -1
# e^r for |r| <= ½ ln 2, from the highest power down, relative error 2e-8: from expf of Cephes
C = tuple(map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)))


def _cast(source: Any, target: Any, llvm_type: Any) -> Any:
    """A compiled function that reads the bits of one type as a number of another."""

    @intrinsic
    def cast(typing_context, x):
        def generate(context, builder, signature, values):
            return builder.bitcast(values[0], llvm_type)

        return target(source), generate

    return cast


bits = _cast(types.float32, types.int32, ir.IntType(32))
number = _cast(types.int32, types.float32, ir.FloatType())


@exact  # "reassoc" would undo the rounding
def _reduced(x):
    """n and eʳ - 1, where x = n ln 2 + r and |r| <= ½ ln 2."""
    shifted = x * LOG2_E + ROUND
    whole = shifted - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = C[0]
    p = p * r + C[1]
    p = p * r + C[2]
    p = p * r + C[3]
    p = p * r + C[4]
    p = p * r + C[5]
    return bits(shifted) - ROUND_BITS, p * r * r + r


@exact
def _exp32(x):
    n, p = _reduced(x)
    u = number(bits(p + np.float32(1)) + (n << np.int32(23)))  # the exponent grows by n: no power of 2 is too large for it
    u = u if x <= LARGEST else x + np.float32(np.inf)  # NaN stays NaN
    return np.float32(0) if x < SMALLEST else u


@exact
def _exp32_below(x):
    n, p = _reduced(x)
    u = (p + np.float32(1)) * number((n + np.int32(127)) << np.int32(23))
    return np.float32(0) if x < SMALLEST else u


@exact
def _expm1_32_below(x):
    n, p = _reduced(FLAT if x < FLAT else x)
    scale = number((n + np.int32(127)) << np.int32(23))
    return p * scale + (scale - np.float32(1))


INVERSE = np.int32(0x7EF31000)  # less the bits of x: the bits of 1 / x, up to 5 %


@exact
def inverse_of(x):
    """1 / x of a normal number x > 0 in float32, for compiled code: Newton's steps take less time than division
    of vectors. Error up to 2 units in the last place.
    """
    y = number(INVERSE - bits(x))
    y *= np.float32(2) - x * y
    y *= np.float32(2) - x * y
    return y * (np.float32(2) - x * y)


def exp(x):
    """eˣ, for compiled code. float32: error up to 2 units in the last place, 0 instead of subnormal numbers; float64: libm."""
    return math.exp(x)


@overload(exp)
def _exp(x):
    def exp32(x):
        return _exp32(x)

    def exp64(x):
        return math.exp(x)

    return exp32 if x == types.float32 else exp64


def exp_below(x):
    """`exp` of x <= 0, with the same bits and fewer steps."""
    return math.exp(x)


@overload(exp_below)
def _exp_below(x):
    def exp32(x):
        return _exp32_below(x)

    def exp64(x):
        return math.exp(x)

    return exp32 if x == types.float32 else exp64


def expm1_below(x):
    """eˣ - 1 of x <= 0, for compiled code. float32: error up to 2 units in the last place."""
    return math.expm1(x)


@overload(expm1_below)
def _expm1_below(x):
    def expm1_32(x):
        return _expm1_32_below(x)

    def expm1_64(x):
        return math.expm1(x)

    return expm1_32 if x == types.float32 else expm1_64


def tanh_of(x):
    """tanh(x), for compiled code."""
    return math.tanh(x)


# tanh x = x P(x²) / Q(x²) for |x| <= 8.5, from the highest power down, fitted for the least relative error, 1.2e-8
P = tuple(map(np.float32, (1.42697628e-8, 2.12514525e-5, 3.53405276e-3, 1.34132691e-1, 9.99999988e-1)))
Q = tuple(map(np.float32, (8.14534864e-7, 3.34890637e-4, 2.60228511e-2, 4.67465919e-1, 1.0)))
FAR = np.float32(9.3)  # beyond, it is 1


@exact
def _tanh32(x):
    x = FAR if x > FAR else x
    x = -FAR if x < -FAR else x
    s = x * x
    p = ((((P[0] * s) + P[1]) * s + P[2]) * s + P[3]) * s + P[4]
    q = ((((Q[0] * s) + Q[1]) * s + Q[2]) * s + Q[3]) * s + Q[4]
    u = x * p * inverse_of(q)
    u = np.float32(1) if u > np.float32(1) else u
    return np.float32(-1) if u < np.float32(-1) else u


@overload(tanh_of)
def _tanh_of(x):
    def tanh32(x):
        return _tanh32(x)

    def tanh64(x):
        return math.tanh(x)

    return tanh32 if x == types.float32 else tanh64


def log1p_of(x):
    """log(1 + x) for 0 <= x <= 1, for compiled code."""
    return math.log1p(x)


# log(1 + x) = 2 atanh(r) with r = x / (2 + x) <= 1/3, and atanh(r) = r + r³ / 3 + r⁵ / 5 + ...
ATANH = tuple(np.float32(1 / k) for k in range(15, 1, -2))


@overload(log1p_of)
def _log1p_of(x):
    def log1p32(x):
        r = x / (type(x)(2) + x)
        s = r * r
        p = (((((ATANH[0] * s + ATANH[1]) * s + ATANH[2]) * s + ATANH[3]) * s + ATANH[4]) * s + ATANH[5]) * s + ATANH[6]
        return (r + r * s * p) * type(x)(2)

    def log1p64(x):
        return math.log1p(x)

    return log1p32 if x == types.float32 else log1p64


# log(1 + r) = r + r² L(r) for |r| <= 1/3, from the highest power down, fitted for the least relative error, 2.6e-8
_L = (0.140262649, -0.153885733, 0.139958255, -0.164159546, 0.200111677, -0.250078192, 0.333331981, -0.499999361)
L = tuple(map(np.float32, _L))
LN2 = np.float32(math.log(2))
LOWEST = np.int32(np.float32(2 / 3).view(np.int32))  # the bits of the least 1 + r
NORMAL = np.finfo(np.float32).smallest_normal
RAISED = np.float32(23)  # power of 2 that makes a subnormal number normal


@exact
def log_of(x):
    """log x of float32, for compiled code; error up to 2 units in the last place."""
    small = x < NORMAL
    shifted = bits(x * np.float32(2**23) if small else x)
    n = np.int32(np.int32(shifted - LOWEST) >> np.int32(23))  # Numba computes in int64
    r = number(shifted - (n << np.int32(23))) - np.float32(1)
    p = ((((((L[0] * r + L[1]) * r + L[2]) * r + L[3]) * r + L[4]) * r + L[5]) * r + L[6]) * r + L[7]
    whole = np.float32(n)
    u = r * r * p + r + (whole - RAISED if small else whole) * LN2
    u = u if x < np.float32(np.inf) else x
    return u if x > 0 else np.float32(-np.inf) if x == 0 else np.float32(np.nan)


# 2^r = 1 + r E(r) for |r| <= ½, from the highest power down, fitted for the least relative error, 9e-8
E = tuple(map(np.float32, (1.32647242e-3, 9.67151324e-3, 5.55073376e-2, 2.40222421e-1, 6.93146978e-1)))


@exact
def exp2_below(y):
    """2^y of float32 for -127 <= y <= 0, for compiled code; 0 near -127."""
    shifted = y + ROUND
    r = y - (shifted - ROUND)
    p = ((((E[0] * r + E[1]) * r + E[2]) * r + E[3]) * r + E[4]) * r + np.float32(1)
    return p * number((bits(shifted) << np.int32(23)) + np.int32(127 << 23))


@register_jitable
def sigmoid_of(z):
    """1 / (1 + e⁻ᶻ)."""
    e = exp_below(-abs(z))
    one = type(z)(1)
    return (one if z >= 0 else e) / (one + e)
