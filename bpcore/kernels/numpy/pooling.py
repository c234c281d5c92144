"""Pooling: one pass for each entry of the kernel."""

from __future__ import annotations

import numpy as np

from bpcore.functional.convolution import pad
from bpcore.functional.numerics import PART
from bpcore.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from bpcore.kernels.numpy.convolution import kernel_entries, unpadded
from bpcore.kernels.numpy.engine.blocks import masked
from bpcore.primitive import definition, twin


@twin(max_pool2d)
def _(z, placement):
    h, w = z.shape[1:3]
    padded = pad(z, placement, -np.inf)
    seen = [padded[:, rows, columns] for rows, columns in kernel_entries(placement, h, w)]
    u = seen[0].copy()
    for entry in seen[1:]:
        np.maximum(u, entry, out=u)
    if not np.min(u, initial=np.inf) > -np.inf:  # NaN equals no entry, and -∞ equals the padding
        return definition(max_pool2d)(z, placement)
    first = np.full(u.shape, placement.size, np.int32)
    for entry in reversed(range(placement.size)):
        np.copyto(first, entry, where=seen[entry] == u)
    return u, first


@twin(max_pool2d_backward)
def _(first, v, placement, h, w):
    dz = np.zeros((len(v), *placement.padded(h, w), v.shape[3]), v.dtype)
    for entry, (rows, columns) in enumerate(kernel_entries(placement, h, w)):
        image = dz[:, rows, columns]
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
