"""Products of float32 matrices by oneDNN's matmul primitive, called through its C interface.

Why oneDNN: its wheel (onednn-cpu-gomp) is 39 MB and self-contained, Apache 2, and shares libgomp's pool with the loops here;
its kernels are compiled for the processor, transposed and narrow operands included. MKL's wheel brings 1.1 GB and a
proprietary licence, and was slower on an AMD processor; a newer OpenBLAS was level with NumPy's own; oneDNN's newer wheels
need the SYCL runtime. See `benchmarks/` for the figures.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import weakref
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba.core import types

from bpcore.kernels.fast.engine import threads
from bpcore.kernels.fast.engine.threads import compiled

SMALL = 1 << 18  # products of that many multiplications or fewer: NumPy calls its BLAS, which stays in one thread there
FLOAT32, CPU, IN_ORDER = 3, 1, 1  # dnnl_f32, dnnl_cpu, dnnl_stream_in_order
SOURCE, WEIGHTS, BIAS, RESULT = 1, 33, 41, 17  # DNNL_ARG_SRC and so on
GRADIENT = 128  # added to one of these: DNNL_ARG_DIFF_SRC and so on
MAXIMUM = 12  # DNNL_MAX_NDIMS
WHEEL = "onednn-cpu-gomp"


def libdnnl() -> tuple[ctypes.CDLL | None, str]:
    """oneDNN's library, and why it is not there where it is None."""
    if threads.LIBRARY is None:
        return None, "libgomp.so.1 is not installed"
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None, f"oneDNN is not installed: pip install 'bpcore[fast]' ({WHEEL}; Linux on x86-64)"
    found = sorted(Path(str(file.locate())).resolve() for file in files if "libdnnl.so." in file.name)
    try:
        return ctypes.CDLL(str(found[0])), ""
    except (IndexError, OSError) as error:
        return None, f"oneDNN's library of {WHEEL} cannot be loaded: {error}; reinstall it"


LIBRARY, WHY_NOT = libdnnl()


def version() -> str:
    """oneDNN's version: the first three numbers of dnnl_version_t."""
    get = LIBRARY.dnnl_version  # type: ignore[union-attr]  # asked where the library is there
    get.restype = ctypes.POINTER(ctypes.c_int)
    return ".".join(str(get()[i]) for i in range(3))


def call(name: str, *args: Any) -> None:
    """A function of the library; an OSError where it does not return success."""
    status = getattr(LIBRARY, name)(*args)
    if status:
        raise OSError(f"oneDNN's {name} returned status {status}")


class Handle(ctypes.c_void_p):
    """What a function of the library made. It is given back when this object goes."""


def made(kind: str, name: str, *args: Any) -> Handle:
    """What a function of the library makes, `dnnl_{kind}_destroy` giving it back."""
    handle = Handle()
    call(name, ctypes.byref(handle), *args)
    weakref.finalize(handle, call, f"dnnl_{kind}_destroy", ctypes.c_void_p(handle.value)).atexit = False
    return handle


class Argument(ctypes.Structure):
    """dnnl_exec_arg_t."""

    _fields_ = (("name", ctypes.c_int), ("memory", ctypes.c_void_p))


@functools.cache
def engine() -> Handle:
    """The CPU."""
    return made("engine", "dnnl_engine_create", CPU, ctypes.c_size_t(0))


@functools.cache
def stream() -> Handle:
    """Where primitives run, one after another."""
    return made("stream", "dnnl_stream_create", engine(), IN_ORDER)


def dims(*numbers: int) -> Any:
    """dnnl_dims_t."""
    return (ctypes.c_int64 * MAXIMUM)(*numbers)


def description(shape: tuple[int, ...], strides: tuple[int, ...]) -> Handle:
    """A memory descriptor of float32 numbers; strides in numbers."""
    name = "dnnl_memory_desc_create_with_strides"
    return made("memory_desc", name, len(shape), dims(*shape), FLOAT32, dims(*strides))


