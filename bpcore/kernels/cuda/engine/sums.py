"""Sums over rows and over vectors. Their order is fixed, so results are reproducible."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, kernel, pointer

PARTS = 512  # blocks that share the sum of a vector


def scratch(shape: int | tuple[int, ...], char: str) -> Any:
    """An empty array in the dtype that kernels compute in for arrays of dtype `char`."""
    return cupy.empty(shape, cupy.float64 if char == "d" else cupy.float32)


def with_statistics(count: int) -> Any:
    """The condition that the `count` arrays after the first have the dtype of computation, and the others are dense."""

    def serves(z: Any, /, *others: Any) -> bool:
        char = "d" if z.dtype.char == "d" else "f"
        computed = all(x.dtype.char == char and x.flags.c_contiguous for x in others[:count])
        return computed and CUDA.nonempty(z, *others[count:])

    return serves


def grid_of_columns(rows: int, n: int) -> tuple[int, int]:
    """The grid of blocks of 32 x 8 threads that sum the columns of a matrix: strips of 32 columns, and parts of the rows."""
    strips = -(-n // 32)
    return strips, max(1, min(rows // 32, 2048 // strips))


def sum_columns(
    v: Any,
    dbeta: Any,
    z: Any = None,
    mean: Any = None,
    scale: Any = None,
    dgamma: Any = None,
    *,
    span: int = 1,
    width: int | None = None,
    eps: float = -1.0,
    u: Any = None,
    dt: Any = None,
) -> None:
    """Writes the sums over rows of v (rows, n) to dbeta, and of v (z - mean) scale to dgamma. Arguments may be None.

    span, width: how many rows and columns share one entry of mean and scale; width None means all columns. eps >= 0: `scale` is
    a variance; else mean is measured from the first entry of z of those that share it. u: entries of v count only where u > 0.
    dt: v, with all other entries set to 0, is written there.
    """
    n, char = v.shape[-1], v.dtype.char
    rows = v.size // n if n else 0
    if not n:
        return
    strips, parts = grid_of_columns(rows, n)
    part = scratch(parts * n * (1 if dgamma is None else 2), char)
    statistics = pointer(z), pointer(mean), pointer(scale), eps, span, n if width is None else width
    kernel("sums", "columns", char)((strips, parts), (32, 8), (rows, n, v, *statistics, pointer(u), pointer(dt), part))
    count = n if dgamma is None else 2 * n
    each("sums", "finish_columns", char, count, parts, n, part, pointer(dbeta), pointer(dgamma))


def blocks(x: Any) -> int:
    """The number of blocks that share a sum over x."""
    return max(1, min(PARTS, -(-int(x.size) // 1024)))


def total(x: Any, least: float) -> Any:
    """Σ x, but at least `least`: an array without axes."""
    char = x.dtype.char
    out, part = cupy.empty((), x.dtype), scratch(blocks(x), char)
    kernel("sums", "total", char)((part.size,), (256,), (x.size, x, part))
    kernel("sums", "finish_total", char)((1,), (256,), (part.size, part, least, out))
    return out
