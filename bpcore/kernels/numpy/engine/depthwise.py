"""Depthwise convolution, each channel for itself: np.einsum multiplies and adds up whole rows of images in one pass.

A few images at a time, so that they stay in the cache from one pass to the next.
"""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import Placement, chunks
from bpcore.functional.numerics import PART, sum_over
from bpcore.kernels.numpy.engine.blocks import BLOCK, aligned

IMAGES = 2 * BLOCK  # numbers of an image's outputs at a time


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


class Among:
    """Images of this size and c channels among zeros (n, *outer, c): from `start` on, their pixels `apart`."""

    def __init__(self, n, outer, c, dtype, size, start, apart=(1, 1)):
        self.zeros = np.zeros((n, *outer, c), dtype)
        rows, columns = (slice(a, a + s * (k - 1) + 1, s) for a, s, k in zip(start, apart, size, strict=True))
        self.images = self.zeros[:, rows, columns]

    def put(self, images):
        """Puts up to n images there, each channel as often as c needs it."""
        times = self.images.shape[3] // images.shape[3]
        self.images[: len(images)] = images if times == 1 else np.repeat(images, times, axis=3)


def padded(n, z, W, placement):
    """For n images of z, with their padding."""
    size, start = z.shape[1:3], (before for before, _ in placement.padding)
    return Among(n, placement.padded(*size), W.shape[3], z.dtype, size, start)


def spread(n, z, v, placement):
    """For n images of v, their pixels as far apart as their places in z are; and its view that starts where z does.

    At a pixel of z, the kernel turned around sees there the places that saw this pixel.
    """
    reach = [d * (k - 1) for d, k in zip(placement.dilation, placement.kernel, strict=True)]
    size, (top, left) = z.shape[1:3], (before for before, _ in placement.padding)
    outer = [a + b for a, b in zip(placement.padded(*size), reach, strict=True)]
    among = Among(n, outer, v.shape[3], v.dtype, v.shape[1:3], reach, placement.stride)
    return among, among.zeros[:, top : top + size[0] + reach[0], left : left + size[1] + reach[1]]


def by_columns(W, seen, columns):
    """W (kh, kw, 1, c) once for each column of places, its last axes as those of `seen`."""
    return np.broadcast_to(W, (*W.shape[:2], columns, W.shape[3])).reshape(*W.shape[:2], *seen.shape[4:])


def correlate(seen, kernel, u):
    """Writes u (n, *places, c): the sums over the kernel's entries of what they see, times them."""
    np.einsum("nyij...,ij...->ny...", seen, kernel, out=u.reshape(*u.shape[:2], *seen.shape[4:]))


def in_parts(u):
    """The images of u, a few at a time, of no more than PART rows unless there is only one: slices, and how many at most."""
    parts = list(chunks(len(u), max(u[0].size, u.shape[1] * (IMAGES // PART)), IMAGES))
    return parts, parts[0].stop


def depthwise(z, W, b, placement):
    """conv2d with a group for each channel of z."""
    places = placement.outputs(*z.shape[1:3])
    u = aligned((len(z), *places, W.shape[3]), z.dtype)
    parts, n = in_parts(u)
    among = padded(n, z, W, placement)
    seen = row_windows(among.zeros, placement, places)
    kernel, b = by_columns(W, seen, places[1]), None if b is None else np.tile(b, (places[1], 1))
    for part in parts:
        among.put(z[part])
        correlate(seen[: part.stop - part.start], kernel, u[part])
        if b is not None:
            np.add(u[part], b, out=u[part])
    return u


def depthwise_backward(z, W, v, placement, dW, db, need_dz):
    """conv2d_backward with a group for each channel of z."""
    places, c = v.shape[1:3], W.shape[3]
    parts, n = in_parts(v)
    among = padded(n, z, W, placement)
    seen = row_windows(among.zeros, placement, places)
    v_rows = v.reshape(*v.shape[:2], *seen.shape[4:])
    dW_parts, db_parts = np.empty((len(parts), *W.shape[:2], c), z.dtype), np.empty((len(parts), places[1], c), z.dtype)
    columns = aligned((*W.shape[:2], *seen.shape[4:]), z.dtype)
    for part, dW_part, db_part in zip(parts, dW_parts, db_parts, strict=True):
        among.put(z[part])
        for entry in np.ndindex(W.shape[:2]):
            np.einsum("ny...,ny...->...", seen[: part.stop - part.start, :, *entry], v_rows[part], out=columns[entry])
        dW_part[...] = sum_over(columns.reshape(*W.shape[:2], places[1], c), 2)
        if db is not None:
            db_part[...] = sum_over(v[part].reshape(-1, places[1], c), 0)
    dW[...] = sum_over(dW_parts, 0).reshape(W.shape)
    if db is not None:
        db[...] = sum_over(db_parts, (0, 1))
    return of_images(z, W, v, placement) if need_dz else None


def of_images(z, W, v, placement):
    """dz."""
    (h, w, c), times = z.shape[1:], W.shape[3] // z.shape[3]
    dz = aligned(z.shape, z.dtype)
    parts, n = in_parts(v)
    among, around = spread(n, z, v, placement)
    around = row_windows(around, Placement(placement.kernel, dilation=placement.dilation), (h, w))
    kernel = by_columns(W[::-1, ::-1], around, w)
    several = np.empty((n, h, w, c, times), z.dtype) if times > 1 else None
    for part in parts:
        images = part.stop - part.start
        among.put(v[part])
        correlate(around[:images], kernel, dz[part] if times == 1 else several[:images].reshape(images, h, w, -1))
        if times > 1:
            np.add.reduce(several[:images], axis=4, out=dz[part])
    return dz
