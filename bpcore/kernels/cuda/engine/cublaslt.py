"""Products plus a row and a matrix, a @ b + bias + plus, in one pass by cublasLt, the part of cuBLAS that takes such an epilogue.

A plan is made once for shapes, strides, dtypes and alignments, outside of a capture: a step that is recorded has run before. The
workspace is that of the stream's cuBLAS handle. The epilogue RELU_BIAS is not used: nothing says that NaN stays NaN in it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from bpcore.context import tf32
from bpcore.kernels.cuda.engine import cublas
from bpcore.kernels.cuda.engine.cublas import IN_FLOAT32, IN_TF32, WORKSPACE
from bpcore.kernels.cuda.engine.gemm import DATA, ONE_AND_ZERO, ArraySpec, layout, spec

CHARS = "eEf"  # float64 has no such epilogue
MOST = 1024  # plans that are kept
SCALE = 0  # CUDA_R_32F: alpha and beta are float32
TRANSPOSED_A, TRANSPOSED_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # CUBLASLT_MATMUL_DESC_TRANSA and so on
BIAS = 4  # CUBLASLT_EPILOGUE_BIAS
MOST_WORKSPACE, REDUCTIONS, ALIGNED = 1, 3, 5  # CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES and so on; of A, B, C and D: 5 to 8
IN_COMPUTE_TYPE = 2  # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: parts of a sum are added in float32
ONE, ZERO = ONE_AND_ZERO[ctypes.c_float]

_pointer, _int, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
ARGUMENTS = {
    "cublasLtCreate": [_pointer],
    "cublasLtMatmulDescCreate": [_pointer, _int, _int],
    "cublasLtMatmulDescDestroy": [_pointer],
    "cublasLtMatmulDescSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatrixLayoutCreate": [_pointer, _int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
    "cublasLtMatrixLayoutDestroy": [_pointer],
    "cublasLtMatmulPreferenceCreate": [_pointer],
    "cublasLtMatmulPreferenceDestroy": [_pointer],
    "cublasLtMatmulPreferenceSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatmulAlgoGetHeuristic": [*[_pointer] * 7, _int, _pointer, _pointer],
    "cublasLtMatmul": [*[_pointer] * 14, _size, _pointer],
}


class Choice(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, the bytes of workspace that it needs, whether it can run."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", _size),
        ("state", _int),
        ("waves", ctypes.c_float),
        ("reserved", _int * 4),
    )


PLANS: dict[Any, Plan | None] = {}  # by thread, specs, alignments and precision; None where cublasLt cannot
LIBRARY, WHY_NOT = cublas.loaded("cublasLt", ARGUMENTS)


def call(name: str, *args: Any) -> None:
    """Call a function of cublasLt. Raises RuntimeError unless it returns success."""
    cublas.expect_success(f"cublasLt{name}", getattr(LIBRARY, f"cublasLt{name}")(*args))


def create(kind: str, *args: Any) -> ctypes.c_void_p:
    """An object of cublasLt, which is destroyed together with this Python object."""
    made = _pointer()
    call(f"{kind}Create", ctypes.byref(made), *args)
    if kind:
        weakref.finalize(made, call, f"{kind}Destroy", _pointer(made.value)).atexit = False
    return made


def put(kind: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
    """Set an attribute of a MatmulDesc or a MatmulPreference to a number of ctypes."""
    call(f"{kind}SetAttribute", of, attribute, ctypes.byref(value), ctypes.sizeof(value))


@functools.cache
def handle(thread: int) -> ctypes.c_void_p:
    """A thread's handle."""
    return create("")


