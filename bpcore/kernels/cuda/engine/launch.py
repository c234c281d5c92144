"""CUDA kernels: sources one folder up, one a family, compiled by NVRTC for a dtype when first launched, and CuPy's launches.

A kernel takes pointers to C-contiguous arrays, `long long` for Python's int, `double` for its float, and a null pointer, 0,
for an array that is not there: CuPy passes just these, and nothing may be narrowed.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import cupy
import numpy as np

HERE = Path(__file__).parent
SHARED = {  # by family, the files that its kernels are compiled with, after common.cu
    "activations": (),
    "attention": (),
    "batch_normalization": (),
    "convolution": ("placement",),
    "dropout": (),
    "embedding": (),
    "losses": (),
    "normalization": (),
    "pooling": ("placement",),
    "sums": (),
    "updates": (),
}
NUMBERS = {"e": ("__half", "float"), "f": ("float", "float"), "d": ("double", "double")}  # of arrays, and computed in
THREADS = 256  # in a block, where nothing says otherwise
BLOCKS = 4096  # of a loop over all entries: enough to fill a GPU


def source(family: str, char: str, **constants: int) -> str:
    """The CUDA C++ of a family for a dtype, with whole numbers that it is compiled for."""
    smallest = float(np.finfo(char).smallest_normal)
    numbers = {"FLUSH": 0.0 if char == "e" else math.sqrt(smallest), "SMALLEST": smallest, **constants}
    array, computed = NUMBERS[char]
    lines = ["#include <cuda_fp16.h>"] if char == "e" else []
    lines += [f"typedef {array} T;", f"typedef {computed} A;", *(f"#define {name} {value!r}" for name, value in numbers.items())]
    files = (path(name).read_text(encoding="utf-8") for name in ("common", *SHARED[family], family))
    return "\n".join([*lines, *files])


def path(name: str) -> Path:
    """The file of a family's kernels, or of what families share, which lies here."""
    return next(file for file in (HERE / f"{name}.cu", HERE.parent / f"{name}.cu") if file.exists())


@functools.cache
def kernel(family: str, name: str, char: str, **constants: int) -> Any:
    """A kernel, compiled when it is first called."""
    return module(family, char, **constants).get_function(name)


@functools.cache
def module(family: str, char: str, **constants: int) -> Any:
    """The kernels of a family; CuPy keeps what it compiled on disk."""
    return cupy.RawModule(code=source(family, char, **constants))


def each(family: str, name: str, char: str, n: int, *args: Any) -> None:
    """Launch a loop over n entries, for a dtype."""
    if n:
        kernel(family, name, char)((min(BLOCKS, -(-n // THREADS)),), (THREADS,), (n, *args))


def teams(rows: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(grid, block) where the block's x threads share a row of n entries: part of a warp, a warp, or a block of many."""
    if n > 1024:
        return (rows,), (256 if n <= 8192 else 1024, 1)
    x = min(32, 1 << max(0, n - 1).bit_length())
    y = 128 // x
    return (-(-rows // y),), (x, y)


def scalar(x: Any) -> tuple[float, Any]:
    """A number, or an array of one number, as two arguments of a kernel: by value, and where it lies on the device or 0."""
    return (0.0, x) if isinstance(x, cupy.ndarray) else (float(x), 0)


def pointer(x: Any) -> Any:
    """An array as the argument of a kernel; a null pointer for None."""
    return 0 if x is None else x


def integers(x: Any) -> tuple[Any, int]:
    """An array of any integer dtype as two arguments: where it lies, and its dtype as index_at() of common.cu wants it."""
    return x, x.dtype.itemsize if x.dtype.kind == "i" or x.dtype.itemsize == 8 else -x.dtype.itemsize
