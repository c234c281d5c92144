"""Products of float32 matrices by oneDNN, called through its C interface.

Why oneDNN: its wheel (onednn-cpu-gomp) has 39 MB, needs nothing else, is licensed under Apache 2 and uses the same pool of
threads as the loops here. It compiles its kernels for the processor, also for transposed and narrow operands. MKL's wheel has
1.1 GB and a proprietary licence, and was slower on an AMD processor; a newer OpenBLAS was as fast as NumPy's; newer wheels of
oneDNN need the SYCL runtime. See `benchmarks/` for the figures.

Its products come in two kinds. The primitive `matmul` reads the second operand in place, which is good for narrow ones, and adds
a bias. `dnnl_sgemm` packs its operands. `packs` chooses by the shapes, so that a product always has the same bits.

In this file, "primitive" means one of oneDNN's.
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
from bpcore.kernels.fast.engine.threads import compiled, remembered, share, team
from bpcore.packages import EXTRAS, ONEDNN, pip

SMALL = 1 << 18  # up to this many multiplications, NumPy computes the product: its BLAS stays in one thread then
FLOAT32, CPU, IN_ORDER = 3, 1, 1  # dnnl_f32, dnnl_cpu, dnnl_stream_in_order
SOURCE, WEIGHTS, BIAS, RESULT = 1, 33, 41, 17  # DNNL_ARG_SRC and so on
GRADIENT = 128  # added to one of these: DNNL_ARG_DIFF_SRC and so on
MAXIMUM = 12  # DNNL_MAX_NDIMS
MATMUL = "dnnl_matmul_primitive_desc_create"
WHEEL = "onednn-cpu-gomp"
PLAIN, TRANSPOSED = ord("N"), ord("T")
PACKS = llvmlite.binding.get_host_cpu_features().get("avx512f", False) and "znver" not in llvmlite.binding.get_host_cpu_name()


def libdnnl() -> tuple[ctypes.CDLL | None, str]:
    """oneDNN's library and ""; or None and the reason why it cannot be loaded."""
    if not ONEDNN:
        return None, "oneDNN's wheel is for Linux on x86-64 only"
    if threads.LIBRARY is None:
        return None, f"oneDNN needs libgomp: {threads.WHY_NOT}"
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None, f"oneDNN is not installed: {pip('fast')}"
    libraries = sorted(Path(str(file.locate())).resolve() for file in files if "libdnnl.so." in file.name)
    again = f"reinstall it: pip install --force-reinstall {EXTRAS['fast'][1]}"
    if not libraries:
        return None, f"oneDNN's wheel {WHEEL} has no library; {again}"
    try:
        library = ctypes.CDLL(str(libraries[0]))
        if (found := version(library)).split(".")[0] != "3":
            return None, f"oneDNN {found} has another interface than version 3; {again}"
    except (OSError, AttributeError) as error:
        return None, f"oneDNN's library of {WHEEL} cannot be loaded ({error}); {again}"
    return library, ""


def version(library: ctypes.CDLL) -> str:
    """The version of a oneDNN: the first three numbers of dnnl_version_t."""
    get = library.dnnl_version
    get.restype = ctypes.POINTER(ctypes.c_int)
    return ".".join(str(get()[i]) for i in range(3))


LIBRARY, WHY_NOT = libdnnl()


def call(name: str, *args: Any) -> None:
    """Call a function of oneDNN. Raises OSError unless it returns success."""
    status = getattr(LIBRARY, name)(*args)
    if status:
        raise OSError(f"oneDNN's {name} returned status {status}")


class Handle(ctypes.c_void_p):
    """An object of oneDNN. It is destroyed together with this Python object."""


def create(kind: str, name: str, *args: Any) -> Handle:
    """The object that the function `name` of oneDNN creates; `dnnl_{kind}_destroy` destroys it."""
    handle = Handle()
    call(name, ctypes.byref(handle), *args)
    weakref.finalize(handle, call, f"dnnl_{kind}_destroy", ctypes.c_void_p(handle.value)).atexit = False
    return handle


