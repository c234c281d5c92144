"""Products of matrices by cuBLAS: into windows of the gradient, on any stream, also while a graph is captured."""

from __future__ import annotations

import ctypes
import functools
import math
from itertools import pairwise
from typing import Any, NamedTuple

import cupy

from bpcore.context import tf32
from bpcore.kernels.cuda.engine import cublas
from bpcore.kernels.cuda.engine.cublas import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, IN_FLOAT32, IN_FLOAT64, IN_TF32

# by dtype.char: the dtype's number in cuBLAS, and its bytes
DATA = {"e": (FLOAT16, 2), "E": (BFLOAT16, 2), "f": (FLOAT32, 4), "d": (FLOAT64, 8)}
PRODUCTS = ("eee", "eef", "EEE", "EEf", "fff", "ddd")  # the dtypes of a, b and out for which cuBLAS has a product

_ones_and_zeros = {kind: (kind * 2)(1, 0) for kind in (ctypes.c_float, ctypes.c_double)}
# The addresses of 1 and 0, cuBLAS's alpha and beta, by the type that is computed in.
ONE_AND_ZERO = {
    kind: (ctypes.addressof(pair), ctypes.addressof(pair) + ctypes.sizeof(kind)) for kind, pair in _ones_and_zeros.items()
}


class Call(NamedTuple):
    """The arguments of a call of cuBLAS, except for the handle and the three pointers, which differ between calls."""

    name: str
    sizes: tuple[Any, ...]
    left: tuple[Any, ...]
    right: tuple[Any, ...]
    result: tuple[Any, ...]


def layout(shape: tuple[int, ...], strides: tuple[int, ...], size: int, count: int) -> tuple[int, int, int] | None:
    """The layout of an array in cuBLAS's terms, or None if cuBLAS cannot read it.

    The array is (..., rows, columns) with `count` matrices, or with one matrix for all products. strides and size: in bytes.
    Returns: 1 if the matrix is transposed in memory, else 0; the numbers from row to row (transposed: from column to column); the
    numbers from matrix to matrix.
    """
    *batch, rows, columns = shape
    *apart, down, right = (stride // size for stride in strides)
    outer = [(n, stride) for n, stride in zip(batch, apart, strict=True) if n != 1]
    if outer and math.prod(batch) != count:
        return None
    if any(stride != n * inner for (_, stride), (n, inner) in pairwise(outer)) or any(stride < 0 for _, stride in outer):
        return None
    step = outer[-1][1] if outer else 0
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return 0, columns if rows == 1 else down, step
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return 1, rows if columns == 1 else right, step
    return None


class ArraySpec(NamedTuple):
    """What the arguments of a call depend on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    char: str


def spec(x: Any) -> ArraySpec:
    """The ArraySpec of an array."""
    return ArraySpec(x.shape, x.strides, x.dtype.char)


@functools.lru_cache(maxsize=4096)
def planned(a: ArraySpec, b: ArraySpec, out: ArraySpec, in_tf32: bool) -> Call | None:
    """The call that writes a @ b to out; None if an operand must be copied first.

    Raises ValueError unless each row of out is contiguous.
    """
    n, m = out.shape[-2:]
    k = a.shape[-1]
    count = math.prod(out.shape[:-2])
    layout_a, layout_b, layout_out = (layout(x.shape, x.strides, DATA[x.char][1], count) for x in (a, b, out))
    if layout_out is None or layout_out[0] or (count > 1 and layout_out[2] < 1):
        raise ValueError(f"gemm cannot write to strides {out.strides} of {out.shape}; give it rows of contiguous numbers")
    if layout_a is None or layout_b is None:
        return None
    a_transposed, a_down, a_step = layout_a
    b_transposed, b_down, b_step = layout_b
    _, out_down, out_step = layout_out
    if count > 1 and not a_transposed and not b_step and (a_step, out_step) == (n * a_down, n * out_down):
        n, count = n * count, 1  # b is the same for all matrices of a: their rows form one matrix
    data, data_out = DATA[a.char][0], DATA[out.char][0]
    one, zero = ONE_AND_ZERO[ctypes.c_double if data == FLOAT64 else ctypes.c_float]
    precision = IN_FLOAT64 if data == FLOAT64 else IN_TF32 if in_tf32 and data == FLOAT32 else IN_FLOAT32
    # cuBLAS stores matrices by columns. To it, rows of z are columns of zᵀ, and the product is outᵀ = bᵀ aᵀ.
    sizes = (b_transposed, a_transposed, m, n, k, one)
    end = (precision, cublas.DEFAULT)
    if count == 1:
        return Call("cublasGemmEx", sizes, (data, b_down), (data, a_down, zero), (data_out, out_down, *end))
    left = (data, b_down, b_step)
    right = (data, a_down, a_step, zero)
    return Call("cublasGemmStridedBatchedEx", sizes, left, right, (data_out, out_down, out_step, count, *end))


def gemm(a: Any, b: Any, out: Any) -> Any:
    """Writes a @ b to out and returns it: a (..., n, k), b (..., k, m), out (..., n, m), arrays of CuPy.

    float16, bfloat16 (both summed in float32; out may be float32), float32 (in TF32 if `context.tf32` is set) or float64. a, b:
    matrices or transposed views of matrices, with any distance between rows; leading axes broadcast. An operand that cuBLAS
    cannot read is copied first. out: each row is contiguous.
    """
    if a.shape[-2:] != (out.shape[-2], a.shape[-1]) or b.shape[-2:] != (a.shape[-1], out.shape[-1]):
        raise ValueError(f"gemm got {a.shape} @ {b.shape} for an output of shape {out.shape}; the shapes do not fit")
    if cublas.LIBRARY is None or a.dtype.char + b.dtype.char + out.dtype.char not in PRODUCTS:
        out[...] = cupy.matmul(a, b)
        return out
    if out.size == 0 or a.size == 0:
        out[...] = 0
        return out
    call = planned(spec(a), spec(b), spec(out), tf32.get())
    if call is None:
        a, b = (cupy.ascontiguousarray(cupy.broadcast_to(x, (*out.shape[:-2], *x.shape[-2:]))) for x in (a, b))
        call = planned(spec(a), spec(b), spec(out), tf32.get())
        assert call is not None  # cuBLAS reads contiguous arrays
    name, sizes, left, right, result = call
    cublas.call(name, cublas.handle(), *sizes, b.data.ptr, *left, a.data.ptr, *right, out.data.ptr, *result)
    return out
