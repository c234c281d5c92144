"""The exact GELU of a float32, for compiled code: z Φ(z) by the tails of the normal distribution.

`gelu`, `gelu_backward` and `gelu_again` have the same bits: their steps may not be reordered, whatever is computed beside them.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from bpcore.kernels.fast.engine.exponential import exp2_below, inverse_of
from bpcore.kernels.fast.engine.threads import REASSOCIATE
from bpcore.kernels.numpy.engine.exponential import FAR, TAIL, TAIL_RATE

RATE = np.float32(TAIL_RATE)
FARTHEST = np.float32(min(FAR, 13.25))  # e^(-a²/2) = 2^-126.6 counts as 0
HALF_LOG2_E = np.float32(-0.5 / math.log(2))
OVER_ROOT = np.float32(1 / math.sqrt(2 * math.pi))
P = tuple(map(np.float32, TAIL))
ordered: Any = numba.njit(error_model="numpy", fastmath=REASSOCIATE - {"reassoc"})


@ordered
def gaussian_tail(z):
    """min(|z|, FAR) = a, e^(-a²/2) = e, and t and p with Φ(-a) = e t p, by the approximation of kernels/numpy."""
    a = FARTHEST if abs(z) > FARTHEST else abs(z)
    t = inverse_of(np.float32(1) + RATE * a)
    p = ((((((P[0] * t + P[1]) * t + P[2]) * t + P[3]) * t + P[4]) * t + P[5]) * t + P[6]) * t + P[7]
    return a, exp2_below(HALF_LOG2_E * (a * a)), t, p


@numba.njit(error_model="numpy", fastmath={"nsz"})  # without "contract": a product in it is rounded first
def difference(x, y):
    """x - y."""
    return x - y


@ordered
def gelu_of(z, tail):
    """GELU(z), from its `gaussian_tail`."""
    a, e, t, p = tail
    return difference(z if z > 0 else np.float32(0), t * a * p * e)


@ordered
def gelu_backward_of(z, v, tail):
    """B[GELU, z](v), from the `gaussian_tail` of z."""
    a, e, t, p = tail
    slope = e * (p * t - a * OVER_ROOT)  # at -a; at a it is 1 - slope
    return v * (slope if z < 0 else np.float32(1) - slope)