class Argument(ctypes.Structure):
    """dnnl_exec_arg_t."""

    _fields_ = (("name", ctypes.c_int), ("memory", ctypes.c_void_p))


@functools.cache
def engine() -> Handle:
    """oneDNN's engine for the CPU."""
    return create("engine", "dnnl_engine_create", CPU, ctypes.c_size_t(0))


@functools.cache
def stream() -> Handle:
    """The stream in which primitives run, one after another."""
    return create("stream", "dnnl_stream_create", engine(), IN_ORDER)


def dims(*numbers: int) -> Any:
    """The numbers as a dnnl_dims_t."""
    return (ctypes.c_int64 * MAXIMUM)(*numbers)


def descriptor(shape: tuple[int, ...], strides: tuple[int, ...]) -> Handle:
    """The memory descriptor of a float32 array; strides are in numbers."""
    name = "dnnl_memory_desc_create_with_strides"
    return create("memory_desc", name, len(shape), dims(*shape), FLOAT32, dims(*strides))


class Plan:
    """A primitive that is ready to run: `numbers` has the addresses that `execute` needs.

    arguments: the descriptor of each argument by its name (SOURCE and so on); None for an argument that the primitive lacks.
    """

    def __init__(self, primitive_descriptor: Handle, arguments: dict[int, Any]):
        self.primitive = create("primitive", "dnnl_primitive_create", primitive_descriptor)
        descriptors = {name: d for name, d in arguments.items() if d is not None}
        no_data = ctypes.c_void_p(0)
        self.memories = [create("memory", "dnnl_memory_create", d, engine(), no_data) for d in descriptors.values()]
        pairs = zip(descriptors, self.memories, strict=True)
        self.arguments = (Argument * len(descriptors))(*(Argument(name, memory) for name, memory in pairs))
        handles = [self.primitive, stream(), ctypes.c_void_p(ctypes.addressof(self.arguments)), *self.memories]
        self.numbers = np.array([handle.value for handle in handles], dtype=np.int64)


if LIBRARY is not None:
    for _name in ("dnnl_memory_set_data_handle", "dnnl_primitive_execute", "dnnl_sgemm"):
        llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(LIBRARY, _name), ctypes.c_void_p).value)
_set: Any = types.ExternalFunction("dnnl_memory_set_data_handle", types.int32(types.intp, types.intp))
_sgemm: Any = types.ExternalFunction(
    "dnnl_sgemm",
    types.int32(
        types.int8,
        types.int8,
        types.int64,
        types.int64,
        types.int64,
        types.float32,
        types.intp,
        types.int64,
        types.intp,
        types.int64,
        types.float32,
        types.intp,
        types.int64,
    ),
)
_execute: Any = types.ExternalFunction("dnnl_primitive_execute", types.int32(types.intp, types.intp, types.int32, types.intp))


@compiled
def execute(numbers, a, b, out, bias):
    """Run a plan with two, three or four arguments; further arrays are ignored. C-contiguous arrays. Returns oneDNN's status."""
    n = len(numbers) - 3
    _set(numbers[3], a.ctypes.data)
    _set(numbers[4], b.ctypes.data)
    if n > 2:
        _set(numbers[5], out.ctypes.data)
    if n > 3:
        _set(numbers[6], bias.ctypes.data)
    return _execute(numbers[0], numbers[1], n, numbers[2])


Layout = tuple[tuple[int, ...], tuple[int, ...]]  # a shape, and strides in numbers


def batched_plan(a: Layout, b: Layout, out: Layout) -> Plan:
    """a @ b, with matrices in the last two axes."""
    source, weights, result = (descriptor(*layout) for layout in (a, b, out))
    primitive = create("primitive_desc", MATMUL, engine(), source, weights, None, result, None)
    return Plan(primitive, {SOURCE: source, WEIGHTS: weights, RESULT: result})


