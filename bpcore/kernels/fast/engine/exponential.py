"""eˣ that the compiler can vectorise. libm computes one number at a time, which takes ten times as long."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # Cody and Waite: their sum is ln 2 beyond float32
ROUND = np.float32(1.5 * 2**23)  # after adding this, the lowest bits of the sum are the whole number nearest to x
ROUND_BITS = np.int32(ROUND.view(np.int32))
LARGEST = np.float32(88.72283)  # beyond, eˣ is infinite
SMALLEST = np.float32(-87.33654)  # below, eˣ is no normal number
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


@numba.njit(error_model="numpy", fastmath={"contract"})  # without "reassoc", which would undo the rounding
def _exp32(x):
    shifted = x * LOG2_E + ROUND
    whole = shifted - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = C[0]
    p = p * r + C[1]
    p = p * r + C[2]
    p = p * r + C[3]
    p = p * r + C[4]
    p = p * r + C[5]
    p = p * r * r + r + np.float32(1)
    n = bits(shifted) - ROUND_BITS
    half = n >> np.int32(1)  # 2ⁿ as two factors, each a normal number
    u = p * number((half + np.int32(127)) << np.int32(23)) * number((n - half + np.int32(127)) << np.int32(23))
    u = np.float32(0) if x < SMALLEST else u
    return np.float32(np.inf) if x > LARGEST else u


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
