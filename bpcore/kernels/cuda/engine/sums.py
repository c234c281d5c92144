"""Sums over rows and over vectors, in a fixed order."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels.conditions import CUDA
from bpcore.kernels.cuda.engine.launch import each, kernel, pointer

PARTS = 512  # blocks that a sum over a vector is shared among


def scratch(n: Any, char: str) -> Any:
    """An array of a shape, of the dtype that is computed in."""
    return cupy.empty(n, cupy.float64 if char == "d" else cupy.float32)


def statistics(count: int) -> Any:
    """The condition that so many arrays after the first are in the dtype that is computed in, and the others are dense."""

    def hold(z: Any, /, *others: Any) -> bool:
        char = "d" if z.dtype.char == "d" else "f"
        in_char = all(x.dtype.char == char and x.flags.c_contiguous for x in others[:count])
        return in_char and CUDA.nonempty(z, *others[count:])

    return hold


def sum_columns(v: Any, dbeta: Any, z: Any = None, mean: Any = None, scale: Any = None, dgamma: Any = None, **where: Any) -> None:
    """Writes the sums over rows of v (rows, n) to dbeta, and those of v (z - mean) scale to dgamma; None is left out.

    where: span and width, the rows and columns that share one entry of mean and scale; eps, where scale is a variance; u and
    dt, where v counts where u > 0 alone, and dt becomes that.
    """
    n, char = v.shape[-1], v.dtype.char
    rows = v.size // n if n else 0
    if not n:
        return
    strips = -(-n // 32)
    parts = max(1, min(rows // 32, 2048 // strips))
    part = scratch(parts * n * (1 if dgamma is None else 2), char)
    statistics = pointer(z), pointer(mean), pointer(scale), where.get("eps", -1.0), where.get("span", 1), where.get("width", n)
    masked = where.get("u", 0), where.get("dt", 0)
    kernel("sums", "columns", char)((strips, parts), (32, 8), (rows, n, v, *statistics, *masked, part))
    count = n if dgamma is None else 2 * n
    each("sums", "finish_columns", v.dtype.char, count, parts, n, part, pointer(dbeta), pointer(dgamma))


def total(x: Any, squared: bool, least: float = -float("inf")) -> Any:
    """Σ x, or Σ x², at least `least`: an array of one number."""
    char, out = x.dtype.char, cupy.empty((), x.dtype)
    parts = max(1, min(PARTS, -(-x.size // 1024)))
    part = scratch(parts, char)
    kernel("sums", "total", char)((parts,), (256,), (x.size, int(squared), x, part))
    kernel("sums", "finish_total", char)((1,), (256,), (parts, part, least, out))
    return out
