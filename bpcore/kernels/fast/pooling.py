"""Pooling of images: a loop over the channels for each entry of the kernel at each place."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import Placement
from bpcore.functional.numerics import PART
from bpcore.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
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
                empty = True
                for i in range(kernel_h):
                    row = y * stride_h + i * dilation_h - top
                    if row < 0 or row >= z.shape[1]:
                        continue
                    for j in range(kernel_w):
                        column = x * stride_w + j * dilation_w - left
                        if column < 0 or column >= z.shape[2]:
                            continue
                        entry = np.int32(i * kernel_w + j)
                        if kind == MAX and empty:
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


@compiled
def pool(kind, geometry, z, u, first):
    """Forward: updates u, for MAX also first, from z. Backward: z and u are dz and v; adds to dz."""
    share(_images, z.shape[0], team(z, z.size), (kind, geometry, z, u, first))


@twin(max_pool2d, serves=COMPILED.dense)
def _(z, placement):
    shape = len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]
    u = np.full(shape, -np.inf, z.dtype)
    first = np.full(shape, placement.size, np.int32)
    pool(MAX, geometry(placement), z, u, first)
    return u, first


def dense_v_int32_first(first, v, placement, h, w):
    """Whether v is dense, and `first` is int32 in one piece."""
    return COMPILED.dense(v) and first.flags.carray and first.dtype.char == "i"


@twin(max_pool2d_backward, serves=dense_v_int32_first)
def _(first, v, placement, h, w):
    dz = np.zeros((len(v), h, w, v.shape[3]), v.dtype)
    pool(MAX_BACKWARD, geometry(placement), dz, v, first)
    return dz


def short_sums(z, placement):
    """Whether a mean has few numbers, which may be added one after the other, and z is dense."""
    return placement.size <= PART and COMPILED.dense(z)


@twin(avg_pool2d, serves=short_sums)
def _(z, placement):
    u = np.zeros((len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]), z.dtype)
    pool(MEAN, geometry(placement), z, u, np.empty(u.shape, np.int32))
    return u


@twin(avg_pool2d_backward, serves=COMPILED.dense)
def _(v, placement, h, w):
    dz = np.zeros((len(v), h, w, v.shape[3]), v.dtype)
    pool(MEAN_BACKWARD, geometry(placement), dz, v, np.empty(v.shape, np.int32))
    return dz
