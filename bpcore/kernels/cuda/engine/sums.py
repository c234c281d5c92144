"""Sums over rows and over vectors. Their order is fixed, so results are reproducible."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import SUMMING, by_columns, kernel, pointer, teams

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
    eps: float | None = None,
    u: Any = None,
    dt: Any = None,
    through: str = "relu",
) -> None:
    """Writes the sums over rows of v (rows, n) to dbeta, and of v (z - mean) scale to dgamma. Arguments may be None.

    span, width: how many rows and columns share one entry of mean and scale, where width None means all columns; mean is measured
    from the first entry of z of those that share it. eps: if given, each column has its mean, and `scale` is its variance.
    u, dt: the sums are those of dt = B[f, ·](v), which is written too. `through` names f: "relu", where u is what f returned, or
    "gelu", where u is what f was given.
    """
    n, char = v.shape[-1], v.dtype.char
    rows = v.size // n if n else 0
    if not n:
        return
    grid, block = by_columns(rows, n, char, SUMMING)
    count = n if dgamma is None else 2 * n
    part = scratch((grid[1], count), char)
    more: tuple[Any, ...] = ()
    name = "columns"
    if u is not None:
        name, more = f"columns_{through}", (u, dt)
    elif dgamma is not None and eps is not None:
        name, more = "columns_standardized", (z, mean, scale, eps)
    elif dgamma is not None:
        name, more = "columns_normalized", (z, pointer(mean), scale, span, n if width is None else width)
    kernel("sums", name, char)(grid, block, (rows, n, v, *more, part))
    finish("sums", "finish_columns", char, count, n, grid[1], part, pointer(dbeta), pointer(dgamma))


def finish(family: str, name: str, char: str, count: int, *args: Any) -> None:
    """Launch the second pass of sums over `count` columns: `sum_parts` in columns.cu."""
    kernel(family, name, char)((-(-count // 32),), (32, 32), (count, *args))


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


def row_sums(x: Any, u: Any) -> None:
    """Writes the sums of the rows of x (rows, n) to u."""
    char, (rows, n) = x.dtype.char, x.shape
    kernel("sums", "row_sums", char)(*teams(rows, n, char), (rows, n, x, u))
