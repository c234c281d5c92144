"""cuBLAS through handles of our own, because CuPy's calls cannot be captured in a CUDA graph.

Each stream has its own handle with a fixed workspace: nothing is allocated while a graph is captured, and results do not depend
on other streams (cuBLAS: "Results reproducibility", "CUDA Graphs Support").
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Mapping
from typing import Any

import cupy

from bpcore.packages import CUDA

WORKSPACE = 32 << 20  # bytes: NVIDIA's advice for Hopper and Blackwell; other GPUs need less
DEFAULT, FLOAT32_REDUCTIONS = -1, 16  # CUBLAS_GEMM_DEFAULT, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = 0, 1, 2, 14  # CUDA_R_32F and so on
IN_FLOAT32, IN_TF32, IN_FLOAT64 = 68, 77, 70  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F
STATUS = {
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}

_int, _pointer, _long = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
_sizes = [_pointer, _int, _int, _int, _int, _int, _pointer]  # handle, two transpositions, m, n, k, alpha
ARGUMENTS = {
    "cublasCreate_v2": [_pointer],
    "cublasSetStream_v2": [_pointer, _pointer],
    "cublasSetWorkspace_v2": [_pointer, _pointer, ctypes.c_size_t],
    "cublasSetMathMode": [_pointer, _int],
    "cublasGemmEx": [*_sizes, *[_pointer, _int, _int] * 2, _pointer, _pointer, _int, _int, _int, _int],
    "cublasGemmStridedBatchedEx": [
        *_sizes,
        *[_pointer, _int, _int, _long] * 2,
        *[_pointer, _pointer, _int, _int, _long],
        *[_int, _int, _int],
    ],
}


def loaded(library: str, arguments: Mapping[str, Any]) -> tuple[Any, str]:
    """A library of NVIDIA, the one that CuPy uses, located as CuPy locates it, and ""; or None and why it cannot be loaded."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        found = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(library).abs_path)
        for name, types in arguments.items():
            getattr(found, name).argtypes = types
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # cuda.pathfinder raises RuntimeError for a missing one
        return None, f"{library} cannot be loaded: {error}; its wheel comes with CuPy's: {CUDA}"
    return found, ""


LIBRARY, WHY_NOT = loaded("cublas", ARGUMENTS)


def expect_success(function: str, status: int) -> None:
    """Raise RuntimeError unless the status that a function of cuBLAS returned is success."""
    if status:
        failure = f"cuBLAS's {function} returned CUBLAS_STATUS_{STATUS.get(status, status)}"
        raise RuntimeError(f"{failure}; run with BPCORE_KERNELS=off, and report it")


def call(name: str, *args: Any) -> None:
    """Call a function of cuBLAS. Raises RuntimeError unless it returns success."""
    expect_success(name, getattr(LIBRARY, name)(*args))


class Handle:
    """A cuBLAS handle for one stream, with its workspace."""

    def __init__(self, stream: int):
        handle = ctypes.c_void_p()
        call("cublasCreate_v2", ctypes.byref(handle))
        self.number = handle.value
        self.stream = stream
        self.workspace = cupy.cuda.Memory(WORKSPACE)  # outside of every memory pool
        call("cublasSetStream_v2", handle, stream)
        call(
            "cublasSetWorkspace_v2", handle, self.workspace.ptr, WORKSPACE
        )  # after the stream, because setting the stream resets the workspace
        call("cublasSetMathMode", handle, FLOAT32_REDUCTIONS)


@functools.cache
def _handle(thread: int, stream: int) -> Handle:
    return Handle(stream)


def current() -> Handle:
    """The handle of the current stream in this thread. The first call creates it, and must not happen during a capture."""
    return _handle(threading.get_ident(), cupy.cuda.get_current_stream().ptr)


def handle() -> int | None:
    """The number of the `current` handle."""
    return current().number
