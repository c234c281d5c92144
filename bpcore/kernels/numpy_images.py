"""Twins of convolution and pooling for NumPy arrays: one scratch for the columns, products and sums in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bpcore.backend import is_half
from bpcore.functional.convolution import chunks, pad
from bpcore.kernels import serves


def entries(window, h, w) -> Iterator[tuple[slice, slice]]:
    """For each entry of the kernel, the rows and columns of the padded image that it sees."""
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            starts, places = (i * window.dilation[0], j * window.dilation[1]), window.outputs(h, w)
            rows, columns = (slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, window.stride, places, strict=True))
            yield rows, columns


def gathered(z, window) -> Iterator[tuple[slice, np.ndarray]]:
    """The batch part by part with its columns, (places, entries of the kernel · c): a scratch, the caller's to write to."""
    n, h, w, c = z.shape
    places, k = window.outputs(h, w), window.size * c
    padded = pad(z, window)
    of_image, of_row, of_column, of_channel = padded.strides
    (down, right), (dilation_h, dilation_w) = window.stride, window.dilation
    strides = (of_image, of_row * down, of_column * right, of_row * dilation_h, of_column * dilation_w, of_channel)
    shape = (n, *places, *window.kernel, c)
    seen = np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)
    scratch = None
    for part in chunks(n, places[0] * places[1] * k):
        piece = seen[part]
        scratch = np.empty(piece.shape, z.dtype) if scratch is None else scratch[: len(piece)]
        np.copyto(scratch, piece)
        yield part, scratch.reshape(-1, k)


def unpadded(dz, window, h, w):
    """The image within its padding."""
    (top, _), (left, _) = window.padding
    return np.ascontiguousarray(dz[:, top : top + h, left : left + w])


def _serves_conv2d(z, window, groups):
    return groups == 1 and window.size > 1 and z.size > 0 and not is_half(z)


@serves(lambda z, W, b, window, groups: _serves_conv2d(z, window, groups))
def conv2d(z, W, b, window, groups):
    u = np.empty((len(z), *window.outputs(*z.shape[1:3]), W.shape[3]), z.dtype)
    for part, columns in gathered(z, window):
        np.matmul(columns, W.reshape(-1, W.shape[3]), out=u[part].reshape(-1, W.shape[3]))
    return u if b is None else np.add(u, b, out=u)


def _serves_conv2d_backward(z, W, v, window, groups, dW, db, need_dz):
    return _serves_conv2d(z, window, groups) and dW.flags.c_contiguous


@serves(_serves_conv2d_backward)
def conv2d_backward(z, W, v, window, groups, dW, db, need_dz):
    n, h, w, c = z.shape
    out = W.shape[3]
    kernel, dW, v_rows = W.reshape(-1, out), dW.reshape(-1, out), v.reshape(n, -1, out)
    dz = np.zeros((n, *window.padded(h, w), c), z.dtype) if need_dz else None
    for part, columns in gathered(z, window):
        v_part = v_rows[part].reshape(-1, out)
        if part.start == 0:
            np.matmul(columns.T, v_part, out=dW)
        else:
            np.add(dW, columns.T @ v_part, out=dW)
        if dz is not None:
            d = np.matmul(v_part, kernel.T, out=columns).reshape(-1, *v.shape[1:3], window.size, c)
            for entry, (rows, cols) in enumerate(entries(window, h, w)):
                image = dz[part, rows, cols]
                np.add(image, d[:, :, :, entry], out=image)
    if db is not None:
        np.add.reduce(v, axis=(0, 1, 2), out=db)
    return None if dz is None else unpadded(dz, window, h, w)


def max_pool2d(z, window):
    h, w = z.shape[1:3]
    z = pad(z, window, -np.inf)
    seen = [z[:, rows, columns] for rows, columns in entries(window, h, w)]
    u = seen[0].copy()
    for one in seen[1:]:
        np.maximum(u, one, out=u)
    first = np.full(u.shape, window.size, np.int32)
    for entry in reversed(range(window.size)):
        np.copyto(first, entry, where=seen[entry] == u)
    return u, first


def max_pool2d_backward(first, v, window, h, w):
    dz = np.zeros((len(v), *window.padded(h, w), v.shape[3]), v.dtype)
    for entry, (rows, columns) in enumerate(entries(window, h, w)):
        image = dz[:, rows, columns]
        np.add(image, v * (first == entry), out=image)
    return unpadded(dz, window, h, w)


def avg_pool2d(z, window):
    h, w = z.shape[1:3]
    z, u = pad(z, window), np.zeros((len(z), *window.outputs(h, w), z.shape[3]), z.dtype)
    for rows, columns in entries(window, h, w):
        np.add(u, z[:, rows, columns], out=u)
    return np.multiply(u, 1 / window.size, out=u)


def avg_pool2d_backward(v, window, h, w):
    dz, d = np.zeros((len(v), *window.padded(h, w), v.shape[3]), v.dtype), v * (1 / window.size)
    for rows, columns in entries(window, h, w):
        image = dz[:, rows, columns]
        np.add(image, d, out=image)
    return unpadded(dz, window, h, w)
