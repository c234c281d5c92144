"""Pooling: one thread for each place forward, and for each entry of the image backward."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from bpcore.kernels.cuda.convolution import countable, placement_arguments
from bpcore.kernels.cuda.engine.launch import each
from bpcore.primitive import twin


def countable_image(z: Any, placement: Any) -> bool:
    """Whether z is `countable`."""
    return countable(placement, z.shape[1:], z)


def countable_first(first: Any, v: Any, placement: Any, h: int, w: int) -> bool:
    """Whether `first` is contiguous int32, and v is `countable`."""
    return first.dtype.char == "i" and first.flags.c_contiguous and countable(placement, (h, w, v.shape[3]), v)


def countable_v(v: Any, placement: Any, h: int, w: int) -> bool:
    """Whether v is `countable`."""
    return countable(placement, (h, w, v.shape[3]), v)


@twin(max_pool2d, serves=countable_image)
def _(z, placement):
    n, h, w, c = z.shape
    u = cupy.empty((n, *placement.outputs(h, w), c), z.dtype)
    first = cupy.empty(u.shape, cupy.int32)
    each("pooling", "max_pool", z.dtype.char, u.size, *placement_arguments(placement, h, w, c), z, u, first)
    return u, first


@twin(max_pool2d_backward, serves=countable_first)
def _(first, v, placement, h, w):
    dz = cupy.empty((v.shape[0], h, w, v.shape[3]), v.dtype)
    each("pooling", "max_pool_backward", v.dtype.char, dz.size, *placement_arguments(placement, h, w, v.shape[3]), first, v, dz)
    return dz


@twin(avg_pool2d, serves=countable_image)
def _(z, placement):
    n, h, w, c = z.shape
    u = cupy.empty((n, *placement.outputs(h, w), c), z.dtype)
    each("pooling", "avg_pool", z.dtype.char, u.size, *placement_arguments(placement, h, w, c), z, u)
    return u


@twin(avg_pool2d_backward, serves=countable_v)
def _(v, placement, h, w):
    dz = cupy.empty((v.shape[0], h, w, v.shape[3]), v.dtype)
    each("pooling", "avg_pool_backward", v.dtype.char, dz.size, *placement_arguments(placement, h, w, v.shape[3]), v, dz)
    return dz
