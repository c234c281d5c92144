"""Products of matrices by cuBLAS, straight into windows of the gradient, on any stream, captured ones too."""

from __future__ import annotations

import ctypes
import functools
import math
from itertools import pairwise
from typing import Any, NamedTuple

import cupy

from bpcore.context import tf32
from bpcore.kernels.cuda.engine import cublas
from bpcore.kernels.cuda.engine.cublas import FLOAT16, FLOAT32, FLOAT64, IN_FLOAT32, IN_FLOAT64, IN_TF32

DATA = {"e": (FLOAT16, 2), "f": (FLOAT32, 4), "d": (FLOAT64, 8)}  # by dtype.char: cuBLAS's name for it, and its bytes
PRODUCTS = ("eee", "eef", "fff", "ddd")  # dtypes of a, b and out that there is a product for

_numbers = {kind: tuple(map(ctypes.pointer, (kind(1), kind(0)))) for kind in (ctypes.c_float, ctypes.c_double)}
ONE_AND_ZERO = {kind: tuple(ctypes.cast(x, ctypes.c_void_p).value for x in pair) for kind, pair in _numbers.items()}  # addresses


class Plan(NamedTuple):
    """A call of cuBLAS without what changes from call to call: the handle and the three pointers, between these."""

    name: str
    sizes: tuple[Any, ...]
    left: tuple[Any, ...]
    right: tuple[Any, ...]
    result: tuple[Any, ...]


def layout(shape: tuple[int, ...], strides: tuple[int, ...], size: int, count: int) -> tuple[int, int, int] | None:
    """An array's layout in cuBLAS's terms: (..., rows, columns), `count` matrices or one for all; None where there is none.

    strides and size: bytes. Returns (1 where the matrix lies transposed, else 0; numbers from row to row, or from column to
    column where transposed; numbers from matrix to matrix).
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


class Described(NamedTuple):
    """What a plan depends on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    char: str


def described(x: Any) -> Described:
    """An array without its numbers."""
    return Described(x.shape, x.strides, x.dtype.char)


@functools.lru_cache(maxsize=4096)
def plan(a: Described, b: Described, out: Described, in_tf32: bool) -> Plan | None:
    """The call for a @ b, arrays described; None where an operand must be copied first."""
    (n, m), k, count = out.shape[-2:], a.shape[-1], math.prod(out.shape[:-2])
    of_a, of_out = DATA[a.char][0], DATA[out.char][0]
    told_a, told_b, written = (layout(x.shape, x.strides, DATA[x.char][1], count) for x in (a, b, out))
    if written is None or written[0] or (count > 1 and written[2] < 1):
        raise ValueError(f"gemm cannot write to strides {out.strides} of {out.shape}; give it rows of contiguous numbers")
    if told_a is None or told_b is None:
        return None
    (a_transposed, a_down, a_step), (b_transposed, b_down, b_step), (_, out_down, out_step) = told_a, told_b, written
    if count > 1 and not a_transposed and not b_step and (a_step, out_step) == (n * a_down, n * out_down):
        n, count = n * count, 1  # one b for all: the batch is more rows
    one, zero = ONE_AND_ZERO[ctypes.c_double if of_a == FLOAT64 else ctypes.c_float]
    precision = IN_FLOAT64 if of_a == FLOAT64 else IN_TF32 if in_tf32 and of_a == FLOAT32 else IN_FLOAT32
    # cuBLAS counts columns first: to it, rows of z are columns of zᵀ, and outᵀ = bᵀ aᵀ
    sizes, end = (b_transposed, a_transposed, m, n, k, one), (precision, cublas.DEFAULT)
    if count == 1:
        return Plan("cublasGemmEx", sizes, (of_a, b_down), (of_a, a_down, zero), (of_out, out_down, *end))
    left, right = (of_a, b_down, b_step), (of_a, a_down, a_step, zero)
    return Plan("cublasGemmStridedBatchedEx", sizes, left, right, (of_out, out_down, out_step, count, *end))


def gemm(a: Any, b: Any, out: Any) -> Any:
    """Writes a @ b to out, and returns it: a (..., n, k), b (..., k, m), out (..., n, m) of CuPy.

    float16 (summed in float32; out may be float32), float32 (in TF32 where `context.tf32` is set) or float64. a, b: matrices
    or transposed views of such, at any distance from row to row; one matrix, or axes of 1, are for all of the batch; what
    cuBLAS cannot be told of is copied first. out: rows of contiguous numbers.
    """
    if a.shape[-2:] != (out.shape[-2], a.shape[-1]) or b.shape[-2:] != (a.shape[-1], out.shape[-1]):
        raise ValueError(f"gemm got {a.shape} @ {b.shape} for an output of shape {out.shape}; the shapes do not fit")
    if cublas.LIBRARY is None or a.dtype.char + b.dtype.char + out.dtype.char not in PRODUCTS:
        out[...] = cupy.matmul(a, b)
        return out
    if out.size == 0 or a.size == 0:
        out[...] = 0
        return out
    found = plan(described(a), described(b), described(out), tf32.get())
    if found is None:
        a, b = (cupy.ascontiguousarray(cupy.broadcast_to(x, (*out.shape[:-2], *x.shape[-2:]))) for x in (a, b))
        found = plan(described(a), described(b), described(out), tf32.get())
        assert found is not None  # contiguous arrays of the batch's shape can be told
    name, sizes, left, right, result = found
    cublas.call(name, cublas.handle(), *sizes, b.data.ptr, *left, a.data.ptr, *right, out.data.ptr, *result)
    return out
