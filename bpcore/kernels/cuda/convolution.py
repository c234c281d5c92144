"""Convolution, by what each place sees (im2col) and one product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy

from bpcore.functional.convolution import Placement, conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.gemm import gemm
from bpcore.kernels.cuda.engine.launch import each
from bpcore.kernels.cuda.engine.sums import sum_columns
from bpcore.kernels.cuda.linear import add_rows
from bpcore.primitive import twin

CHUNK = 1 << 25  # numbers that are gathered together, of one image at least
MOST = 1 << 31  # entries that the kernels can count


def sizes(placement: Any, h: int, w: int, c: int) -> tuple[int, ...]:
    """PLACEMENT of placement.cu."""
    (top, _), (left, _) = placement.padding
    return (*placement.kernel, *placement.stride, *placement.dilation, top, left, h, w, c, *placement.outputs(h, w))


def numbers(placement: Placement, h: int, w: int, c: int) -> int:
    """Of what the places of one image see."""
    places_h, places_w = placement.outputs(h, w)
    return places_h * places_w * placement.size * c


def chunks(n: int, numbers: int) -> Iterator[slice]:
    """The batch in slices of about CHUNK numbers, `numbers` being those of one image."""
    rows = max(1, CHUNK // numbers)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def columns(z: Any, placement: Any) -> Any:
    """(rows, entries of the kernel · c): what each place of the images sees."""
    n, h, w, c = z.shape
    if placement.size == 1 and placement.stride == (1, 1) and placement.padding == ((0, 0), (0, 0)):
        return z.reshape(-1, c)
    each_sees = placement.size * c
    seen = cupy.empty((n * numbers(placement, h, w, c) // each_sees, each_sees), z.dtype)
    each("convolution", "columns", z.dtype.char, seen.size, *sizes(placement, h, w, c), z, seen)
    return seen


def spread(v: Any, placement: Any, dz: Any) -> None:
    """Writes to dz (n, h, w, c) the adjoint of `columns` of v (rows, entries of the kernel · c)."""
    each("convolution", "spread", v.dtype.char, dz.size, *sizes(placement, *dz.shape[1:]), v, dz)


class Sum:
    """The sum of products into `out`: the first is written there, more are added in float32 at least."""

    def __init__(self, out: Any):
        self.out, self.total = out, None

    def add(self, a: Any, b: Any) -> None:
        """a @ b."""
        if self.out is not None:
            gemm(a, b, self.out)
            self.first, self.out = self.out, None
            return
        one = gemm(a, b, cupy.empty(self.first.shape, self.first.dtype))
        wide = cupy.float64 if one.dtype.char == "d" else cupy.float32
        self.total = (self.first if self.total is None else self.total).astype(wide) + one.astype(wide)

    def finish(self) -> None:
        """Write it."""
        if self.total is not None:
            self.first[...] = self.total.astype(self.first.dtype)


def countable(placement: Any, image: tuple[int, ...], *arrays: Any) -> bool:
    """Whether the arrays are dense, and the entries that one image's places see can be counted; image: (h, w, c)."""
    arrays = tuple(x for x in arrays if x is not None)
    some = all(x.size for x in arrays) and min(placement.outputs(*image[:2])) > 0
    return some and CUDA.dense(*arrays) and all(x.size < MOST for x in arrays) and numbers(placement, *image) < MOST


def fits(z: Any, W: Any, b: Any, placement: Any, groups: int) -> bool:
    """Whether there is one group, and all is `countable`."""
    return groups == 1 and countable(placement, z.shape[1:], z, W, b)


@twin(conv2d, serves=fits)
def _(z, W, b, placement, groups):
    n, h, w, c = z.shape
    u = cupy.empty((n, *placement.outputs(h, w), W.shape[3]), z.dtype)
    flat = W.reshape(-1, W.shape[3])
    for part in chunks(n, numbers(placement, h, w, c)):
        gemm(columns(z[part], placement), flat, u[part].reshape(-1, W.shape[3]))
    if b is not None:
        add_rows(u, b)
    return u


def fits_backward(z: Any, W: Any, v: Any, placement: Any, groups: int, dW: Any, db: Any, need_dz: bool) -> bool:
    """As `fits`, with v and the windows that are written."""
    return groups == 1 and countable(placement, z.shape[1:], z, W, v, dW, db)


@twin(conv2d_backward, serves=fits_backward)
def _(z, W, v, placement, groups, dW, db, need_dz):
    n, h, w, c = z.shape
    flat = W.reshape(-1, W.shape[3])
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, numbers(placement, h, w, c)):
        v_rows = v[part].reshape(-1, W.shape[3])
        seen = columns(z[part], placement)
        total.add(seen.T, v_rows)
        if dz is not None:
            spread(gemm(v_rows, flat.T, cupy.empty(seen.shape, z.dtype)), placement, dz[part])
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz


def fits_transposed(z: Any, W: Any, b: Any, placement: Any, h: int, w: int) -> bool:
    """Whether all is `countable`; the image is what is returned."""
    return countable(placement, (h, w, W.shape[2]), z, W, b)


@twin(conv_transpose2d, serves=fits_transposed)
def _(z, W, b, placement, h, w):
    n, c, out = z.shape[0], z.shape[3], W.shape[2]
    u = cupy.empty((n, h, w, out), z.dtype)
    flat = W.reshape(-1, c)
    for part in chunks(n, numbers(placement, h, w, out)):
        rows = z[part].reshape(-1, c)
        spread(gemm(rows, flat.T, cupy.empty((rows.shape[0], flat.shape[0]), z.dtype)), placement, u[part])
    if b is not None:
        add_rows(u, b)
    return u


def fits_transposed_backward(z: Any, W: Any, v: Any, placement: Any, dW: Any, db: Any, need_dz: bool) -> bool:
    """As `fits_transposed`; the image is v."""
    return countable(placement, v.shape[1:], z, W, v, dW, db)


@twin(conv_transpose2d_backward, serves=fits_transposed_backward)
def _(z, W, v, placement, dW, db, need_dz):
    n, c = z.shape[0], z.shape[3]
    flat = W.reshape(-1, c)
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, numbers(placement, *v.shape[1:])):
        seen = columns(v[part], placement)
        total.add(seen.T, z[part].reshape(-1, c))
        if dz is not None:
            gemm(seen, flat, dz[part].reshape(-1, c))
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz
