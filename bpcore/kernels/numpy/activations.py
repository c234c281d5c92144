"""Activations, in place and in blocks that fit in the cache."""

from __future__ import annotations

import inspect

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
from bpcore.kernels.numpy.engine.blocks import BLOCK, SMALL, ZEROS, aligned, flush_in_place, flush_positive, masked
from bpcore.kernels.numpy.engine.exponential import exp_minus, gelu_backward_block, gelu_block
from bpcore.primitive import definition, record_of, twin

LIMIT = {4: 88.0, 8: 709.0}  # by a number's bytes: e^88 is finite in float32, and the sigmoid of -88 is flushed
LEAST = {4: 43.0, 8: 354.0}  # up to it, the sigmoid of -z is not flushed
PIECE = 2 * BLOCK  # numbers at a time: of fewer, NumPy's overhead shows


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
    """Register a twin: `run(z, u, s, t)` or `run(z, v, u, s, t)`, a constant before u, writes a block of u, flushed.

    s and t are scratch, as many as it takes; with few numbers, as many as have no default. Of a dtype that is not in `dtypes`
    the definition computes the blocks.
    """
    more = list(inspect.signature(run).parameters.values())[len(record_of(activation).signature.parameters) + 1 :]
    scratch, needed = range(len(more)), range(sum(x.default is x.empty for x in more))

    @twin(activation, serves=alike)
    def _(z, /, *rest):
        shape, dtype = z.shape, z.dtype
        if z.size <= PIECE and dtype.char in dtypes:
            u = np.empty(shape, dtype)
            run(z, *rest, u, *[np.empty(shape, dtype) for _ in needed])
            return u
        vectors, constants = [z.reshape(-1)], []
        for x in rest:
            vectors.append(x.reshape(-1)) if isinstance(x, np.ndarray) else constants.append(x)
        u = aligned((z.size,), dtype)
        more = [aligned((PIECE,), dtype) for _ in scratch]
        for i in range(0, z.size, PIECE):
            block = slice(i, i + PIECE)
            piece, u_block = [x[block] for x in vectors], u[block]
            if dtype.char in dtypes:
                run(*piece, *constants, u_block, *(s[: len(u_block)] for s in more))
            else:
                u_block[...] = definition(activation)(*piece, *constants)
        return u.reshape(shape)


def leaky_relu_block(z, slope, u):
    """The larger one of z and slope · z, but for slope 0, whose product with ∞ is NaN."""
    if slope > 0:
        np.maximum(z, np.multiply(z, slope, out=u), out=u)
    else:
        leaky_relu_backward_block(z, z, slope, u)


def leaky_relu_backward_block(u, v, slope, dz):
    """v max(1{u > 0}, slope)."""
    np.copyto(dz, u > 0)
    np.multiply(np.maximum(dz, slope, out=dz), v, out=dz)


def logistic(z, out, scratch=None):
    """Writes 1 / (1 + e⁻ᶻ) to out, flushed."""
    exp_minus(z, out)
    return flush_positive(np.reciprocal(np.add(out, 1, out=out), out=out), scratch)


def sigmoid_block(z, u):
    """1 / (1 + e⁻ᶻ)."""
    logistic(z, u)


def sigmoid_backward_block(u, v, dz, s=None):
    """v u (1 - u)."""
    np.multiply(v, u, out=dz)
    flush_in_place(np.multiply(dz, np.subtract(1, u, out=s), out=dz), s)


def tanh_block(z, u, s=None):
    """tanh(z)."""
    flush_in_place(np.tanh(z, out=u), s)


def tanh_backward_block(u, v, dz, s=None):
    """v (1 - u²)."""
    np.subtract(1, np.multiply(u, u, out=dz), out=dz)
    flush_in_place(np.multiply(dz, v, out=dz), s)


def softplus_block(z, u, s=None):
    """max(z, 0) + log(1 + e^-|z|)."""
    np.exp(np.negative(np.abs(z, out=u), out=u), out=u)
    flush_positive(np.add(np.log1p(u, out=u), np.maximum(z, 0, out=s), out=u), s)


def softplus_backward_block(z, v, dz, s=None):
    """v / (1 + e⁻ᶻ)."""
    exp_minus(z, dz)
    flush_in_place(np.divide(v, np.add(dz, 1, out=dz), out=dz), s)


