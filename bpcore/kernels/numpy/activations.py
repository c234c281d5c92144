"""Activations, in place and in blocks that fit in the cache."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.activations import (
    TANH_CUBE,
    TANH_SCALE,
    elu_backward,
    gelu,
    gelu_again,
    gelu_backward,
    gelu_tanh,
    gelu_tanh_backward,
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
from bpcore.kernels.numpy.engine.blocks import BLOCK, ZEROS, blocks, flush_in_place, flush_positive, masked
from bpcore.primitive import definition, twin

# Φ(-a) = e^(-a²/2) t P(t) with t = 1 / (1 + TAIL_RATE a) for 0 <= a <= FAR. The coefficients of P, from the highest power down,
# were fitted by weighted least squares; the relative error is below 1.2e-7, as large as rounding to float32.
TAIL_RATE = 0.3
FAR = 14.5  # beyond, e^(-a²/2) is 0 in float32
TAIL = (0.0361950307, -0.159378986, 0.210119467, -0.0571682769, 0.130416898, 0.099347, 0.120845549, 0.119623262)
LIMIT = {4: 88.0, 8: 709.0}  # by a number's bytes: e^88 is finite in float32, and the sigmoid of -88 is flushed


@twin(relu)
def _(z):
    return np.maximum(z, ZEROS.get(z.dtype, 0))


@twin(relu_backward)
def _(u, v):
    below = np.less_equal(u, ZEROS.get(u.dtype, 0))
    return masked(v, np.logical_not(below, out=below))


def alike(first, /, *others):
    """Whether the arrays have one shape, and one dtype: float32 or float64."""
    dtype, shape = first.dtype, first.shape
    for x in others:
        if isinstance(x, np.ndarray) and (x.dtype != dtype or x.shape != shape):
            return False
    return dtype.char in "fd"


def register(activation, run, dtypes="fd"):
    """Register a twin: `run(z, u, s, t)` or `run(z, v, u, s, t)`, a constant before u, writes a block of u; s and t are scratch.

    It flushes u. Of a dtype that is not in `dtypes` the definition computes the blocks.
    """

    @twin(activation, serves=alike)
    def _(z, /, *rest):
        if z.size <= BLOCK and z.dtype.char in dtypes:
            shape, dtype = z.shape, z.dtype
            u = np.empty(shape, dtype)
            run(z, *rest, u, np.empty(shape, dtype), np.empty(shape, dtype))
            return u
        vectors, constants = [z.reshape(-1)], []
        for x in rest:
            vectors.append(x.reshape(-1)) if isinstance(x, np.ndarray) else constants.append(x)
        u = np.empty(z.size, z.dtype)
        second = np.empty(min(u.size, BLOCK), u.dtype)
        for *piece, u_block, first in blocks(*vectors, u):
            if z.dtype.char in dtypes:
                run(*piece, *constants, u_block, first, second[: first.size])
            else:
                u_block[...] = definition(activation)(*piece, *constants)
        return u.reshape(z.shape)


def limited(z, out):
    """Writes z between -LIMIT and LIMIT to out, where the sigmoid and its products with z are 0, and where 1 and z."""
    return np.clip(z, -LIMIT[z.itemsize], LIMIT[z.itemsize], out=out)


def logistic(z, out):
    """Writes 1 / (1 + e⁻ᶻ) to out, flushed, for z from -LIMIT."""
    np.exp(np.negative(z, out=out), out=out)
    return flush_positive(np.reciprocal(np.add(out, 1, out=out), out=out))


def sigmoid_block(z, u, s, t):
    """1 / (1 + e⁻ᶻ)."""
    logistic(limited(z, u), u)


def sigmoid_backward_block(u, v, dz, s, t):
    """v u (1 - u)."""
    np.multiply(v, u, out=dz)
    flush_in_place(np.multiply(dz, np.subtract(1, u, out=s), out=dz))


def tanh_block(z, u, s, t):
    """tanh(z)."""
    flush_in_place(np.tanh(z, out=u))


def tanh_backward_block(u, v, dz, s, t):
    """v (1 - u²)."""
    np.subtract(1, np.multiply(u, u, out=dz), out=dz)
    flush_in_place(np.multiply(dz, v, out=dz))


def softplus_block(z, u, s, t):
    """max(z, 0) + log(1 + e^-|z|)."""
    np.exp(np.negative(np.abs(z, out=u), out=u), out=u)
    flush_positive(np.add(np.log1p(u, out=u), np.maximum(z, 0, out=s), out=u))


def softplus_backward_block(z, v, dz, s, t):
    """sigmoid(z) v."""
    flush_in_place(np.multiply(logistic(limited(z, dz), dz), v, out=dz))


def silu_block(z, u, s, t):
    """z / (1 + e⁻ᶻ)."""
    np.clip(z, -LIMIT[z.itemsize], None, out=s)
    np.exp(np.negative(s, out=u), out=u)
    flush_in_place(np.divide(s, np.add(u, 1, out=u), out=u))


def silu_backward_block(z, v, dz, s, t):
    """v s (1 + z (1 - s)), s = sigmoid(z)."""
    z = limited(z, t)
    logistic(z, s)
    np.subtract(1, s, out=dz)
    np.add(np.multiply(dz, z, out=dz), 1, out=dz)
    flush_in_place(np.multiply(dz, np.multiply(s, v, out=s), out=dz))


def elu_backward_block(u, v, alpha, dz, s, t):
    """v where u > 0, (u + α) v elsewhere."""
    np.add(np.minimum(u, 0, out=dz), alpha, out=dz)
    if alpha != 1:
        np.add(dz, np.multiply(u > 0, u.dtype.type(1 - alpha), out=s), out=dz)
    flush_in_place(np.multiply(dz, v, out=dz))


def gelu_tanh_gate(z, s, t):
    """Writes z² to t and the sigmoid of 2 √(2/π) (z + 0.044715 z³), flushed, to s."""
    np.multiply(z, z, out=t)
    np.multiply(t, 2 * TANH_SCALE * TANH_CUBE, out=s)
    np.add(s, 2 * TANH_SCALE, out=s)
    np.multiply(s, z, out=s)
    logistic(limited(s, s), s)


def gelu_tanh_block(z, u, s, t):
    """z s, s the sigmoid of `gelu_tanh_gate`."""
    z = np.clip(z, -LIMIT[z.itemsize], None, out=u)
    gelu_tanh_gate(z, s, t)
    flush_in_place(np.multiply(u, s, out=u))


def gelu_tanh_backward_block(z, v, dz, s, t):
    """v s (1 + z (1 - s) (a + b z²)) with a = 2 √(2/π) and b = 3 · 0.044715 a."""
    z = limited(z, dz)
    gelu_tanh_gate(z, s, t)
    np.multiply(t, 6 * TANH_SCALE * TANH_CUBE, out=t)
    np.add(t, 2 * TANH_SCALE, out=t)
    np.multiply(z, t, out=dz)
    np.multiply(dz, np.subtract(1, s, out=t), out=dz)
    np.add(dz, 1, out=dz)
    flush_in_place(np.multiply(dz, np.multiply(s, v, out=s), out=dz))


def gaussian_tail(z, a, e, q):
    """Writes min(|z|, FAR) to a, e^(-a²/2) to e and Φ(-a) to q. float32."""
    np.minimum(np.abs(z, out=a), FAR, out=a)
    t = np.multiply(a, TAIL_RATE, out=e)
    np.reciprocal(np.add(t, 1, out=t), out=t)
    np.multiply(t, TAIL[0], out=q)
    for c in TAIL[1:]:
        np.add(q, c, out=q)
        np.multiply(q, t, out=q)
    np.multiply(a, a, out=e)
    np.multiply(e, -0.5, out=e)
    np.multiply(q, np.exp(e, out=e), out=q)


def gelu_block(z, u, a, e):
    """z Φ(z) = max(z, 0) - a Φ(-a)."""
    gaussian_tail(z, a, e, u)
    np.multiply(u, a, out=u)
    flush_in_place(np.subtract(np.maximum(z, 0, out=a), u, out=u))


def gelu_backward_block(z, v, u, a, e):
    """(Φ(z) + z φ(z)) v = (½ + s (½ - Φ(-a) + a φ(a))) v, s = sign(z), without digits that cancel."""
    gaussian_tail(z, a, e, u)
    times_slope(z, v, u, a, e, u)


def times_slope(z, v, q, a, e, out):
    """Writes `gelu_backward_block` to out, from what `gaussian_tail` wrote to a, e and q."""
    np.multiply(a, e, out=a)
    np.multiply(a, 1 / math.sqrt(2 * math.pi), out=a)
    np.subtract(q, a, out=q)
    s = np.sign(z, out=a)
    np.multiply(q, s, out=q)
    np.multiply(s, 0.5, out=s)
    np.add(s, 0.5, out=s)
    np.subtract(s, q, out=q)
    flush_in_place(np.multiply(q, v, out=out))


for _activation, _run in {
    elu_backward: elu_backward_block,
    gelu_tanh: gelu_tanh_block,
    gelu_tanh_backward: gelu_tanh_backward_block,
    sigmoid: sigmoid_block,
    sigmoid_backward: sigmoid_backward_block,
    silu: silu_block,
    silu_backward: silu_backward_block,
    softplus: softplus_block,
    softplus_backward: softplus_backward_block,
    tanh: tanh_block,
    tanh_backward: tanh_backward_block,
}.items():
    register(_activation, _run)
register(gelu, gelu_block, "f")
register(gelu_backward, gelu_backward_block, "f")


@twin(gelu_again, serves=alike)
def _(z, v):
    if z.dtype.char != "f" or not v.flags.c_contiguous:
        return definition(gelu_again)(z, v)
    u = np.empty(z.shape, z.dtype)
    scratch = np.empty((3, min(z.size, BLOCK)), z.dtype)
    for z_block, v_block, u_block, q in blocks(z.reshape(-1), v.reshape(-1), u.reshape(-1)):
        a, e, above = scratch[:, : q.size]
        gaussian_tail(z_block, a, e, q)
        np.multiply(q, a, out=u_block)
        flush_in_place(np.subtract(np.maximum(z_block, 0, out=above), u_block, out=u_block))
        times_slope(z_block, v_block, q, a, e, v_block)
    return u
