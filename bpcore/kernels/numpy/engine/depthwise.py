"""Depthwise convolution, each channel for itself: np.einsum multiplies and adds up whole rows of images in one pass."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import Placement, chunks, pad
from bpcore.functional.numerics import PART, sum_over


def sliding(padded, placement, places):
    """A view (n, *places, *kernel, c) of the pixels that the kernel sees at each place."""
    of_image, of_row, of_column, of_channel = padded.strides
    (down, right), (dilation_h, dilation_w) = placement.stride, placement.dilation
    strides = (of_image, of_row * down, of_column * right, of_row * dilation_h, of_column * dilation_w, of_channel)
    shape = (len(padded), *places, *placement.kernel, padded.shape[3])
    return np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)


def correlation(padded, W, placement, places):
    """u (n, *places, c) of an image with as many channels as W (kh, kw, 1, c)."""
    kernel = np.broadcast_to(W, (*W.shape[:2], places[1], W.shape[3])).copy()  # for a row of places: W has no stride of 0 then
    u = np.empty((len(padded), *places, W.shape[3]), padded.dtype)
    return np.einsum("nyxijc,ijxc->nyxc", sliding(padded, placement, places), kernel, out=u)


def repeated(z, W):
    """z with each channel as often as it has kernels in W."""
    times = W.shape[3] // z.shape[3]
    return z if times == 1 else np.repeat(z, times, axis=3)


def depthwise(z, W, b, placement):
    """conv2d with a group for each channel of z."""
    u = correlation(pad(repeated(z, W), placement), W, placement, placement.outputs(*z.shape[1:3]))
    return u if b is None else np.add(u, np.tile(b, (u.shape[2], 1)), out=u)


def depthwise_backward(z, W, v, placement, dW, db, need_dz):
    """conv2d_backward with a group for each channel of z."""
    places = v.shape[1:3]
    seen = sliding(pad(repeated(z, W), placement), placement, places)
    parts = list(chunks(len(v), places[0], PART))
    total = np.empty((len(parts), *W.shape[:2], places[1], W.shape[3]), z.dtype)
    for part, out in zip(parts, total, strict=True):
        np.einsum("nyxijc,nyxc->ijxc", seen[part], v[part], out=out)
    dW[...] = sum_over(total, (0, 3)).reshape(W.shape)
    if db is not None:
        rows = sum_over(v.reshape(-1, places[1] * v.shape[3]), 0)
        db[...] = sum_over(rows.reshape(-1, v.shape[3]), 0)
    return spread(v, W, placement, z.shape) if need_dz else None


def spread(v, W, placement, shape):
    """dz (n, h, w, c): the correlation of v, its pixels as far apart as their places are, with W turned around."""
    n, h, w, c = shape
    (height, width), (down, right), (top, left) = placement.padded(h, w), placement.stride, (p[0] for p in placement.padding)
    below, beside = (d * (k - 1) for d, k in zip(placement.dilation, placement.kernel, strict=True))  # how far the kernel reaches
    apart = np.zeros((n, height + below, width + beside, v.shape[3]), v.dtype)
    apart[:, below : below + down * v.shape[1] : down, beside : beside + right * v.shape[2] : right] = v
    apart = apart[:, top : top + h + below, left : left + w + beside]
    dz = correlation(apart, W[::-1, ::-1], Placement(placement.kernel, dilation=placement.dilation), (h, w))
    return dz if dz.shape[3] == c else np.add.reduce(dz.reshape(n, h, w, c, -1), axis=4)