@remembered(1024)
def matmul_plan(n: int, k: int, m: int, a_transposed: bool, b_transposed: bool, with_bias: bool) -> Plan:
    """(n, k) @ (k, m), plus a row of m numbers if with_bias. A transposed operand lies in memory as (k, n) or (m, k)."""
    a = descriptor((n, k), (1, n) if a_transposed else (k, 1))
    b = descriptor((k, m), (1, k) if b_transposed else (m, 1))
    out = descriptor((n, m), (m, 1))
    bias = descriptor((1, m), (m, 1)) if with_bias else None
    primitive = create("primitive_desc", MATMUL, engine(), a, b, bias, out, None)
    return Plan(primitive, {SOURCE: a, WEIGHTS: b, RESULT: out, BIAS: bias})


def packs(n: int, m: int, size: int, a_transposed: bool, b_transposed: bool) -> bool:
    """Whether `dnnl_sgemm` computes (n, k) @ (k, m), where the second operand has `size` numbers.

    On a Xeon with AVX-512 `matmul` takes up to three times as long where rows of the second operand are long, and less time where
    it is small. On processors of AMD the two have not been compared.
    """
    if not PACKS:
        return False
    if b_transposed:
        return n >= 1024 and size > 1 << 19
    return m >= 1024 or size > 1 << (20 if a_transposed else 19)


@compiled
def _fill_rows(start, stop, u, b):
    for i in range(start, stop):
        row = u[i]
        for j in range(row.shape[0]):
            row[j] = b[j]


@compiled
def sgemm(a, b, out, bias, a_transposed, b_transposed):
    """Writes the product of a and b, transposed where it is said, plus bias if it has entries. Returns oneDNN's status."""
    n, m = out.shape
    k = a.shape[0] if a_transposed else a.shape[1]
    beta = np.float32(0)
    if bias.shape[0]:
        share(_fill_rows, n, team(out, out.size), (out, bias))
        beta = np.float32(1)
    first, second = np.int8(TRANSPOSED if a_transposed else PLAIN), np.int8(TRANSPOSED if b_transposed else PLAIN)
    one = np.float32(1)
    columns = a.shape[1], b.shape[1]
    return _sgemm(first, second, n, m, k, one, a.ctypes.data, columns[0], b.ctypes.data, columns[1], beta, out.ctypes.data, m)


@compiled
def add_bias(start, stop, u, b):
    """Adds b to the rows of u from start to stop; to a few rows np.add takes 0.5 us longer."""
    for i in range(start, stop):
        row = u[i]
        for j in range(row.shape[0]):
            row[j] += b[j]


def gemm(a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Writes a @ b + bias to out and returns it.

    a, b: float32 or float64; each or its transpose is C-contiguous. bias: a row of numbers, or None.
    """
    n, k = a.shape
    m = b.shape[1]
    small = n * k * m <= SMALL
    if small or LIBRARY is None or a.itemsize != 4:
        np.dot(a, b, out)  # matmul takes 0.3 us longer
        if bias is not None:
            add_bias(0, n, out, bias) if small else np.add(out, bias, out=out)
        return out
    a_transposed = not a.flags.c_contiguous
    b_transposed = not b.flags.c_contiguous
    operands = a.T if a_transposed else a, b.T if b_transposed else b
    if packs(n, m, k * m, a_transposed, b_transposed):
        status = sgemm(*operands, out, out[0, :0] if bias is None else bias, a_transposed, b_transposed)
    else:
        plan = matmul_plan(n, k, m, a_transposed, b_transposed, bias is not None)
        status = execute(plan.numbers, *operands, out, out[0] if bias is None else bias)
    if status:
        raise OSError(f"oneDNN's matmul of {a.shape} and {b.shape} returned status {status}")
    return out
