"""A stand-in for cublasLt: products by columns with a bias for each row of the result, on raw addresses, by NumPy."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from emulator.cublas import COMPUTED, DTYPES, INVALID, SUCCESS, UNSUPPORTED, tf32, told
from emulator.graphs import at, state

WIDTHS = {"desc": {3: 4, 4: 4, 7: 4, 8: 8}, "preference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4}}  # bytes of the attributes
objects: dict[int, SimpleNamespace] = {}
calls: list[dict[str, Any]] = []
numbers = iter(range(9000, 1 << 40))


def new(pointer: int, **fields: Any) -> int:
    number = next(numbers)
    objects[number] = SimpleNamespace(**fields)
    ctypes.c_void_p.from_address(pointer).value = number
    return SUCCESS


def create(pointer: int) -> int:
    state.forbid("cublasLtCreate")
    return new(pointer, kind="handle")


def create_desc(pointer: int, compute: int, scale: int) -> int:
    if compute not in COMPUTED or scale != (1 if compute == 70 else 0):
        return INVALID
    return new(pointer, kind="desc", compute=compute, attributes={})


def create_layout(pointer: int, data: int, rows: int, columns: int, down: int) -> int:
    if data not in DTYPES or rows < 1 or columns < 1 or down < rows:
        return INVALID
    return new(pointer, kind="layout", dtype=np.dtype(DTYPES[data]), data=data, rows=rows, columns=columns, down=down)


def create_preference(pointer: int) -> int:
    return new(pointer, kind="preference", attributes={})


def destroy(number: int) -> int:
    return SUCCESS if objects.pop(number, None) else INVALID


def setter(kind: str) -> Any:
    def put(number: int, attribute: int, value: int, size: int) -> int:
        of = objects.get(number)
        if of is None or of.kind != kind or WIDTHS[kind].get(attribute) != size:
            return INVALID
        of.attributes[attribute] = int.from_bytes(ctypes.string_at(value, size), "little")
        return SUCCESS

    return put


def inside(desc: Any, a: Any, b: Any, d: Any) -> tuple[int, int, int] | None:
    """(m, n, k) of op(A) op(B), or None if the layouts do not fit."""
    ta, tb = (desc.attributes.get(i, 0) for i in (3, 4))
    m, k = (a.columns, a.rows) if ta else (a.rows, a.columns)
    k_of_b, n = (b.columns, b.rows) if tb else (b.rows, b.columns)
    return (m, n, k) if k == k_of_b and (d.rows, d.columns) == (m, n) else None


def heuristic(handle, desc, a, b, c, d, preference, count, choices, found):
    handle, desc, a, b, c, d, preference = (objects[x] for x in (handle, desc, a, b, c, d, preference))
    kinds = [x.kind for x in (handle, desc, a, b, c, d, preference)]
    if kinds != ["handle", "desc", *["layout"] * 4, "preference"] or inside(desc, a, b, d) is None:
        return INVALID
    if (a.data, d.data) not in COMPUTED[desc.compute][1] or a.data != b.data or not desc.attributes.get(8):
        return UNSUPPORTED
    assert preference.attributes[3] == 2, "sums of parts in other dtypes"
    choice = (ctypes.c_uint64 * 8).from_address(choices)
    choice[0] = 77
    choice[1] = min(preference.attributes[i] for i in (5, 6, 7, 8))
    ctypes.c_int.from_address(found).value = 1
    return SUCCESS


def matmul(handle, desc, alpha, A, a, B, b, beta, C, c, D, d, choice, workspace, size, stream):
    desc, a, b, d = (objects[x] for x in (desc, a, b, d))
    needs = (ctypes.c_uint64 * 8).from_address(choice)
    within = any(m.ptr <= workspace and workspace + size <= m.ptr + m.size for m in state.memories)
    if objects[handle].kind != "handle" or needs[0] != 77 or not within or (stream or 0) != state.stream.ptr:
        return INVALID
    if any(x % needs[1] for x in (A, B, C, D)):
        return INVALID  # the algorithm was chosen for better alignments
    m, n, k = inside(desc, a, b, d)
    bias, compute, ta, tb = desc.attributes[8], desc.compute, desc.attributes.get(3, 0), desc.attributes.get(4, 0)
    scale = COMPUTED[compute][0]
    one, zero = (float(at(p, (), (), scale)) for p in (alpha, beta))
    calls.append({"sizes": (m, n, k), "compute": compute, "beta": zero})

    def columns(pointer: int, of: Any) -> np.ndarray:
        size = of.dtype.itemsize
        return at(pointer, (of.rows, of.columns), (size, of.down * size), of.dtype)

    def work() -> None:
        left, right, row = columns(A, a), columns(B, b), at(bias, (m,), (d.dtype.itemsize,), d.dtype)
        left, right = (np.ascontiguousarray(x.T if t else x, dtype=np.float64) for x, t in ((left, ta), (right, tb)))
        if compute == 77:
            left, right = tf32(left), tf32(right)
        columns(D, d)[...] = one * (left @ right) + (zero * columns(C, d) if zero else 0.0) + row[:, None].astype(np.float64)

    state.enqueue(work, A, B, D, bias, *((C,) if zero else ()), written=(D,))
    return SUCCESS


FUNCTIONS = {
    "Create": create,
    "MatmulDescCreate": create_desc,
    "MatmulDescDestroy": destroy,
    "MatmulDescSetAttribute": setter("desc"),
    "MatrixLayoutCreate": create_layout,
    "MatrixLayoutDestroy": destroy,
    "MatmulPreferenceCreate": create_preference,
    "MatmulPreferenceDestroy": destroy,
    "MatmulPreferenceSetAttribute": setter("preference"),
    "MatmulAlgoGetHeuristic": heuristic,
    "Matmul": matmul,
}


def install() -> None:
    """Take cublasLt's place, behind C functions of the types that bpcore gives them."""
    from bpcore.kernels.cuda.engine import cublaslt

    made = {}
    for name, function in FUNCTIONS.items():
        made[f"cublasLt{name}"] = ctypes.CFUNCTYPE(ctypes.c_int, *cublaslt.ARGUMENTS[f"cublasLt{name}"])(told(function))
    cublaslt.LIBRARY, cublaslt.WHY_NOT = SimpleNamespace(**made), ""
