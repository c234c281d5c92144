"""Pooling of images: for each entry of the kernel at each place, a loop over the channels."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import Placement
from bpcore.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.primitive import twin

MAX, MAX_BACKWARD, MEAN, MEAN_BACKWARD = range(4)


def numbers(placement: Placement) -> tuple[int, ...]:
    """The kernel, stride, dilation and padding before, each vertical and horizontal."""
    (top, _), (left, _) = placement.padding
    return (*placement.kernel, *placement.stride, *placement.dilation, top, left)


@compiled
def _images(start, stop, what, place, z, u, first):
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left = place
    zero, share_of = z.dtype.type(0), z.dtype.type(1) / z.dtype.type(kernel_h * kernel_w)
    for n in range(start, stop):
        for y in range(u.shape[1]):
            for x in range(u.shape[2]):
                for i in range(kernel_h):
                    row = y * stride_h + i * dilation_h - top
                    if row < 0 or row >= z.shape[1]:
                        continue
                    for j in range(kernel_w):
                        column = x * stride_w + j * dilation_w - left
                        if column < 0 or column >= z.shape[2]:
                            continue
                        entry = np.int32(i * kernel_w + j)
                        if what == MAX:
                            for c in range(u.shape[3]):
                                seen, best = z[n, row, column, c], u[n, y, x, c]
                                more = (seen > best) | (seen != seen)  # a NaN stays one
                                u[n, y, x, c] = seen if more else best
                                first[n, y, x, c] = entry if more else first[n, y, x, c]
                        elif what == MAX_BACKWARD:
                            for c in range(u.shape[3]):
                                z[n, row, column, c] += u[n, y, x, c] if first[n, y, x, c] == entry else zero
                        elif what == MEAN:
                            for c in range(u.shape[3]):
                                u[n, y, x, c] += z[n, row, column, c] * share_of
                        else:
                            for c in range(u.shape[3]):
                                z[n, row, column, c] += u[n, y, x, c] * share_of


@compiled
def pool(what, place, z, u, first):
    """Forward, adds to u, or to u and first for MAX; backward, adds to z, u and first being given."""
    share(_images, z.shape[0], team(z, z.size), (what, place, z, u, first))


@twin(max_pool2d, serves=COMPILED.dense)
def _(z, placement):
    shape = len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]
    u, first = np.full(shape, -np.inf, z.dtype), np.zeros(shape, np.int32)
    pool(MAX, numbers(placement), z, u, first)
    return u, first


def of_entries(first, v, placement, h, w):
    """Whether v is dense, and `first` holds int32."""
    return COMPILED.dense(v) and first.flags.carray and first.dtype.char == "i"


@twin(max_pool2d_backward, serves=of_entries)
def _(first, v, placement, h, w):
    dz = np.zeros((len(v), h, w, v.shape[3]), v.dtype)
    pool(MAX_BACKWARD, numbers(placement), dz, v, first)
    return dz


@twin(avg_pool2d, serves=COMPILED.dense)
def _(z, placement):
    u = np.zeros((len(z), *placement.outputs(*z.shape[1:3]), z.shape[3]), z.dtype)
    pool(MEAN, numbers(placement), z, u, np.empty(u.shape, np.int32))
    return u


@twin(avg_pool2d_backward, serves=COMPILED.dense)
def _(v, placement, h, w):
    dz = np.zeros((len(v), h, w, v.shape[3]), v.dtype)
    pool(MEAN_BACKWARD, numbers(placement), dz, v, np.empty(v.shape, np.int32))
    return dz
