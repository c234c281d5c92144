"""Convolution, by what each place sees (im2col) and one product, and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.dense import add_rows
from bpcore.kernels.cuda.gemm import gemm
from bpcore.kernels.cuda.launch import dense, each
from bpcore.kernels.cuda.sums import sum_columns

CHUNK = 1 << 25  # numbers that are gathered together, of one image at least
MOST = 1 << 31  # entries that the kernels can count


def sizes(window: Any, h: int, w: int, c: int) -> tuple[int, ...]:
    """WINDOW of images.cu."""
    (top, _), (left, _) = window.padding
    return (*window.kernel, *window.stride, *window.dilation, top, left, h, w, c, *window.outputs(h, w))


def numbers(window: Any, h: int, w: int, c: int) -> int:
    """Of what the places of one image see."""
    places_h, places_w = window.outputs(h, w)
    return places_h * places_w * window.size * c


def chunks(n: int, numbers: int) -> Iterator[slice]:
    """The batch in slices of about CHUNK numbers, `numbers` being those of one image."""
    rows = max(1, CHUNK // numbers)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def columns(z: Any, window: Any) -> Any:
    """(rows, entries of the kernel · c): what each place of the images sees."""
    n, h, w, c = z.shape
    if window.size == 1 and window.stride == (1, 1) and window.padding == ((0, 0), (0, 0)):
        return z.reshape(-1, c)
    each_sees = window.size * c
    seen = cupy.empty((n * numbers(window, h, w, c) // each_sees, each_sees), z.dtype)
    each("images", "columns", z.dtype.char, seen.size, *sizes(window, h, w, c), z, seen)
    return seen


def spread(v: Any, window: Any, dz: Any) -> None:
    """Writes to dz (n, h, w, c) the adjoint of `columns` of v (rows, entries of the kernel · c)."""
    each("images", "spread", v.dtype.char, dz.size, *sizes(window, *dz.shape[1:]), v, dz)


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


def _serves(window: Any, image: tuple[int, ...], *arrays: Any) -> bool:
    """Whether the arrays are dense and what one image's places see can be counted; image: (h, w, c)."""
    some = all(x.size for x in arrays) and min(window.outputs(*image[:2])) > 0
    return some and dense(*arrays) and all(x.size < MOST for x in arrays) and numbers(window, *image) < MOST


def there(*arrays: Any) -> tuple[Any, ...]:
    """Those that are not None."""
    return tuple(x for x in arrays if x is not None)


@serves(lambda z, W, b, window, groups: groups == 1 and _serves(window, z.shape[1:], z, W, *there(b)))
def conv2d(z, W, b, window, groups):
    n, h, w, c = z.shape
    u = cupy.empty((n, *window.outputs(h, w), W.shape[3]), z.dtype)
    flat = W.reshape(-1, W.shape[3])
    for part in chunks(n, numbers(window, h, w, c)):
        gemm(columns(z[part], window), flat, u[part].reshape(-1, W.shape[3]))
    if b is not None:
        add_rows(u, b)
    return u


def _serves_conv2d_backward(z, W, v, window, groups, dW, db, need_dz):
    return groups == 1 and _serves(window, z.shape[1:], z, W, v, dW, *there(db))


@serves(_serves_conv2d_backward)
def conv2d_backward(z, W, v, window, groups, dW, db, need_dz):
    n, h, w, c = z.shape
    flat = W.reshape(-1, W.shape[3])
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, numbers(window, h, w, c)):
        v_rows = v[part].reshape(-1, W.shape[3])
        seen = columns(z[part], window)
        total.add(seen.T, v_rows)
        if dz is not None:
            spread(gemm(v_rows, flat.T, cupy.empty(seen.shape, z.dtype)), window, dz[part])
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz


@serves(lambda z, W, b, window, h, w: _serves(window, (h, w, W.shape[2]), z, W, *there(b)))
def conv_transpose2d(z, W, b, window, h, w):
    n, c, out = z.shape[0], z.shape[3], W.shape[2]
    u = cupy.empty((n, h, w, out), z.dtype)
    flat = W.reshape(-1, c)
    for part in chunks(n, numbers(window, h, w, out)):
        rows = z[part].reshape(-1, c)
        spread(gemm(rows, flat.T, cupy.empty((rows.shape[0], flat.shape[0]), z.dtype)), window, u[part])
    if b is not None:
        add_rows(u, b)
    return u


@serves(lambda z, W, v, window, dW, db, need_dz: _serves(window, v.shape[1:], z, W, v, dW, *there(db)))
def conv_transpose2d_backward(z, W, v, window, dW, db, need_dz):
    n, c = z.shape[0], z.shape[3]
    flat = W.reshape(-1, c)
    dz = cupy.empty(z.shape, z.dtype) if need_dz else None
    total = Sum(dW.reshape(flat.shape))
    for part in chunks(n, numbers(window, *v.shape[1:])):
        seen = columns(v[part], window)
        total.add(seen.T, z[part].reshape(-1, c))
        if dz is not None:
            gemm(seen, flat, dz[part].reshape(-1, c))
    total.finish()
    if db is not None:
        sum_columns(v, db)
    return dz


@serves(lambda z, window: _serves(window, z.shape[1:], z))
def max_pool2d(z, window):
    n, h, w, c = z.shape
    u = cupy.empty((n, *window.outputs(h, w), c), z.dtype)
    first = cupy.empty(u.shape, cupy.int32)
    each("images", "max_pool", z.dtype.char, u.size, *sizes(window, h, w, c), z, u, first)
    return u, first


def _serves_max_pool2d_backward(first, v, window, h, w):
    return first.dtype.char == "i" and first.flags.c_contiguous and _serves(window, (h, w, v.shape[3]), v)


@serves(_serves_max_pool2d_backward)
def max_pool2d_backward(first, v, window, h, w):
    dz = cupy.empty((v.shape[0], h, w, v.shape[3]), v.dtype)
    each("images", "max_pool_backward", v.dtype.char, dz.size, *sizes(window, h, w, v.shape[3]), first, v, dz)
    return dz


@serves(lambda z, window: _serves(window, z.shape[1:], z))
def avg_pool2d(z, window):
    n, h, w, c = z.shape
    u = cupy.empty((n, *window.outputs(h, w), c), z.dtype)
    each("images", "avg_pool", z.dtype.char, u.size, *sizes(window, h, w, c), z, u)
    return u


@serves(lambda v, window, h, w: _serves(window, (h, w, v.shape[3]), v))
def avg_pool2d_backward(v, window, h, w):
    dz = cupy.empty((v.shape[0], h, w, v.shape[3]), v.dtype)
    each("images", "avg_pool_backward", v.dtype.char, dz.size, *sizes(window, h, w, v.shape[3]), v, dz)
    return dz
