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


def row_windows(padded, placement, places):
    """`sliding` as (n, rows of places, *kernel, columns of places · c) or, where these are apart, (..., columns, c)."""
    seen = sliding(padded, placement, places).transpose(0, 1, 3, 4, 2, 5)
    *shape, columns, c = seen.shape
    *strides, of_column, of_channel = seen.strides
    if of_column != c * of_channel:
        return seen
    return np.lib.stride_tricks.as_strided(seen, (*shape, columns * c), (*strides, of_channel))


def correlation(padded, W, placement, places):
    """u (n, *places, c) of an image with as many channels as W (kh, kw, 1, c)."""
    seen = row_windows(padded, placement, places)
    kernel = np.broadcast_to(W, (*W.shape[:2], places[1], W.shape[3])).reshape(*W.shape[:2], *seen.shape[4:])
    u = np.empty((len(padded), *places, W.shape[3]), padded.dtype)
    np.einsum("nyij...,ij...->ny...", seen, kernel, out=u.reshape(*u.shape[:2], *seen.shape[4:]))
    return u


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
    seen = row_windows(pad(repeated(z, W), placement), placement, places)
    parts = list(chunks(len(v), places[0], PART))
    total = np.empty((len(parts), *W.shape[:2], *seen.shape[4:]), z.dtype)
    v_rows = v.reshape(*v.shape[:2], *seen.shape[4:])
    for part, out in zip(parts, total, strict=True):
        np.einsum("nyij...,ny...->ij...", seen[part], v_rows[part], out=out)
    dW[...] = sum_over(sum_over(total, 0).reshape(*W.shape[:2], places[1], -1), 2).reshape(W.shape)
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
