"""Pooling: one pass for each entry of the kernel."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import chunks, pad
from bpcore.functional.numerics import PART
from bpcore.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from bpcore.kernels.numpy.convolution import kernel_entries, unpadded
from bpcore.kernels.numpy.engine.blocks import BLOCK, masked
from bpcore.primitive import definition, twin

LARGE = 1 << 17  # numbers: of fewer, a batch is not divided


def few_entries(z, placement):
    """Whether the kernel's entries can be counted in a byte."""
    return placement.size < 256


@twin(max_pool2d, serves=few_entries)
def _(z, placement):
    h, w = z.shape[1:3]
    u = np.empty((len(z), *placement.outputs(h, w), z.shape[3]), z.dtype)
    first = np.empty(u.shape, np.int32)
    for part in chunks(len(z), u[:1].size, BLOCK):
        padded = pad(z[part], placement, -np.inf)
        seen = [padded[:, rows, columns] for rows, columns in kernel_entries(placement, h, w)]
        largest = u[part]
        largest[...] = seen[0]
        number = np.zeros(largest.shape, np.uint8)
        for entry, x in enumerate(seen[1:], 1):
            np.maximum(number, (x > largest).view(np.uint8) * np.uint8(entry), out=number)
            np.maximum(largest, x, out=largest)
        first[part] = number
        if not np.min(largest, initial=np.inf) > -np.inf:  # NaN is larger than no entry, and -∞ not larger than the padding
            return definition(max_pool2d)(z, placement)
    return u, first


@twin(max_pool2d_backward)
def _(first, v, placement, h, w):
    if v.size <= LARGE:
        return backward_at_once(first, v, placement, h, w)
    dz = np.empty((len(v), h, w, v.shape[3]), v.dtype)
    for part in chunks(len(v), v[:1].size, BLOCK):
        dz[part] = backward_at_once(first[part], v[part], placement, h, w)
    return dz


def backward_at_once(first, v, placement, h, w):
    """max_pool2d_backward, for images that fit in the cache."""
    dz = np.zeros((len(v), *placement.padded(h, w), v.shape[3]), v.dtype)
    apart = all(d * (k - 1) < s for d, k, s in zip(placement.dilation, placement.kernel, placement.stride, strict=True))
    for entry, (rows, columns) in enumerate(kernel_entries(placement, h, w)):
        image = dz[:, rows, columns]
        if apart:  # no pixel is seen from two places
            masked(v, first == entry, image)
        else:
            np.add(image, masked(v, first == entry), out=image)
    return unpadded(dz, placement, h, w)


def short_sums(z, placement):
    """Whether a mean has few numbers, which may be added one after the other."""
    return placement.size <= PART


@twin(avg_pool2d, serves=short_sums)
def _(z, placement):
    h, w = z.shape[1:3]
    u = np.zeros((len(z), *placement.outputs(h, w), z.shape[3]), z.dtype)
    z = pad(z, placement)
    for rows, columns in kernel_entries(placement, h, w):
        np.add(u, z[:, rows, columns], out=u)
    return np.multiply(u, 1 / placement.size, out=u)


@twin(avg_pool2d_backward)
def _(v, placement, h, w):
    dz = np.zeros((len(v), *placement.padded(h, w), v.shape[3]), v.dtype)
    d = v * (1 / placement.size)
    for rows, columns in kernel_entries(placement, h, w):
        image = dz[:, rows, columns]
        np.add(image, d, out=image)
    return unpadded(dz, placement, h, w)
