"""Activations: one compiled loop forward and one backward, shared by threads; the compiler vectorises the exponential."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from numba.extending import register_jitable

from bpcore.functional.activations import (
    BOUND,
    TANH_CUBE,
    TANH_SCALE,
    elu,
    elu_backward,
    gelu,
    gelu_again,
    gelu_backward,
    gelu_tanh,
    gelu_tanh_backward,
    leaky_relu,
    leaky_relu_backward,
    mish,
    mish_backward,
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
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed
from bpcore.kernels.fast.engine.elementwise import loop, pass_over
from bpcore.kernels.fast.engine.exponential import exp_below, expm1_below, log1p_of, sigmoid_of, tanh_of
from bpcore.kernels.fast.engine.gelu import gaussian_tail, gelu_backward_of, gelu_of
from bpcore.kernels.fast.engine.threads import COST, compiled, share, team, wide
from bpcore.primitive import twin

dense = COMPILED.dense


def register(activation: Any, f: Callable[..., Any], flushes: bool = True, dtypes: str = "fd") -> None:
    """Register f as the twin of an activation of (z) or (z, c). f ignores its second argument."""
    run = loop(f)

    def dense_z(z, /, *c):
        return dense(z) and z.dtype.char in dtypes

    def of_z(z, /):
        return pass_over(run, flushes, z, z)

    def of_z_and_c(z, c, /):
        return pass_over(run, flushes, z, z, c)

    twin(activation, serves=dense_z)(of_z if len(signature(activation).parameters) == 1 else of_z_and_c)


def register_backward(activation_backward: Any, f: Callable[..., Any], flushes: bool = True, dtypes: str = "fd") -> None:
    """Register f as the twin of a backward function of (z, v) or (z, v, c); z may stand for u."""
    run = loop(f)

    def dense_z_and_v(z, v, /, *c):
        return z.shape == v.shape and dense(z, v) and z.dtype.char in dtypes

    def of_z_and_v(z, v, /):
        return pass_over(run, flushes, z, v)

    def of_z_v_and_c(z, v, c, /):
        return pass_over(run, flushes, z, v, c)

    few = len(signature(activation_backward).parameters) == 2
    twin(activation_backward, serves=dense_z_and_v)(of_z_and_v if few else of_z_v_and_c)


@register_jitable
def above(z):
    """z, but at least -BOUND: with it the product -∞ · 0 is 0. NaN becomes -BOUND, since it is in the other factor too."""
    bound = type(z)(-BOUND)
    return z if z > bound else bound


@register_jitable
def bounded(z):
    """z between -BOUND and BOUND, as in functional/activations.py."""
    bound = type(z)(BOUND)
    return z if abs(z) <= bound else (bound if z > 0 else (-bound if z < 0 else z))


@register_jitable
def gelu_tanh_argument(z):
    """y = 2 √(2/π) (z + 0.044715 z³), the argument of the sigmoid in gelu_tanh, and dy/dz."""
    scale = type(z)(2 * TANH_SCALE)
    cube = type(z)(TANH_CUBE)
    square = z * z
    return scale * (z + cube * (z * square)), scale * (type(z)(1) + type(z)(3) * cube * square)


def _relu(z, v, c):
    return type(z)(0) if z < 0 else z


def _relu_backward(u, v, c):
    return type(u)(0) if u <= 0 else v


def _leaky_relu(z, v, c):
    return z if z > 0 else c * z


def _leaky_relu_backward(u, v, c):
    return v if u > 0 else c * v


def _elu(z, v, c):
    return z if z > 0 else c * expm1_below(z)


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
    return (z if z > 0 else type(z)(0)) + log1p_of(exp_below(-abs(z)))


def _softplus_backward(z, v, c):
    return v * sigmoid_of(z)


def _silu(z, v, c):
    return above(z) * sigmoid_of(z)


def _silu_backward(z, v, c):
    z = bounded(z)
    s = sigmoid_of(z)
    one = type(z)(1)
    return v * s * (one + z * (one - s))


@register_jitable
def mish_terms(z):
    """e^-|z|, and a and b with tanh(log(1 + eᶻ)) = a / b. They are polynomials of e^-|z| without differences."""
    e, one, two = exp_below(-abs(z)), type(z)(1), type(z)(2)
    a = e * (e + two) if z < 0 else one + two * e
    return e, a, a + (two if z < 0 else two * e * e)


def _mish(z, v, c):
    _, a, b = mish_terms(z)
    return above(z) * (a / b)


def _mish_backward(z, v, c):
    z = bounded(z)
    one = type(z)(1)
    e, a, b = mish_terms(z)
    inverse = one / b
    slope = type(z)(4) * e * (one + e) * (one if z < 0 else e) * inverse * inverse
    return v * (a * inverse + z * slope)


def _gelu(z, v, c):
    return gelu_of(z, gaussian_tail(z))


def _gelu_backward(z, v, c):
    return gelu_backward_of(z, v, gaussian_tail(z))


def _gelu_tanh(z, v, c):
    y, _ = gelu_tanh_argument(z)
    return above(z) * sigmoid_of(y)


def _gelu_tanh_backward(z, v, c):
    z = bounded(z)
    y, dy = gelu_tanh_argument(z)
    s = sigmoid_of(y)
    return v * (s + z * dy * s * (type(z)(1) - s))


register(relu, _relu, flushes=False)
register_backward(relu_backward, _relu_backward, flushes=False)
register(leaky_relu, _leaky_relu, flushes=False)
register_backward(leaky_relu_backward, _leaky_relu_backward, flushes=False)
register(elu, _elu, flushes=False, dtypes="f")  # of float64, NumPy's own vectorised function is faster
register_backward(elu_backward, _elu_backward)
register(sigmoid, _sigmoid)
register_backward(sigmoid_backward, _sigmoid_backward)
register(tanh, _tanh)
register_backward(tanh_backward, _tanh_backward)
register(softplus, _softplus)
register_backward(softplus_backward, _softplus_backward)
register(silu, _silu)
register_backward(silu_backward, _silu_backward)
register(mish, _mish)
register_backward(mish_backward, _mish_backward)
register(gelu, _gelu, dtypes="f")  # float32 only: gaussian_tail is accurate to float32
register_backward(gelu_backward, _gelu_backward, dtypes="f")
register(gelu_tanh, _gelu_tanh)
register_backward(gelu_tanh_backward, _gelu_tanh_backward)


@compiled
def _gelu_again(start, stop, z, v, least, u):
    wide()
    z, v, u = z[start:stop], v[start:stop], u[start:stop]
    for i in range(u.shape[0]):
        tail = gaussian_tail(z[i])
        u[i] = flushed(gelu_of(z[i], tail), least)
        v[i] = flushed(gelu_backward_of(z[i], v[i], tail), least)


@compiled
def gelu_and_slope(z, v, least, u):
    """Writes GELU(z) to u, and multiplies v by the derivative."""
    share(_gelu_again, u.shape[0], team(u, COST * u.shape[0]), (z, v, least, u))


def float32_alike(z, v):
    """Whether z and v are dense float32 of one shape: gaussian_tail is accurate to float32."""
    return z.dtype.char == "f" and z.shape == v.shape and dense(z, v)


@twin(gelu_again, serves=float32_alike)
def _(z, v):
    u = np.empty_like(z)
    gelu_and_slope(z.reshape(-1), v.reshape(-1), flush_threshold(z), u.reshape(-1))
    return u
