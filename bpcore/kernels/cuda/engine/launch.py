"""Compiles and launches CUDA kernels. NVRTC compiles the source of a family for a dtype when a kernel is first launched.

A kernel takes pointers to C-contiguous arrays, `long long` for a Python int, `double` for a Python float, and a null pointer for
the int 0. CuPy passes exactly these types, so a kernel must not declare narrower ones.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import cupy
import numpy as np

HERE = Path(__file__).parent
SHARED = {
    "activations": ("gelu",),
    "batch_normalization": ("columns",),
    "convolution": ("placement",),
    "pooling": ("placement",),
    "sums": ("gelu", "columns"),
}  # by family, files that its kernels need after common.cu
NUMBERS = {
    "e": ("__half", "float"),
    "E": ("__nv_bfloat16", "float"),
    "f": ("float", "float"),
    "d": ("double", "double"),
}  # by dtype.char: the types of arrays and of computation
HEADERS = {"e": "cuda_fp16.h", "E": "cuda_bf16.h"}  # by dtype.char: what declares the type of arrays
THREADS = 256  # per block, unless a launch says otherwise
BLOCKS = 4096  # per loop over all entries: enough to fill a GPU
SUMMING = 528  # blocks that share sums of columns: 4, with 1024 threads, for each of an H100's 132 multiprocessors


def source(family: str, char: str, **constants: int) -> str:
    """The CUDA C++ source of a family for a dtype. constants: whole numbers that the source uses as macros."""
    smallest = float(np.finfo("f" if char == "E" else char).smallest_normal)  # bfloat16 has the range of float32
    numbers = {"FLUSH": 0.0 if char == "e" else math.sqrt(smallest), "SMALLEST": smallest, **constants}
    array_type, computed_type = NUMBERS[char]
    lines = [
        *(f"#include <{HEADERS[c]}>" for c in char if c in HEADERS),
        f"typedef {array_type} T;",
        f"typedef {computed_type} A;",
        *(f"#define {name} {value!r}" for name, value in numbers.items()),
    ]
    files = (path(name).read_text(encoding="utf-8") for name in ("common", *SHARED.get(family, ()), family))
    return "\n".join([*lines, *files])


def path(name: str) -> Path:
    """The .cu file of this name: shared ones lie here, those of families one folder up."""
    return next(file for file in (HERE / f"{name}.cu", HERE.parent / f"{name}.cu") if file.exists())


@functools.cache
def kernel(family: str, name: str, char: str, **constants: int) -> Any:
    """A kernel of a family, compiled for a dtype."""
    return module(family, char, **constants).get_function(name)


@functools.cache
def module(family: str, char: str, **constants: int) -> Any:
    """The compiled kernels of a family. CuPy also caches them on disk."""
    return cupy.RawModule(code=source(family, char, **constants))


def each(family: str, name: str, char: str, n: int, *args: Any) -> None:
    """Launch a kernel that loops over n entries."""
    if n:
        kernel(family, name, char)((min(BLOCKS, -(-n // THREADS)),), (THREADS,), (n, *args))


def wide(char: str) -> int:
    """How many numbers of this dtype are loaded at once: 16 bytes. WIDE in common.cu."""
    return {"d": 2, "f": 4}.get(char, 8)


def each_wide(family: str, name: str, char: str, n: int, *args: Any) -> None:
    """Launch a kernel that goes over n entries by `each_wide` of common.cu."""
    if n:
        kernel(family, name, char)((min(BLOCKS, -(-n // (THREADS * wide(char)))),), (THREADS,), (n, *args))


def by_columns(rows: int, n: int, char: str, blocks: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) for kernels whose threads keep their columns of a matrix (rows, n), and loop over some of its rows.

    A block of x by y threads has x times `wide` columns, and y threads for each. blocks: at most about so many.
    """
    across = -(-n // wide(char))
    x = min(32, 1 << (across - 1).bit_length())
    y, strips = THREADS // x, -(-across // x)
    return (strips, max(1, min(-(-rows // (4 * y)), blocks // strips))), (x, y)


def each_row(family: str, name: str, char: str, rows: int, n: int, *args: Any) -> None:
    """Launch a kernel that treats each entry of a matrix (rows, n), with values that are the same in all rows."""
    if rows and n:
        grid, block = by_columns(rows, n, char, 4 * SUMMING)
        kernel(family, name, char)(grid, block, (rows, n, *args))


def teams(rows: int, n: int, char: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(grid, block) for kernels in which a team, the threads along x of a block, shares a row of n entries.

    A thread takes `wide` entries at once. A team is a part of a warp, a warp, or, for long rows, a whole block.
    """
    turns = -(-n // wide(char))
    if turns > 256:
        return (rows,), (256 if turns <= 2048 else 1024, 1)
    x = min(32, 1 << max(0, turns - 1).bit_length())
    y = 128 // x
    return (-(-rows // y),), (x, y)


def scalar_arguments(x: Any) -> tuple[float, Any]:
    """A number, or an array of one number, as two arguments of a kernel: the value, and the array or 0."""
    return (0.0, x) if isinstance(x, cupy.ndarray) else (float(x), 0)


def pointer(x: Any) -> Any:
    """An array as an argument of a kernel; None becomes a null pointer."""
    return 0 if x is None else x


def index_arguments(x: Any) -> tuple[Any, int]:
    """An array of any integer dtype as two arguments: the array, and its dtype as index_at() of common.cu expects it."""
    return x, x.dtype.itemsize if x.dtype.kind == "i" or x.dtype.itemsize == 8 else -x.dtype.itemsize
