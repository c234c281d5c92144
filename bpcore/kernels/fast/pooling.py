"""Pooling of images: a loop over the channels for each entry of the kernel at each place.

Where the places lie side by side, as tiles, as in Upsample, threads share rows instead of images, and nothing is written twice.
"""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import Placement
from bpcore.functional.numerics import PART
from bpcore.functional.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    upsample,
    upsample_backward,
)
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

MAX, MAX_BACKWARD, MEAN, MEAN_BACKWARD = range(4)


def geometry(placement: Placement) -> tuple[int, ...]:
    """Kernel, stride, dilation and the padding before, each vertical and horizontal."""
    (top, _), (left, _) = placement.padding
    return (*placement.kernel, *placement.stride, *placement.dilation, top, left)


@compiled
def _images(start, stop, kind, geometry, z, u, first):
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left = geometry
    zero = z.dtype.type(0)
    inverse_size = z.dtype.type(1) / z.dtype.type(kernel_h * kernel_w)
    for n in range(start, stop):
        for y in range(u.shape[1]):
            for x in range(u.shape[2]):
                empty = kind == MAX
                for i in range(kernel_h):
                    row = y * stride_h + i * dilation_h - top
                    if row < 0 or row >= z.shape[1]:
                        continue
                    for j in range(kernel_w):
                        column = x * stride_w + j * dilation_w - left
                        if column < 0 or column >= z.shape[2]:
                            continue
                        entry = np.int32(i * kernel_w + j)
                        if empty:
                            for c in range(u.shape[3]):
                                u[n, y, x, c] = z[n, row, column, c]
                                first[n, y, x, c] = entry
                            empty = False
                        elif kind == MAX:
                            for c in range(u.shape[3]):
                                seen, best = z[n, row, column, c], u[n, y, x, c]
                                more = (seen > best) | ((seen != seen) & (best == best))  # the first NaN stays
                                u[n, y, x, c] = seen if more else best
                                first[n, y, x, c] = entry if more else first[n, y, x, c]
                        elif kind == MAX_BACKWARD:
                            for c in range(u.shape[3]):
                                z[n, row, column, c] += u[n, y, x, c] if first[n, y, x, c] == entry else zero
                        elif kind == MEAN:
                            for c in range(u.shape[3]):
                                u[n, y, x, c] += z[n, row, column, c] * inverse_size
                        else:
                            for c in range(u.shape[3]):
                                z[n, row, column, c] += u[n, y, x, c] * inverse_size
                if empty:  # the kernel sees nothing but padding
                    u[n, y, x] = -np.inf
                    first[n, y, x] = kernel_h * kernel_w


@compiled
def pool(kind, geometry, z, u, first):
    """Forward: writes u and first for MAX, adds to u for MEAN. Backward: z and u are dz and v; adds to dz."""
    share(_images, z.shape[0], team(z, z.size), (kind, geometry, z, u, first))


def tiled(placement):
    """Whether the places of the kernel are tiles: none overlap, and there is nothing between them."""
    return placement.stride == placement.kernel and placement.dilation == (1, 1) and placement.padding == ((0, 0), (0, 0))


def covered(placement, v, h, w):
    """Whether the places are tiles, one for each of v, that cover an image of h x w pixels."""
    return tiled(placement) and (h, w) == (v.shape[1] * placement.kernel[0], v.shape[2] * placement.kernel[1])


@compiled
def _max_tiles(start, stop, z, u, first):
    for row in range(start, stop):
        n, y = row // u.shape[1], row % u.shape[1]
        for x in range(u.shape[2]):
            a, b = z[n, 2 * y, 2 * x], z[n, 2 * y, 2 * x + 1]
            d, e = z[n, 2 * y + 1, 2 * x], z[n, 2 * y + 1, 2 * x + 1]
            best, entry = u[n, y, x], first[n, y, x]
            for c in range(u.shape[3]):
                left = not (b[c] > a[c] or (b[c] != b[c] and a[c] == a[c]))  # the first NaN stays
                upper = a[c] if left else b[c]
                right = e[c] > d[c] or (e[c] != e[c] and d[c] == d[c])
                lower = e[c] if right else d[c]
                down = lower > upper or (lower != lower and upper == upper)
                best[c] = lower if down else upper
                entry[c] = (np.int32(3) if right else np.int32(2)) if down else (np.int32(0) if left else np.int32(1))


@compiled
def max_tiles(z, u, first):
    """`max_pool2d` with tiles of 2 x 2 pixels: writes u and first."""
    share(_max_tiles, u.shape[0] * u.shape[1], team(z, z.size), (z, u, first))


@compiled
def _spread_tiles(start, stop, tile, first, v, dz):
    height, width = tile
    for row in range(start, stop):
        n, y, i = row // dz.shape[1], row % dz.shape[1] // height, row % dz.shape[1] % height
        for x in range(v.shape[2]):
            up, entry = v[n, y, x], first[n, y, x]
            for j in range(width):
                own, d = np.int32(i * width + j), dz[n, row % dz.shape[1], x * width + j]
                for c in range(d.shape[0]):
                    d[c] = up[c] if entry[c] == own else v.dtype.type(0)


