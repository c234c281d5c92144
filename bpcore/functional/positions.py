"""The position of a token in its sequence, as sines and cosines to be added, or as a rotation of its features."""

from __future__ import annotations

import math

from bpcore.array import Array, device, is_half, namespace
from bpcore.functional.arithmetic import add
from bpcore.functional.attention import pack, unpack
from bpcore.primitive import primitive

__all__ = ["add_sinusoids", "rotate", "rotate_heads", "sinusoids"]


def sinusoids(tokens: int, d: int, like: Array) -> Array:
    """Positions as sines and cosines of d / 2 wavelengths from 2π to 10000 · 2π: (tokens, d).

    Vaswani et al., 2017
    """
    xp = namespace(like)
    angle = angles(tokens, d, like)
    pair = xp.stack((xp.sin(angle), xp.cos(angle)), axis=-1)  # (tokens, d / 2, 2)
    return xp.astype(xp.reshape(pair, (tokens, d)), like.dtype, copy=False)


def angles(tokens: int, d: int, like: Array) -> Array:
    """t · 10000^(-2 i / d): (tokens, d / 2), in the dtype of `like`, or in float32 if that is float16."""
    xp = namespace(like)
    dtype = xp.float32 if is_half(like) else like.dtype
    rate = xp.exp(xp.arange(d // 2, dtype=dtype, device=device(like)) * (-2 * math.log(10000.0) / d))
    token = xp.arange(tokens, dtype=dtype, device=device(like))
    return xp.expand_dims(token, axis=1) * xp.expand_dims(rate, axis=0)


@primitive()
def add_sinusoids(z: Array) -> Array:
    """z (..., tokens, d) + `sinusoids`."""
    return add(z, sinusoids(z.shape[-2], z.shape[-1], z))


@primitive(float32=True)
def rotate(z: Array, sign: float) -> Array:
    """Rotates each pair (z_2i, z_2i+1) of z (..., tokens, d) by sign · t · 10000^(-2 i / d), t the position of the token.

    The adjoint of a rotation is the rotation back: B[rotate(·, 1), z](v) = rotate(v, -1).

    Su et al., 2021
    """
    xp = namespace(z)
    angle = angles(z.shape[-2], z.shape[-1], z)
    cos = xp.cos(angle)
    sin = sign * xp.sin(angle)
    pairs = xp.reshape(z, (*z.shape[:-1], z.shape[-1] // 2, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    return xp.reshape(xp.stack((a * cos - b * sin, a * sin + b * cos), axis=-1), z.shape)


@primitive(float32=True)
def rotate_heads(qkv: Array, heads: int, sign: float) -> Array:
    """qkv (see `attention`) with queries and keys rotated by their positions, in each head; sign as in `rotate`."""
    q, k, values = unpack(qkv, heads)
    return pack(rotate(q, sign), rotate(k, sign), values)