class Plan:
    """How to compute a @ b + bias + plus for arrays of these layouts, where plus has that of out, or is absent.

    cublasLt reads by columns: its A is bᵀ, its B is aᵀ, C is plusᵀ, D is outᵀ.
    """

    def __init__(self, specs: Sequence[ArraySpec], layouts: Sequence[Any], alignments: Sequence[int], bias: int, compute: int):
        self.handle = handle(threading.get_ident())
        self.description = create("MatmulDesc", compute, SCALE)
        self.bias = _pointer(None)
        self.point(bias)  # before the choice, which looks at its alignment
        put("MatmulDesc", self.description, EPILOGUE, ctypes.c_uint32(BIAS))
        self.layouts = []
        for i, attribute in ((1, TRANSPOSED_A), (0, TRANSPOSED_B), (2, None)):
            transposed, down, _ = layouts[i]
            rows, columns = specs[i].shape if transposed else specs[i].shape[::-1]
            self.layouts.append(create("MatrixLayout", DATA[specs[i].char][0], rows, columns, down))
            if attribute is not None:
                put("MatmulDesc", self.description, attribute, ctypes.c_int32(transposed))
        preference = create("MatmulPreference")
        put("MatmulPreference", preference, MOST_WORKSPACE, ctypes.c_uint64(WORKSPACE))
        put("MatmulPreference", preference, REDUCTIONS, ctypes.c_uint32(IN_COMPUTE_TYPE))
        for i, aligned in enumerate(alignments):
            put("MatmulPreference", preference, ALIGNED + i, ctypes.c_uint32(aligned))
        self.choice, found = Choice(), _int()
        left, right, result = self.layouts
        described = self.handle, self.description, left, right, result, result, preference
        status = LIBRARY.cublasLtMatmulAlgoGetHeuristic(*described, 1, ctypes.byref(self.choice), ctypes.byref(found))
        self.found = not status and found.value > 0 and not self.choice.state

    def point(self, bias: int) -> None:
        """Set the address of the bias."""
        if bias != self.bias.value:
            self.bias.value = bias
            put("MatmulDesc", self.description, BIAS_POINTER, self.bias)

    def __call__(self, a: int, b: int, out: int, bias: int, plus: int | None) -> None:
        """Launch on the current stream, with these addresses."""
        self.point(bias)
        left, right, result = self.layouts
        of_stream = cublas.current()
        beta, c = (ZERO, out) if plus is None else (ONE, plus)
        operands = ONE, b, left, a, right, beta, c, result, out, result
        choice = ctypes.addressof(self.choice)
        call("Matmul", self.handle, self.description, *operands, choice, of_stream.workspace.ptr, WORKSPACE, of_stream.stream)


def planned(a: Any, b: Any, out: Any, bias: Any, plus: Any) -> Plan | None:
    """This thread's plan for such arrays, or None if cublasLt has no algorithm for them, or cannot read them."""
    specs = spec(a), spec(b), spec(out)
    alignments = tuple(min(16, x.data.ptr & -x.data.ptr) for x in (b, a, out if plus is None else plus, out, bias))
    compute = IN_TF32 if out.dtype.char == "f" and tf32.get() else IN_FLOAT32
    key = threading.get_ident(), *specs, alignments, compute
    if key not in PLANS:
        if len(PLANS) == MOST:
            PLANS.clear()
        layouts = [layout(x.shape, x.strides, DATA[x.char][1], 1) for x in specs]
        readable = None not in layouts and layouts[2][0] == 0  # type: ignore[index]
        plan = Plan(specs, layouts, alignments[:4], bias.data.ptr, compute) if readable else None
        PLANS[key] = plan if plan is not None and plan.found else None
    return PLANS[key]


def affine(a: Any, b: Any, out: Any, bias: Any, plus: Any = None) -> bool:
    """Write a @ b + bias + plus to out, if cublasLt can, and return whether it has.

    a (n, k), b (k, m), out (n, m), bias (m,). plus: None, or another array with the shape, strides and dtype of out.
    """
    chars = {x.dtype.char for x in (a, b, out, bias)}
    if LIBRARY is None or len(chars) > 1 or not chars <= set(CHARS) or not (a.size and b.size):
        return False
    plan = planned(a, b, out, bias, plus)
    if plan is not None:
        plan(a.data.ptr, b.data.ptr, out.data.ptr, bias.data.ptr, plus if plus is None else plus.data.ptr)
    return plan is not None
