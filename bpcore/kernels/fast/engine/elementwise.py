"""Compiled passes over entries, which threads share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed
from bpcore.kernels.fast.engine.threads import COST, REASSOCIATE, compiled, share, team, wide

MANY = 1 << 18  # numbers; up to here NumPy, in one thread, takes less than 0.1 ms, and nothing need be compiled


def large(z: np.ndarray, /) -> bool:
    """Whether z has many numbers, of float32 and dense: then threads pay where NumPy has a function."""
    return z.size > MANY and z.dtype.char == "f" and COMPILED.dense(z)


@numba.njit(error_model="numpy", fastmath=REASSOCIATE)  # not cached itself: `run` is, and contains it
def _each(start, stop, f, z, v, c, least, u):
    wide()
    z, v, u = z[start:stop], v[start:stop], u[start:stop]
    for i in range(u.shape[0]):
        u[i] = flushed(f(z[i], v[i], c), least)


@numba.njit(error_model="numpy", fastmath=REASSOCIATE)
def _each_repeated(start, stop, f, z, v, c, least, u):
    wide()
    while start < stop:
        first = start % v.shape[0]
        last = start + min(stop - start, v.shape[0] - first)
        row, right, out = z[start:last], v[first:], u[start:last]
        for i in range(out.shape[0]):
            out[i] = flushed(f(row[i], right[i], c), least)
        start = last


def loop(f: Callable[..., Any]) -> Any:
    """The compiled pass u = f(z, v, c) over vectors z and v with a constant c. Entries of u below `least`, if any, become 0."""
    f = register_jitable(f)

    @compiled
    def run(z, v, c, least, u):
        share(_each, u.shape[0], team(u, COST * u.shape[0]), (f, z, v, c, least, u))

    return run


def repeated_loop(f: Callable[..., Any]) -> Any:
    """As `loop`, but v may be shorter than z: then it is repeated. It takes 0.1 s longer to compile."""
    f = register_jitable(f)

    @compiled
    def run(z, v, c, least, u):
        share(_each_repeated, u.shape[0], team(u, COST * u.shape[0]), (f, z, v, c, least, u))

    return run


def pass_over(run: Any, flushes: bool, z: np.ndarray, v: np.ndarray, c: float = 0.0) -> np.ndarray:
    """u = f(z, v, c), computed by the pass `run`; z and u have one shape, which ends in that of v."""
    u = np.empty_like(z)
    run(z.reshape(-1), v.reshape(-1), z.dtype.type(c), flush_threshold(z) if flushes else None, u.reshape(-1))
    return u
