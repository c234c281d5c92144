"""ReLU and GELU, in place and in blocks."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.activations import gelu, gelu_backward, relu, relu_backward
from bpcore.kernels.numpy.engine.blocks import BLOCK, ZEROS, blocks, flush_in_place, masked
from bpcore.primitive import definition, twin

# Φ(-a) = e^(-a²/2) t P(t) with t = 1 / (1 + TAIL_RATE a) for 0 <= a <= FAR. The coefficients of P, from the highest power down,
# were fitted by weighted least squares; the relative error is below 1.2e-7, as large as rounding to float32.
TAIL_RATE = 0.3
FAR = 14.5  # beyond, e^(-a²/2) is 0 in float32
TAIL = (0.0361950307, -0.159378986, 0.210119467, -0.0571682769, 0.130416898, 0.099347, 0.120845549, 0.119623262)


@twin(relu)
def _(z):
    return np.maximum(z, ZEROS.get(z.dtype, 0))


@twin(relu_backward)
def _(u, v):
    below = np.less_equal(u, ZEROS.get(u.dtype, 0))
    return masked(v, np.logical_not(below, out=below))


def gaussian_tail(z, a, e, q):
    """Writes min(|z|, FAR) to a, e^(-a²/2) to e and Φ(-a) to q. float32."""
    np.clip(np.abs(z, out=a), 0, FAR, out=a)
    t = np.multiply(a, TAIL_RATE, out=e)
    np.add(t, 1, out=t)
    np.divide(1, t, out=t)
    np.multiply(t, TAIL[0], out=q)
    for c in TAIL[1:]:
        np.add(q, c, out=q)
        np.multiply(q, t, out=q)
    np.multiply(a, a, out=e)
    np.multiply(e, -0.5, out=e)
    np.exp(e, out=e)
    np.multiply(q, e, out=q)


def in_blocks(run, primitive, *inputs):
    """u in the shape of the inputs: for float32 by `run(*inputs, u, a, e)` on blocks, a and e scratch; else by the definition."""
    flat = [x.reshape(-1) for x in inputs]
    u = np.empty(inputs[0].size, inputs[0].dtype)
    second = np.empty(min(u.size, BLOCK), u.dtype)
    for *piece, u_block, first in blocks(*flat, u):
        if u.dtype == np.float32:
            run(*piece, u_block, first, second[: first.size])
        else:
            u_block[...] = definition(primitive)(*piece)
    return u.reshape(inputs[0].shape)


def gelu_block(z, u, a, e):
    """z Φ(z) = max(z, 0) - a Φ(-a)."""
    gaussian_tail(z, a, e, u)
    np.multiply(u, a, out=u)
    np.clip(z, 0, None, out=a)
    flush_in_place(np.subtract(a, u, out=u))


@twin(gelu)
def _(z):
    return in_blocks(gelu_block, gelu, z)


def gelu_backward_block(z, v, u, a, e):
    """(Φ(z) + z φ(z)) v = (½ + ½ s - s (Φ(-a) - a φ(a))) v, s = sign(z)."""
    gaussian_tail(z, a, e, u)
    np.multiply(a, e, out=a)
    np.multiply(a, 1 / math.sqrt(2 * math.pi), out=a)
    np.subtract(u, a, out=u)
    s = np.sign(z, out=a)
    np.multiply(u, s, out=u)
    np.multiply(s, 0.5, out=s)
    np.add(s, 0.5, out=s)
    np.subtract(s, u, out=u)
    flush_in_place(np.multiply(u, v, out=u))


@twin(gelu_backward)
def _(z, v):
    return in_blocks(gelu_backward_block, gelu_backward, z, v)
