"""Activations: one compiled loop each way, shared by threads, with an exponential that the compiler vectorises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable

from bpcore.functional.activations import (
    TANH_CUBE,
    TANH_SCALE,
    elu_backward,
    gelu,
    gelu_backward,
    gelu_tanh,
    gelu_tanh_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    softplus,
    softplus_backward,
    tanh,
    tanh_backward,
)
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.exponential import exp
from bpcore.kernels.fast.engine.threads import REASSOCIATE, compiled, flushed, least_of, share, team
from bpcore.kernels.numpy.activations import FAR, TAIL, TAIL_RATE
from bpcore.primitive import twin

dense = COMPILED.dense
COST = 4  # a number of an activation is worth that many of a plain pass: the second thread pays sooner


@numba.njit(error_model="numpy", fastmath=REASSOCIATE)  # not cached: it is compiled into `run`, which is
def _each(start, stop, f, z, v, c, least, u):
    z, v, u = z[start:stop], v[start:stop], u[start:stop]
    for i in range(u.shape[0]):
        u[i] = flushed(f(z[i], v[i], c), least)


def loop(f: Callable[..., Any]) -> Any:
    """The compiled pass u = f(z, v, c) over numbers z and v and a constant c, below `least` flushed to zero."""
    f = register_jitable(f)

    @compiled
    def run(z, v, c, least, u):
        share(_each, u.shape[0], team(u, COST * u.shape[0]), (f, z, v, c, least, u))

    return run


def pass_over(run: Any, flushes: bool, z: np.ndarray, v: np.ndarray, c: float = 0.0) -> np.ndarray:
    """u = f(z, v, c), each of their shape."""
    number, u = z.dtype.type, np.empty_like(z)
    run(z.reshape(-1), v.reshape(-1), number(c), least_of(z) if flushes else number(0), u.reshape(-1))
    return u


def forward(activation: Any, f: Callable[..., Any], flushes: bool = True, dtypes: str = "fd") -> None:
    """Register u = f(z, ·, c) as the twin of an activation (z) or (z, c)."""
    run = loop(f)

    def served(z, /, *c):
        return dense(z) and z.dtype.char in dtypes

    @twin(activation, serves=served)
    def _(z, /, *c):
        return pass_over(run, flushes, z, z, *c)


def backward(activation_backward: Any, f: Callable[..., Any], flushes: bool = True, dtypes: str = "fd") -> None:
    """Register f(z, v, c) as the twin of an activation's backward function (z, v) or (z, v, c), where z may be its u."""
    run = loop(f)

    def served(z, v, /, *c):
        return z.shape == v.shape and dense(z, v) and z.dtype.char in dtypes

    @twin(activation_backward, serves=served)
    def _(z, v, /, *c):
        return pass_over(run, flushes, z, v, *c)


def tanh_of(x):
    """tanh in compiled code."""
    return math.tanh(x)


# tanh(x) = x + x³ P(x²) on |x| < 0.625: Cephes' tanhf, highest power first
NEAR = np.float32(0.625)
TANH = tuple(map(np.float32, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)))


@overload(tanh_of)
def _tanh_of(x):
    def tanh32(x):
        s = x * x
        near = x + x * s * ((((TANH[0] * s + TANH[1]) * s + TANH[2]) * s + TANH[3]) * s + TANH[4])
        e = exp(-abs(x + x))
        far = (type(x)(1) - e) / (type(x)(1) + e)
        return near if abs(x) < NEAR else (far if x >= 0 else -far)

    return tanh32 if x == numba.float32 else lambda x: math.tanh(x)


def log1p_of(x):
    """log(1 + x) in compiled code, 0 <= x <= 1."""
    return math.log1p(x)


ATANH = tuple(np.float32(1 / k) for k in range(15, 1, -2))  # atanh(r) = r + r³ / 3 + r⁵ / 5 + ..., r <= 1/3


@overload(log1p_of)
def _log1p_of(x):
    def log1p32(x):
        r = x / (type(x)(2) + x)
        s = r * r
        p = (((((ATANH[0] * s + ATANH[1]) * s + ATANH[2]) * s + ATANH[3]) * s + ATANH[4]) * s + ATANH[5]) * s + ATANH[6]
        return (r + r * s * p) * type(x)(2)

    return log1p32 if x == numba.float32 else lambda x: math.log1p(x)