def limited(z, out):
    """Writes z between -LIMIT and LIMIT to out, where the sigmoid and its products with z are 0, and where 1 and z."""
    limit = LIMIT[z.itemsize]
    return np.maximum(np.minimum(z, limit, out=out), -limit, out=out)


def silu_block(z, u, s):
    """z / (1 + e⁻ᶻ)."""
    if not usual(z):
        z = np.maximum(z, -LIMIT[z.itemsize], out=s)
    exp_minus(z, u)
    flush_in_place(np.divide(z, np.add(u, 1, out=u), out=u), s)


def usual(z):
    """Whether all z are between -LEAST and LIMIT. It is not asked of a few numbers, for which the answer is no."""
    if z.size <= SMALL:
        return False
    return np.minimum.reduce(z, axis=None) >= -LEAST[z.itemsize] and np.maximum.reduce(z, axis=None) <= LIMIT[z.itemsize]


def silu_backward_block(z, v, dz, s, t):
    """v s (1 + z s e⁻ᶻ), s = 1 / (1 + e⁻ᶻ)."""
    whole = usual(z)
    if not whole:
        z = limited(z, t)
    exp_minus(z, dz)
    np.reciprocal(np.add(dz, 1, out=s), out=s)
    if not whole:
        flush_positive(s)
    np.multiply(np.multiply(dz, s, out=dz), z, out=dz)
    np.multiply(np.add(dz, 1, out=dz), s, out=dz)
    flush_in_place(np.multiply(dz, v, out=dz), s)


def elu_backward_block(u, v, alpha, dz, s=None):
    """v where u > 0, (u + α) v elsewhere."""
    np.add(np.minimum(u, 0, out=dz), alpha, out=dz)
    if alpha != 1:
        np.add(dz, np.multiply(u > 0, u.dtype.type(1 - alpha), out=s), out=dz)
    flush_in_place(np.multiply(dz, v, out=dz), s)


def gelu_tanh_gate(z, s, t):
    """Writes z² to t and the sigmoid of 2 √(2/π) (z + 0.044715 z³), flushed, to s."""
    np.multiply(z, z, out=t)
    np.multiply(t, 2 * TANH_SCALE * TANH_CUBE, out=s)
    np.add(s, 2 * TANH_SCALE, out=s)
    np.multiply(s, z, out=s)
    logistic(s, s)


def gelu_tanh_block(z, u, s, t):
    """z s, s the sigmoid of `gelu_tanh_gate`."""
    z = np.maximum(z, -LIMIT[z.itemsize], out=u)
    gelu_tanh_gate(z, s, t)
    flush_in_place(np.multiply(z, s, out=u), s)


def gelu_tanh_backward_block(z, v, dz, s, t):
    """v s (1 + z (1 - s) (a + b z²)) with a = 2 √(2/π) and b = 3 · 0.044715 a."""
    z = limited(z, dz)
    gelu_tanh_gate(z, s, t)
    np.multiply(t, 6 * TANH_SCALE * TANH_CUBE, out=t)
    np.add(t, 2 * TANH_SCALE, out=t)
    np.multiply(z, t, out=dz)
    np.multiply(dz, np.subtract(1, s, out=t), out=dz)
    np.add(dz, 1, out=dz)
    flush_in_place(np.multiply(dz, np.multiply(s, v, out=s), out=dz), s)


for _activation, _run in {
    elu_backward: elu_backward_block,
    gelu_tanh: gelu_tanh_block,
    gelu_tanh_backward: gelu_tanh_backward_block,
    leaky_relu: leaky_relu_block,
    leaky_relu_backward: leaky_relu_backward_block,
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
    u, vectors = aligned(z.shape, z.dtype), [z.reshape(-1), v.reshape(-1)]
    more = [aligned((min(z.size, PIECE),), z.dtype) for _ in range(3)]
    for i in range(0, z.size, PIECE):
        z_block, v_block, u_block = (x[i : i + PIECE] for x in (*vectors, u.reshape(-1)))
        dz, *scratch = (s[: len(z_block)] for s in more)
        gelu_block(z_block, u_block, *scratch)
        gelu_backward_block(z_block, v_block, dz, *scratch)
        v_block[...] = dz
    return u
