"""Convolution: one scratch array for the columns; products and sums in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bpcore.array import is_half
from bpcore.functional.convolution import chunks, conv2d, conv2d_backward, conv_transpose2d, pad
from bpcore.functional.numerics import sum_over
from bpcore.kernels.numpy.engine.depthwise import depthwise, depthwise_backward, sliding
from bpcore.primitive import definition, twin


def kernel_entries(placement, h, w) -> Iterator[tuple[slice, slice]]:
    """For each entry of the kernel, the rows and columns of the padded image that it sees."""
    for i in range(placement.kernel[0]):
        for j in range(placement.kernel[1]):
            starts = (i * placement.dilation[0], j * placement.dilation[1])
            places = placement.outputs(h, w)
            rows, columns = (slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, placement.stride, places, strict=True))
            yield rows, columns


def columns_by_chunk(z, placement) -> Iterator[tuple[slice, np.ndarray]]:
    """For each chunk of the batch, its slice and its columns (places, entries of the kernel · c), a scratch array to write to."""
    n, h, w, c = z.shape
    places = placement.outputs(h, w)
    k = placement.size * c
    seen = sliding(pad(z, placement), placement, places)
    scratch = None
    for part in chunks(n, places[0] * places[1] * k):
        piece = seen[part]
        scratch = np.empty(piece.shape, z.dtype) if scratch is None else scratch[: len(piece)]
        np.copyto(scratch, piece)
        yield part, scratch.reshape(-1, k)


def unpadded(dz, placement, h, w):
    """The image dz without its padding."""
    (top, _), (left, _) = placement.padding
    return np.ascontiguousarray(dz[:, top : top + h, left : left + w])


def add_columns(images, d, placement, h, w):
    """Adds d (n, *places, entries of the kernel, c) to the pixels of padded images."""
    for entry, (rows, columns) in enumerate(kernel_entries(placement, h, w)):
        image = images[:, rows, columns]
        np.add(image, d[:, :, :, entry], out=image)


def twinned(z, W, b, placement, groups):
    """Whether there is one group, or one for each channel, and the kernel has more than one entry; the dtype is not float16."""
    return (groups == 1 or (W.shape[2] == 1 and W.dtype == z.dtype)) and placement.size > 1 and z.size > 0 and not is_half(z)


@twin(conv2d, serves=twinned)
def _(z, W, b, placement, groups):
    if groups > 1:
        return depthwise(z, W, b, placement)
    u = np.empty((len(z), *placement.outputs(*z.shape[1:3]), W.shape[3]), z.dtype)
    for part, columns in columns_by_chunk(z, placement):
        np.matmul(columns, W.reshape(-1, W.shape[3]), out=u[part].reshape(-1, W.shape[3]))
    return u if b is None else np.add(u, b, out=u)


def twinned_backward(z, W, v, placement, groups, dW, db, need_dz):
    """As `twinned`, and dW can be written in place."""
    return twinned(z, W, None, placement, groups) and v.dtype == z.dtype and dW.flags.c_contiguous


@twin(conv2d_backward, serves=twinned_backward)
def _(z, W, v, placement, groups, dW, db, need_dz):
    if groups > 1 and np.isfinite(W).all():
        return depthwise_backward(z, W, v, placement, dW, db, need_dz)
    if groups > 1:  # 0 between the pixels of v times infinity
        return definition(conv2d_backward)(z, W, v, placement, groups, dW, db, need_dz)
    n, h, w, c = z.shape
    out = W.shape[3]
    kernel = W.reshape(-1, out)
    dW = dW.reshape(-1, out)
    v_rows = v.reshape(n, -1, out)
    dz = np.zeros((n, *placement.padded(h, w), c), z.dtype) if need_dz else None
    for part, columns in columns_by_chunk(z, placement):
        v_part = v_rows[part].reshape(-1, out)
        if part.start == 0:
            np.matmul(columns.T, v_part, out=dW)
        else:
            np.add(dW, columns.T @ v_part, out=dW)
        if dz is not None:
            d = np.matmul(v_part, kernel.T, out=columns).reshape(-1, *v.shape[1:3], placement.size, c)
            add_columns(dz[part], d, placement, h, w)
    if db is not None:
        db[...] = sum_over(v.reshape(-1, v.shape[3]), 0)
    return None if dz is None else unpadded(dz, placement, h, w)


def large(z, W, b, placement, h, w):
    """Whether there are pixels, of one dtype with W that is not float16."""
    return z.size > 0 and W.dtype == z.dtype and not is_half(z)


@twin(conv_transpose2d, serves=large)
def _(z, W, b, placement, h, w):
    n, out, c = len(z), W.shape[2], z.shape[3]
    kernel = W.reshape(-1, c).T
    u = np.zeros((n, *placement.padded(h, w), out), z.dtype)
    for part in chunks(n, z[0].size // c * placement.size * out):
        d = np.matmul(z[part].reshape(-1, c), kernel)
        add_columns(u[part], d.reshape(-1, *z.shape[1:3], placement.size, out), placement, h, w)
    u = unpadded(u, placement, h, w)
    return u if b is None else np.add(u, np.tile(b, (w, 1)), out=u)
