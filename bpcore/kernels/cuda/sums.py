"""Sums over rows and over vectors, in a fixed order."""

from __future__ import annotations

from typing import Any

import cupy

from bpcore.kernels import serves
from bpcore.kernels.cuda.launch import dense, each, given, kernel, scalar

PARTS = 512  # blocks that a sum over a vector is shared among


def scratch(n: Any, char: str) -> Any:
    """An array of a shape, of the dtype that is computed in."""
    return cupy.empty(n, cupy.float64 if char == "d" else cupy.float32)


def sum_columns(v: Any, dbeta: Any, z: Any = None, mean: Any = None, scale: Any = None, dgamma: Any = None, **where: Any) -> None:
    """Writes the sums over rows of v (rows, n) to dbeta, and those of v (z - mean) scale to dgamma; None is left out.

    where: span and width, of how many rows and columns each number of mean and scale is; eps, where scale is a variance; u and
    dt, where v counts where u > 0 alone, and dt becomes that.
    """
    n, char = v.shape[-1], v.dtype.char
    rows = v.size // n if n else 0
    if not n:
        return
    strips = -(-n // 32)
    parts = max(1, min(rows // 32, 2048 // strips))
    part = scratch(parts * n * (1 if dgamma is None else 2), char)
    statistics = given(z), given(mean), given(scale), where.get("eps", -1.0), where.get("span", 1), where.get("width", n)
    masked = where.get("u", 0), where.get("dt", 0)
    kernel("sums", "columns", char)((strips, parts), (32, 8), (rows, n, v, *statistics, *masked, part))
    count = n if dgamma is None else 2 * n
    each("sums", "finish_columns", v.dtype.char, count, parts, n, part, given(dbeta), given(dgamma))


def total(x: Any, squared: bool, least: float = -float("inf")) -> Any:
    """Σ x, or Σ x², at least `least`: an array of one number."""
    char, out = x.dtype.char, cupy.empty((), x.dtype)
    parts = max(1, min(PARTS, -(-x.size // 1024)))
    part = scratch(parts, char)
    kernel("sums", "total", char)((parts,), (256,), (x.size, int(squared), x, part))
    kernel("sums", "finish_total", char)((1,), (256,), (parts, part, least, out))
    return out


@serves(dense)
def squared_norm(g):
    return total(g, True)


@serves(lambda g, square, largest, clipped: dense(g, clipped) and getattr(square, "dtype", g.dtype) == g.dtype)
def clip_norm(g, square, largest, clipped):
    each("updates", "clip_norm", g.dtype.char, g.size, g, *scalar(square), float(largest), clipped)
