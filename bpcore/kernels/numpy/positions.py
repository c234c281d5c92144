"""Rotations by the position of a token: pairs of features as complex numbers."""

from __future__ import annotations

import functools

import numpy as np

from bpcore.functional.positions import angles, rotate, rotate_heads
from bpcore.kernels.numpy.engine.blocks import COMPLEX
from bpcore.primitive import twin


@functools.lru_cache(maxsize=8)
def turns(tokens, d, dtype, sign):
    """e^(i · sign · angle): (tokens, d / 2). Read, never written."""
    angle = angles(tokens, d, np.empty(0, dtype))
    turn = np.empty(angle.shape, COMPLEX[dtype])
    turn.real, turn.imag = np.cos(angle), sign * np.sin(angle)
    turn.flags.writeable = False
    return turn


def as_pairs(z):
    """Each two numbers of z's last axis as one that is complex."""
    return np.ascontiguousarray(z).view(COMPLEX[z.dtype])


def pairs(z, sign):
    """Whether z, float32 or float64, has tokens with an even number of features."""
    return z.dtype in COMPLEX and z.ndim > 1 and z.shape[-1] % 2 == 0


def pairs_of_heads(qkv, heads, sign):
    """Whether qkv, float32 or float64, has heads with an even number of features."""
    return qkv.dtype in COMPLEX and qkv.ndim == 3 and qkv.shape[-1] % (6 * heads) == 0


@twin(rotate, serves=pairs)
def _(z, sign):
    return np.multiply(as_pairs(z), turns(*z.shape[-2:], z.dtype, sign)).view(z.dtype)


@twin(rotate_heads, serves=pairs_of_heads)
def _(qkv, heads, sign):
    n, tokens, width = qkv.shape
    d = width // (3 * heads)
    z = as_pairs(qkv).reshape(n, tokens, 3 * heads, d // 2)
    u = np.empty_like(z)
    np.multiply(z[:, :, : 2 * heads], turns(tokens, d, qkv.dtype, sign)[:, None], out=u[:, :, : 2 * heads])
    u[:, :, 2 * heads :] = z[:, :, 2 * heads :]
    return u.reshape(n, tokens, width // 2).view(qkv.dtype)