@register_jitable
def sigmoid_of(z):
    """1 / (1 + e⁻ᶻ)."""
    e, one = exp(-abs(z)), type(z)(1)
    return (one if z >= 0 else e) / (one + e)


RATE, FARTHEST, OVER_ROOT = np.float32(TAIL_RATE), np.float32(FAR), np.float32(1 / math.sqrt(2 * math.pi))
P = tuple(map(np.float32, TAIL))


@register_jitable
def gaussian_tail(z):
    """a = min(|z|, FAR), e = e^(-a²/2) and Φ(-a), as in kernels/numpy."""
    a = FARTHEST if abs(z) > FARTHEST else abs(z)
    t = np.float32(1) / (np.float32(1) + RATE * a)
    e = exp(np.float32(-0.5) * a * a)
    return a, e, e * t * (((((((P[0] * t + P[1]) * t + P[2]) * t + P[3]) * t + P[4]) * t + P[5]) * t + P[6]) * t + P[7])


@register_jitable
def odd_part(z):
    """√(2/π) (z + 0.044715 z³), twice: what gelu_tanh gives to a sigmoid; and its derivative."""
    scale, cube, square = type(z)(2 * TANH_SCALE), type(z)(TANH_CUBE), z * z
    return scale * (z + cube * (z * square)), scale * (type(z)(1) + type(z)(3) * cube * square)


def _relu(z, v, c):
    return type(z)(0) if z < 0 else z


def _relu_backward(u, v, c):
    return v * (type(u)(1) if u > 0 else type(u)(0))


def _leaky_relu(z, v, c):
    return z if z > 0 else c * z


def _leaky_relu_backward(u, v, c):
    return v * (type(u)(1) if u > 0 else c)


def _elu_backward(u, v, c):
    return v * (type(u)(1) if u > 0 else u + c)


def _sigmoid(z, v, c):
    return sigmoid_of(z)


def _sigmoid_backward(u, v, c):
    return v * u * (type(u)(1) - u)


def _tanh(z, v, c):
    return tanh_of(z)


def _tanh_backward(u, v, c):
    return v * (type(u)(1) - u * u)


def _softplus(z, v, c):
    return (z if z > 0 else type(z)(0)) + log1p_of(exp(-abs(z)))


def _softplus_backward(z, v, c):
    return v * sigmoid_of(z)


def _silu(z, v, c):
    return z * sigmoid_of(z)


def _silu_backward(z, v, c):
    s, one = sigmoid_of(z), type(z)(1)
    return v * s * (one + z * (one - s))


def _gelu(z, v, c):
    a, _, tail = gaussian_tail(z)
    return (z if z > 0 else np.float32(0)) - a * tail


def _gelu_backward(z, v, c):
    a, e, tail = gaussian_tail(z)
    slope = tail - a * e * OVER_ROOT  # at -a; at a it is 1 - slope
    return v * (slope if z < 0 else np.float32(1) - slope)


def _gelu_tanh(z, v, c):
    y, _ = odd_part(z)
    return z * sigmoid_of(y)


def _gelu_tanh_backward(z, v, c):
    y, dy = odd_part(z)
    s = sigmoid_of(y)
    return v * (s + z * dy * s * (type(z)(1) - s))


forward(relu, _relu, flushes=False)
backward(relu_backward, _relu_backward, flushes=False)
forward(leaky_relu, _leaky_relu, flushes=False)
backward(leaky_relu_backward, _leaky_relu_backward, flushes=False)
backward(elu_backward, _elu_backward)
forward(sigmoid, _sigmoid)
backward(sigmoid_backward, _sigmoid_backward)
forward(tanh, _tanh)
backward(tanh_backward, _tanh_backward)
forward(softplus, _softplus)
backward(softplus_backward, _softplus_backward)
forward(silu, _silu)
backward(silu_backward, _silu_backward)
forward(gelu, _gelu, dtypes="f")  # float32 alone: the tail's error is float32's
backward(gelu_backward, _gelu_backward, dtypes="f")
forward(gelu_tanh, _gelu_tanh)
backward(gelu_tanh_backward, _gelu_tanh_backward)
