"""A stand-in for cuBLAS: products of matrices by columns, as its documentation has them, on raw addresses, by NumPy."""

from __future__ import annotations

import ctypes
import traceback
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from emulator.graphs import at, state

SUCCESS, NOT_INITIALIZED, INVALID, FAILED, INTERNAL, UNSUPPORTED = 0, 1, 7, 13, 14, 15
DTYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}
COMPUTED = {68: (np.float32, [(0, 0), (2, 2), (2, 0), (14, 14), (14, 0)]), 77: (np.float32, [(0, 0)]), 70: (np.float64, [(1, 1)])}
handles: dict[int, SimpleNamespace] = {}
calls: list[dict[str, Any]] = []


def create(handle: int) -> int:
    state.forbid("cublasCreate")
    number = 7000 + len(handles)
    handles[number] = SimpleNamespace(stream=0, workspace=None, mode=0)
    ctypes.c_void_p.from_address(handle).value = number
    return SUCCESS


def set_stream(handle: int, stream: int | None) -> int:
    handles[handle].stream, handles[handle].workspace = stream or 0, None
    return SUCCESS


def set_workspace(handle: int, pointer: int, size: int) -> int:
    inside = any(m.ptr <= pointer and pointer + size <= m.ptr + m.size for m in state.memories)
    if not inside or pointer % 256:
        return INVALID
    handles[handle].workspace = pointer
    return SUCCESS


def set_math_mode(handle: int, mode: int) -> int:
    handles[handle].mode = mode
    return SUCCESS


def gemm(h, ta, tb, m, n, k, alpha, A, a_type, lda, B, b_type, ldb, beta, C, c_type, ldc, compute, algorithm):
    return batched(
        h, ta, tb, m, n, k, alpha, A, a_type, lda, 0, B, b_type, ldb, 0, beta, C, c_type, ldc, 0, 1, compute, algorithm
    )


def batched(
    h, ta, tb, m, n, k, alpha, A, a_type, lda, a_step, B, b_type, ldb, b_step, beta, C, c_type, ldc, c_step, count, compute, algo
):  # fmt: skip
    """C = alpha op(A) op(B) + beta C for each of the batch, all by columns."""
    if h not in handles:
        return NOT_INITIALIZED
    if handles[h].stream != state.stream.ptr or (state.stream.captured is not None and handles[h].workspace is None):
        return INTERNAL  # another stream's handle; or it would allocate while capturing
    if min(m, n, k, count) < 1 or ta not in (0, 1) or tb not in (0, 1) or not (A and B and C) or algo != -1:
        return INVALID
    if lda < (k if ta else m) or ldb < (n if tb else k) or ldc < m or (count > 1 and abs(c_step) < ldc * (n - 1) + m):
        return INVALID
    if a_type != b_type or compute not in COMPUTED or (a_type, c_type) not in COMPUTED[compute][1]:
        return UNSUPPORTED
    calls.append({"sizes": (m, n, k, count), "transposed": (ta, tb), "down": (lda, ldb, ldc), "compute": compute})
    scale, source, target = COMPUTED[compute][0], np.dtype(DTYPES[a_type]), np.dtype(DTYPES[c_type])
    one, zero = (float(at(p, (), (), scale)) for p in (alpha, beta))

    def columns(pointer: int, rows: int, width: int, down: int, step: int, dtype: np.dtype) -> np.ndarray:
        return at(pointer, (count, rows, width), (step * dtype.itemsize, dtype.itemsize, down * dtype.itemsize), dtype)

    def work() -> None:
        a = columns(A, *((k, m) if ta else (m, k)), lda, a_step, source)
        b = columns(B, *((n, k) if tb else (k, n)), ldb, b_step, source)
        c = columns(C, m, n, ldc, c_step, target)
        a, b = (np.ascontiguousarray(x.mT if t else x, dtype=np.float64) for x, t in ((a, ta), (b, tb)))
        if compute == 77:
            a, b = tf32(a), tf32(b)
        c[...] = one * (a @ b) + (zero * c if zero else 0.0)  # C is not read where beta is 0

    state.enqueue(work, A, B, C, written=(C,))
    return SUCCESS


def tf32(x: np.ndarray) -> np.ndarray:
    """x with ten bits after the first."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)


def told(function: Any) -> Any:
    """The function for C, which knows of statuses and not of exceptions."""

    def call(*args: Any) -> int:
        try:
            return function(*args)
        except Exception:
            traceback.print_exc()
            return FAILED

    return call


FUNCTIONS = {
    "cublasCreate_v2": create,
    "cublasSetStream_v2": set_stream,
    "cublasSetWorkspace_v2": set_workspace,
    "cublasSetMathMode": set_math_mode,
    "cublasGemmEx": gemm,
    "cublasGemmStridedBatchedEx": batched,
}


def install() -> None:
    """Take libcublas's place, behind C functions of the types that bpcore gives them."""
    from bpcore.kernels.cuda.engine import cublas

    made = {name: ctypes.CFUNCTYPE(ctypes.c_int, *cublas.ARGUMENTS[name])(told(f)) for name, f in FUNCTIONS.items()}
    cublas.LIBRARY, cublas.WHY_NOT = SimpleNamespace(**made), ""