@compiled
def spread_tiles(tile, first, v, dz):
    """`max_pool2d_backward` with tiles that cover dz: writes it."""
    share(_spread_tiles, dz.shape[0] * dz.shape[1], team(dz, dz.size), (tile, first, v, dz))


@twin(max_pool2d, serves=COMPILED.dense)
def _(z, placement):
    shape = len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]
    u, first = np.empty(shape, z.dtype), np.empty(shape, np.int32)
    if placement.kernel == (2, 2) and tiled(placement):
        max_tiles(z, u, first)
        return u, first
    pool(MAX, geometry(placement), z, u, first)
    return u, first


def dense_v_int32_first(first, v, placement, h, w):
    """Whether v is dense, and `first` is int32 in one piece."""
    return COMPILED.dense(v) and first.flags.carray and first.dtype.char == "i"


@twin(max_pool2d_backward, serves=dense_v_int32_first)
def _(first, v, placement, h, w):
    shape = len(v), h, w, v.shape[3]
    if covered(placement, v, h, w):
        dz = np.empty(shape, v.dtype)
        spread_tiles(placement.kernel, first, v, dz)
        return dz
    dz = np.zeros(shape, v.dtype)
    pool(MAX_BACKWARD, geometry(placement), dz, v, first)
    return dz


@compiled
def _sum_tiles(start, stop, tile, scale, z, u):
    height, width = tile
    for row in range(start, stop):
        n, y = row // u.shape[1], row % u.shape[1]
        for x in range(u.shape[2]):
            total = u[n, y, x]
            if height == 2 and width == 2:
                a, b = z[n, 2 * y, 2 * x], z[n, 2 * y, 2 * x + 1]
                d, e = z[n, 2 * y + 1, 2 * x], z[n, 2 * y + 1, 2 * x + 1]
                for c in range(u.shape[3]):
                    total[c] = (a[c] + b[c] + d[c] + e[c]) * scale
                continue
            for i in range(height):
                for j in range(width):
                    entry = z[n, y * height + i, x * width + j]
                    if i == 0 and j == 0:
                        for c in range(u.shape[3]):
                            total[c] = entry[c] * scale
                    else:
                        for c in range(u.shape[3]):
                            total[c] += entry[c] * scale


@compiled
def sum_tiles(tile, scale, z, u):
    """Writes to u (n, h, w, c) the sums over the tiles of z, of this height and width, times `scale`."""
    share(_sum_tiles, u.shape[0] * u.shape[1], team(z, z.size), (tile, scale, z, u))


@compiled
def _fill_tiles(start, stop, tile, scale, z, u):
    height, width = tile
    for row in range(start, stop):
        n, y = row // u.shape[1], row % u.shape[1]
        for x in range(z.shape[2]):
            entry = z[n, y // height, x]
            for j in range(width):
                filled = u[n, y, x * width + j]
                for c in range(z.shape[3]):
                    filled[c] = entry[c] * scale


@compiled
def fill_tiles(tile, scale, z, u):
    """The adjoint of `sum_tiles`: fills each tile of u with the entry of z (n, h, w, c) times `scale`."""
    share(_fill_tiles, u.shape[0] * u.shape[1], team(u, u.size), (tile, scale, z, u))


def short_sums(z, placement):
    """Whether a mean has few numbers, which may be added one after the other, and z is dense."""
    return placement.size <= PART and COMPILED.dense(z)


@twin(avg_pool2d, serves=short_sums)
def _(z, placement):
    shape = len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]
    if tiled(placement):
        u = np.empty(shape, z.dtype)
        sum_tiles(placement.kernel, z.dtype.type(1 / placement.size), z, u)
        return u
    u = np.zeros(shape, z.dtype)
    pool(MEAN, geometry(placement), z, u, np.empty(u.shape, np.int32))
    return u


@twin(avg_pool2d_backward, serves=COMPILED.dense)
def _(v, placement, h, w):
    shape = len(v), h, w, v.shape[3]
    if covered(placement, v, h, w):
        dz = np.empty(shape, v.dtype)
        fill_tiles(placement.kernel, v.dtype.type(1 / placement.size), v, dz)
        return dz
    dz = np.zeros(shape, v.dtype)
    pool(MEAN_BACKWARD, geometry(placement), dz, v, np.empty(v.shape, np.int32))
    return dz


@twin(upsample, serves=COMPILED.dense)
def _(z, factor):
    n, h, w, c = z.shape
    u = np.empty((n, h * factor, w * factor, c), z.dtype)
    fill_tiles((factor, factor), z.dtype.type(1), z, u)
    return u


def short_sums_backward(v, factor):
    """As `short_sums`."""
    return factor * factor <= PART and COMPILED.dense(v)


@twin(upsample_backward, serves=short_sums_backward)
def _(v, factor):
    n, h, w, c = v.shape
    dz = np.empty((n, h // factor, w // factor, c), v.dtype)
    sum_tiles((factor, factor), v.dtype.type(1), v, dz)
    return dz