class Plan:
    """A primitive made ready: `numbers` are the addresses that `execute` needs.

    arguments: the names of the primitive's arguments, with the descriptor of each; None for an argument that is not there.
    """

    def __init__(self, primitive_description: Handle, arguments: dict[int, Any]):
        self.primitive = made("primitive", "dnnl_primitive_create", primitive_description)
        given, none = {name: d for name, d in arguments.items() if d is not None}, ctypes.c_void_p(0)
        self.memories = [made("memory", "dnnl_memory_create", d, engine(), none) for d in given.values()]
        pairs = zip(given, self.memories, strict=True)
        self.arguments = (Argument * len(given))(*(Argument(name, memory) for name, memory in pairs))
        handles = [self.primitive, stream(), ctypes.c_void_p(ctypes.addressof(self.arguments)), *self.memories]
        self.numbers = np.array([handle.value for handle in handles], dtype=np.int64)


if LIBRARY is not None:
    for _name in ("dnnl_memory_set_data_handle", "dnnl_primitive_execute"):
        llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(LIBRARY, _name), ctypes.c_void_p).value)
_set: Any = types.ExternalFunction("dnnl_memory_set_data_handle", types.int32(types.intp, types.intp))
_execute: Any = types.ExternalFunction("dnnl_primitive_execute", types.int32(types.intp, types.intp, types.int32, types.intp))


@compiled
def execute(numbers, a, b, out, bias):
    """Run a plan of its first two, three or four arguments; C-contiguous arrays. Returns the library's status."""
    n = len(numbers) - 3
    _set(numbers[3], a.ctypes.data)
    _set(numbers[4], b.ctypes.data)
    if n > 2:
        _set(numbers[5], out.ctypes.data)
    if n > 3:
        _set(numbers[6], bias.ctypes.data)
    return _execute(numbers[0], numbers[1], n, numbers[2])


Layout = tuple[tuple[int, ...], tuple[int, ...]]  # a shape, and its strides in numbers


def batched_plan(a: Layout, b: Layout, out: Layout) -> Plan:
    """a @ b, matrices in the last two axes."""
    described = [description(*layout) for layout in (a, b, out)]
    create = "dnnl_matmul_primitive_desc_create"
    primitive = made("primitive_desc", create, engine(), *described[:2], None, described[2], None)
    return Plan(primitive, dict(zip((SOURCE, WEIGHTS, RESULT), described, strict=True)))


@functools.lru_cache(maxsize=1024)
def matmul_plan(n: int, k: int, m: int, a_transposed: bool, b_transposed: bool, with_bias: bool) -> Plan:
    """(n, k) @ (k, m), plus a row of m where `with_bias`; a transposed operand lies in memory as (k, n), or (m, k)."""
    a = description((n, k), (1, n) if a_transposed else (k, 1))
    b = description((k, m), (1, k) if b_transposed else (m, 1))
    out, bias = description((n, m), (m, 1)), description((1, m), (m, 1)) if with_bias else None
    primitive = made("primitive_desc", "dnnl_matmul_primitive_desc_create", engine(), a, b, bias, out, None)
    return Plan(primitive, {SOURCE: a, WEIGHTS: b, RESULT: out, BIAS: bias})


def gemm(a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Writes a @ b, plus a row `bias`, to out, and returns it. a, b: float32 or float64, they or their
    transposes C-contiguous.
    """
    n, k = a.shape
    m = b.shape[1]
    if LIBRARY is None or n * k * m <= SMALL or a.itemsize != 4:
        np.matmul(a, b, out=out)
        return out if bias is None else np.add(out, bias, out=out)
    a_transposed, b_transposed = not a.flags.c_contiguous, not b.flags.c_contiguous
    plan = matmul_plan(n, k, m, a_transposed, b_transposed, bias is not None)
    operands = a.T if a_transposed else a, b.T if b_transposed else b
    status = execute(plan.numbers, *operands, out, out[0] if bias is None else bias)
    if status:
        raise OSError(f"oneDNN's matmul of {a.shape} and {b.shape} returned status {status}")
    return out
