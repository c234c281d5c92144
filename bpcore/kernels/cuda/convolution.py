"""Convolution: gathers the columns (im2col) and multiplies them by the kernel."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.functional.convolution import Placement, chunks, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.gemm import gemm
from bpcore.kernels.cuda.engine.launch import each
from bpcore.kernels.cuda.engine.sums import sum_columns
from bpcore.kernels.cuda.linear import add_rows, affine
from bpcore.primitive import twin

CHUNK = 1 << 25  # numbers to gather at a time, but at least those of one image
MOST = 1 << 31  # kernels can index fewer entries than this


def placement_arguments(placement: Placement, h: int, w: int, c: int) -> tuple[int, ...]:
    """The arguments for PLACEMENT of placement.cu."""
    (top, _), (left, _) = placement.padding
    return (*placement.kernel, *placement.stride, *placement.dilation, top, left, h, w, c, *placement.outputs(h, w))


def column_numbers(placement: Placement, h: int, w: int, c: int) -> int:
    """How many numbers the columns of one image have."""
    places_h, places_w = placement.outputs(h, w)
    return places_h * places_w * placement.size * c


def columns(z: Any, placement: Placement) -> Any:
    """The pixels that the kernel sees at each place of the images: (places, entries of the kernel · c)."""
    n, h, w, c = z.shape
    if placement.size == 1 and placement.stride == (1, 1) and placement.padding == ((0, 0), (0, 0)):
        return z.reshape(-1, c)
    width = placement.size * c
    seen = cupy.empty((n * column_numbers(placement, h, w, c) // width, width), z.dtype)
    each("convolution", "columns", z.dtype.char, seen.size, *placement_arguments(placement, h, w, c), z, seen)
    return seen


def spread(v: Any, placement: Placement, dz: Any) -> None:
    """The adjoint of `columns`: adds v (places, entries of the kernel · c) up to dz (n, h, w, c), which it writes."""
    each("convolution", "spread", v.dtype.char, dz.size, *placement_arguments(placement, *dz.shape[1:]), v, dz)


class Sum:
    """A sum of products. The first one is written to `out`; further ones are added in float32 or float64."""

    def __init__(self, out: Any):
        self.out = out
        self.empty = True
        self.total: Any = None

    def add(self, a: Any, b: Any) -> None:
        """Add a @ b."""
        if self.empty:
            gemm(a, b, self.out)
            self.empty = False
            return
        product = gemm(a, b, cupy.empty(self.out.shape, self.out.dtype))
        wide = cupy.float64 if product.dtype.char == "d" else cupy.float32
        total = self.out if self.total is None else self.total
        self.total = total.astype(wide) + product.astype(wide)

    def finish(self) -> None:
        """Write the sum to `out`."""
        if self.total is not None:
            self.out[...] = self.total.astype(self.out.dtype)


def countable(placement: Placement, image: tuple[int, ...], *arrays: Any) -> bool:
    """Whether the arrays are dense and nonempty, and kernels can index them and the columns of an image (h, w, c)."""
    arrays = tuple(x for x in arrays if x is not None)
    nonempty = all(x.size for x in arrays) and min(placement.outputs(*image[:2])) > 0
    indexable = all(x.size < MOST for x in arrays)
    return nonempty and indexable and CUDA.dense(*arrays) and column_numbers(placement, *image) < MOST


def one_group(z: Any, W: Any, b: Any, placement: Any, groups: int) -> bool:
    """Whether there is one group, and the arrays are `countable`."""
    return groups == 1 and countable(placement, z.shape[1:], z, W, b)


@twin(conv2d, serves=one_group)
def _(z, W, b, placement, groups):
    n, h, w, c = z.shape
    u = cupy.empty((n, *placement.outputs(h, w), W.shape[3]), z.dtype)
    flat = W.reshape(-1, W.shape[3])
    for part in chunks(n, column_numbers(placement, h, w, c), CHUNK):
        affine(columns(z[part], placement), flat, u[part].reshape(-1, W.shape[3]), b)
    return u


def one_group_backward(z: Any, W: Any, v: Any, placement: Any, groups: int, dW: Any, db: Any, need_dz: bool) -> bool:
    """As `one_group`, for v and for the windows dW and db too."""
    return groups == 1 and countable(placement, z.shape[1:], z, W, v, dW, db)


@twin(conv2d_backward, serves=one_group_backward)
def _(z, W, v, placement, groups, dW, db, need_dz):
    n, h, w, c = z.shape
    flat = W.reshape(-1, W.shape[3])
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, column_numbers(placement, h, w, c), CHUNK):
        v_rows = v[part].reshape(-1, W.shape[3])
        seen = columns(z[part], placement)
        total.add(seen.T, v_rows)
        if dz is not None:
            spread(gemm(v_rows, flat.T, cupy.empty(seen.shape, z.dtype)), placement, dz[part])
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz


def transposed(z: Any, W: Any, b: Any, placement: Any, h: int, w: int) -> bool:
    """Whether the arrays are `countable`; the image is the result."""
    return countable(placement, (h, w, W.shape[2]), z, W, b)


@twin(conv_transpose2d, serves=transposed)
def _(z, W, b, placement, h, w):
    n, c = z.shape[0], z.shape[3]
    out = W.shape[2]
    u = cupy.empty((n, h, w, out), z.dtype)
    flat = W.reshape(-1, c)
    for part in chunks(n, column_numbers(placement, h, w, out), CHUNK):
        rows = z[part].reshape(-1, c)
        spread(gemm(rows, flat.T, cupy.empty((rows.shape[0], flat.shape[0]), z.dtype)), placement, u[part])
    if b is not None:
        add_rows(u, b)
    return u


def transposed_backward(z: Any, W: Any, v: Any, placement: Any, dW: Any, db: Any, need_dz: bool) -> bool:
    """Whether the arrays are `countable`; the image is v."""
    return countable(placement, v.shape[1:], z, W, v, dW, db)


@twin(conv_transpose2d_backward, serves=transposed_backward)
def _(z, W, v, placement, dW, db, need_dz):
    n, c = z.shape[0], z.shape[3]
    flat = W.reshape(-1, c)
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, column_numbers(placement, *v.shape[1:]), CHUNK):
        seen = columns(v[part], placement)
        total.add(seen.T, z[part].reshape(-1, c))
        if dz is not None:
            gemm(seen, flat, dz[part].reshape(-1, c))
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz
