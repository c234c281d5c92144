"""Convolution of images (n, height, width, channels): a one-dimensional `take` and one GEMM for each chunk of the batch.

A `Placement` says which pixels of the padded image each output sees. `columns` gathers them (im2col); `spread`, its adjoint
(col2im), adds values up where they were gathered from. Forward, backward and transposed convolution use these two. Padding counts
as zeros: with a weight or a gradient that is infinite or NaN a product with it is NaN here, while a twin may skip it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bpcore.array import Array, device, namespace
from bpcore.functional.arithmetic import matmul
from bpcore.functional.numerics import sum_over
from bpcore.primitive import primitive

__all__ = ["Placement", "conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward"]

CHUNK = 1 << 20  # numbers to gather at a time: more would not fit the cache, fewer would starve the GEMM


class Placement(NamedTuple):
    """How a kernel is placed on an image: pairs (vertical, horizontal); padding is a pair of pairs (before, after)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        (top, bottom), (left, right) = self.padding
        return top + height + bottom, left + width + right

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """The numbers of places of the kernel, vertical and horizontal; below 1 where it does not fit."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = zip(self.padded(height, width), spans, self.stride, strict=True)
        out_height, out_width = ((size - span) // stride + 1 for size, span, stride in sizes)
        return out_height, out_width

    @property
    def size(self) -> int:
        """The number of entries of the kernel."""
        return self.kernel[0] * self.kernel[1]


def pad(z: Array, placement: Placement, value: float = 0.0) -> Array:
    """z (n, h, w, c) with its padding, filled with `value`."""
    (top, bottom), (left, right) = placement.padding
    if not (top or bottom or left or right):
        return z
    xp = namespace(z)
    n, h, w, c = z.shape
    shape = (n, *placement.padded(h, w), c)
    out = xp.full(shape, value, dtype=z.dtype, device=device(z))
    out[:, top : top + h, left : left + w, :] = z
    return out


def columns(z: Array, placement: Placement, value: float = 0.0) -> Array:
    """The pixels of z (n, h, w, c) that the kernel sees at each place: (n, places, entries of the kernel, c)."""
    xp = namespace(z)
    n, h, w, c = z.shape
    (places_h, places_w), (kernel_h, kernel_w) = placement.outputs(h, w), placement.kernel
    if placement.size == 1 and placement.stride == (1, 1):
        return xp.reshape(pad(z, placement, value), (n, places_h * places_w, 1, c))
    height, width = placement.padded(h, w)

    def along(places: int, kernel: int, stride: int, dilation: int) -> Array:
        """(places, kernel): the rows, or the columns, that the kernel sees at each place."""
        start, step = xp.arange(places, device=device(z)) * stride, xp.arange(kernel, device=device(z)) * dilation
        return xp.expand_dims(start, axis=1) + xp.expand_dims(step, axis=0)

    vertical = along(places_h, kernel_h, placement.stride[0], placement.dilation[0])
    horizontal = along(places_w, kernel_w, placement.stride[1], placement.dilation[1])
    vertical = xp.reshape(vertical * width, (places_h, 1, kernel_h, 1))
    index = xp.reshape(vertical + xp.reshape(horizontal, (1, places_w, 1, kernel_w)), (-1,))
    seen = xp.take(xp.reshape(pad(z, placement, value), (n, height * width, c)), index, axis=1)
    return xp.reshape(seen, (n, places_h * places_w, placement.size, c))


def spread(v: Array, placement: Placement, h: int, w: int) -> Array:
    """The adjoint of `columns`: adds v (n, places, entries of the kernel, c) up to (n, h, w, c)."""
    xp = namespace(v)
    n, c = v.shape[0], v.shape[3]
    places_h, places_w = placement.outputs(h, w)
    (stride_h, stride_w), (dilation_h, dilation_w) = placement.stride, placement.dilation
    v = xp.reshape(v, (n, places_h, places_w, *placement.kernel, c))
    out = xp.zeros((n, *placement.padded(h, w), c), dtype=v.dtype, device=device(v))
    for i in range(placement.kernel[0]):
        rows = slice(i * dilation_h, i * dilation_h + stride_h * (places_h - 1) + 1, stride_h)
        for j in range(placement.kernel[1]):
            cols = slice(j * dilation_w, j * dilation_w + stride_w * (places_w - 1) + 1, stride_w)
            out[:, rows, cols, :] = out[:, rows, cols, :] + v[:, :, :, i, j, :]
    top, left = placement.padding[0][0], placement.padding[1][0]
    return out[:, top : top + h, left : left + w, :]


def chunks(n: int, numbers: int, at_once: int = CHUNK) -> Iterator[slice]:
    """Slices of a batch of n images, of about `at_once` numbers each; an image has `numbers` of them."""
    images = max(1, at_once // max(1, numbers))
    for start in range(0, n, images):
        yield slice(start, min(start + images, n))


def by_group(x: Array, groups: int) -> Array:
    """Reorders (rows, k, groups · c) to (groups, rows, k · c): a batch of matrices, one for each group."""
    xp = namespace(x)
    rows, k, c = x.shape
    x = xp.permute_dims(xp.reshape(x, (rows, k, groups, c // groups)), (2, 0, 1, 3))
    return xp.reshape(x, (groups, rows, k * (c // groups)))


def kernels_by_group(W: Array, groups: int) -> Array:
    """Reorders W (kh, kw, c, groups · c') to (groups, kh · kw · c, c')."""
    xp = namespace(W)
    kh, kw, c, out = W.shape
    return xp.permute_dims(xp.reshape(W, (kh * kw * c, groups, out // groups)), (1, 0, 2))


def from_groups(x: Array) -> Array:
    """Reorders (groups, rows, c') to (rows, groups · c')."""
    xp = namespace(x)
    groups, rows, c = x.shape
    return xp.reshape(xp.permute_dims(x, (1, 0, 2)), (rows, groups * c))


@primitive()
def conv2d(z: Array, W: Array, b: Array | None, placement: Placement, groups: int) -> Array:
    """u[y, x] = Σ_ij z[y s + i d - p, x s + j d - p] W[i, j] + b: a cross-correlation, which the field calls convolution.

    z (n, h, w, c), W (kh, kw, c / groups, c'), b (c',) or None. Returns u (n, h', w', c').
    """
    xp = namespace(z)
    n, h, w, c = z.shape
    out_h, out_w = placement.outputs(h, w)
    kernel = kernels_by_group(W, groups)
    u = xp.zeros((n, out_h * out_w, W.shape[3]), dtype=z.dtype, device=device(z))
    for part in chunks(n, out_h * out_w * placement.size * c):
        seen = columns(z[part, ...], placement)
        flat = xp.reshape(seen, (-1, placement.size, c))
        product = from_groups(matmul(by_group(flat, groups), kernel))
        u[part, ...] = xp.reshape(product if b is None else product + b, (*seen.shape[:2], W.shape[3]))
    return xp.reshape(u, (n, out_h, out_w, W.shape[3]))


@primitive(writes=("dW", "db"))
def conv2d_backward(
    z: Array, W: Array, v: Array, placement: Placement, groups: int, dW: Array, db: Array | None, need_dz: bool
) -> Array | None:
    """B[conv, ·](v): B[MM, ·](v) with the columns of z in place of z; `spread` turns the gradient of the columns into dz.

    Writes dW and, unless it is None, db. Returns dz (n, h, w, c), or None unless need_dz.

    (7.63), (7.65), (7.66)
    """
    xp = namespace(z)
    n, h, w, c = z.shape
    places, out = v.shape[1] * v.shape[2], v.shape[3]
    kernel = xp.matrix_transpose(kernels_by_group(W, groups))
    total = xp.zeros((groups, kernel.shape[2], out // groups), dtype=z.dtype, device=device(z))
    dz = xp.zeros(z.shape, dtype=z.dtype, device=device(z)) if need_dz else None
    for part in chunks(n, places * placement.size * c):
        seen = by_group(xp.reshape(columns(z[part, ...], placement), (-1, placement.size, c)), groups)
        v_part = by_group(xp.reshape(v[part, ...], (-1, 1, out)), groups)  # (groups, rows, c' / groups)
        total = total + matmul(xp.matrix_transpose(seen), v_part)
        if dz is not None:
            d = xp.reshape(matmul(v_part, kernel), (groups, -1, placement.size, c // groups))
            d = xp.reshape(xp.permute_dims(d, (1, 2, 0, 3)), (-1, places, placement.size, c))
            dz[part, ...] = spread(d, placement, h, w)
    dW[...] = xp.reshape(xp.permute_dims(total, (1, 0, 2)), W.shape)
    if db is not None:
        db[...] = sum_over(v, (0, 1, 2))
    return dz


@primitive()
def conv_transpose2d(z: Array, W: Array, b: Array | None, placement: Placement, h: int, w: int) -> Array:
    """The adjoint of a convolution that maps (n, h, w, c') to the shape of z, plus b.

    z (n, h', w', c), W (kh, kw, c', c), b (c',) or None. Returns u (n, h, w, c').
    """
    xp = namespace(z)
    n, out, c = z.shape[0], W.shape[2], z.shape[3]
    places = z.shape[1] * z.shape[2]
    kernel = xp.matrix_transpose(xp.reshape(W, (placement.size * out, c)))
    u = xp.zeros((n, h, w, out), dtype=z.dtype, device=device(z))
    for part in chunks(n, places * placement.size * out):
        d = matmul(xp.reshape(z[part, ...], (-1, c)), kernel)
        u[part, ...] = spread(xp.reshape(d, (-1, places, placement.size, out)), placement, h, w)
    return u if b is None else u + b


@primitive(writes=("dW", "db"))
def conv_transpose2d_backward(
    z: Array, W: Array, v: Array, placement: Placement, dW: Array, db: Array | None, need_dz: bool
) -> Array | None:
    """B[convᵀ, ·](v): dz is the convolution of v, and dW the product of the columns of v with z.

    Writes dW and, unless it is None, db. Returns dz, or None unless need_dz.
    """
    xp = namespace(z)
    n, out, c = z.shape[0], W.shape[2], z.shape[3]
    places = z.shape[1] * z.shape[2]
    kernel = xp.reshape(W, (placement.size * out, c))
    total = xp.zeros(kernel.shape, dtype=z.dtype, device=device(z))
    dz = xp.zeros(z.shape, dtype=z.dtype, device=device(z)) if need_dz else None
    for part in chunks(n, places * placement.size * out):
        seen = xp.reshape(columns(v[part, ...], placement), (-1, placement.size * out))
        total = total + matmul(seen.T, xp.reshape(z[part, ...], (-1, c)))
        if dz is not None:
            dz[part, ...] = xp.reshape(matmul(seen, kernel), (-1, *z.shape[1:]))
    dW[...] = xp.reshape(total, W.shape)
    if db is not None:
        db[...] = sum_over(v, (0, 1, 2))
    return dz
