"""The process of one engine of primitives.py. Each line of JSON on its input names a row; it answers with what it measured.

python primitive_worker.py ENGINE PRECISION SIZES SECONDS
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from engines import COMPUTE
from primitive_draw import SIZES, Draw
from primitive_rows import Arguments, moved, operations, rows
from primitives import ENGINES
from process import serve

from bpcore.backend import get_backend
from bpcore.context import computing_in
from bpcore.functional import linear
from bpcore.primitive import PRIMITIVES, SETS, Primitive, in_use, load

COPIED = {"real": 1 << 26, "small": 1 << 16}  # numbers in the array that is copied
SIDES = {"real": {"numpy": 2048, "cupy": 8192}, "small": {"numpy": 64, "cupy": 64}}  # of the matrices that are multiplied
HEAD_START = 50  # copies that a GPU does before the calls that are measured
CALLS = 20  # of them, at most
LONG = 0.2  # seconds, for these calls together


class Clock:
    """Measures calls on a CPU, and what it copies in a second, with all threads."""

    def __init__(self, copied: int):
        self.source, self.target = np.zeros(copied, "float32"), np.ones(copied, "float32")
        threads = int(os.environ["OMP_NUM_THREADS"])
        self.parts = [np.array_split(x, threads) for x in (self.target, self.source)]
        self.pool = ThreadPoolExecutor(threads)

    def copy(self) -> None:
        """Copy the array."""
        list(self.pool.map(np.copyto, *self.parts))

    def block(self, call: Callable[[], Any]) -> float:
        """The seconds of a call."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def seconds(self, call: Callable[[], Any], seconds: float) -> float:
        """The median time of a call, measured over about `seconds`, after a call that counts only if it is long."""
        first = self.block(call)
        if first > LONG:
            return first
        times, stop = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < stop:
            times.append(self.block(call))
        return statistics.median(times)


class GPUClock(Clock):
    """Measures on a GPU, by its own clock. It has work before the calls, so that the host has launched them when they begin."""

    def __init__(self, copied: int):
        import cupy

        self.events, self.calls = cupy.cuda, 1
        self.source, self.target = (cupy.zeros(copied, "float32") for _ in range(2))

    def copy(self) -> None:
        self.target[...] = self.source

    def seconds(self, call: Callable[[], Any], seconds: float) -> float:
        call()  # compiles
        self.calls = 1
        self.calls = max(1, min(CALLS, int(LONG / self.block(call))))
        return super().seconds(call, seconds)

    def block(self, call: Callable[[], Any]) -> float:
        """The mean of some calls."""
        start, end = self.events.Event(), self.events.Event()
        for _ in range(HEAD_START):
            self.copy()
        start.record()
        for _ in range(self.calls):
            call()
        end.record()
        end.synchronize()
        return float(self.events.get_elapsed_time(start, end)) / 1e3 / self.calls


def serving(known: Primitive, arguments: Arguments) -> str:
    """The name of the set whose twin serves these arguments, or "definition"."""
    kind = type(arguments[0])
    for name in SETS.get(kind.__module__.partition(".")[0], ()):
        twin = known.twins.get(name) if in_use(name) and getattr(load(name)[0], "ARRAY", None) is kind else None
        if twin is not None and (twin.serves is None or twin.serves(*arguments)):
            return name.rpartition(".")[2]
    return "definition"


class Worker:
    """An engine with its arrays of the last row."""

    def __init__(self, engine: str, precision: str, sizes: str):
        backend = get_backend(ENGINES[engine].backend)
        self.compute = backend.check_compute(COMPUTE[precision], "float32")
        self.draw = Draw(backend, "float32" if precision == "tf32" else self.compute, SIZES[sizes])
        self.rows = rows(SIZES[sizes])
        self.clock = (GPUClock if backend.asynchronous else Clock)(COPIED[sizes])
        self.side = SIDES[sizes][backend.library]
        self.drawn: tuple[str, int, Arguments, dict[str, Any]] | None = None

    def ceilings(self, seconds: float) -> dict[str, float]:
        """Bytes a second of a copy, read plus written; operations a second of a product."""
        A, B = (self.draw.z(self.side, self.side) for _ in range(2))
        with computing_in(self.compute):
            product = min(self.clock.seconds(lambda: linear(A, B, None), seconds) for _ in range(2))
        copied = 2 * self.clock.source.nbytes / min(self.clock.seconds(self.clock.copy, seconds) for _ in range(2))
        return {"bytes": copied, "operations": 2 * self.side**3 / product}

    def answer(self, name: str, row: int, seconds: float) -> dict[str, Any]:
        """A row's time, the set that serves it, its bytes and operations; or why it cannot be measured."""
        known, its = PRIMITIVES[name], self.rows[name][row]
        try:
            with computing_in(self.compute):
                if self.drawn is None or self.drawn[:2] != (name, row):
                    self.drawn = None
                    gc.collect()
                    arguments = its.draw(self.draw)
                    needs = {
                        "bytes": moved(known, its, arguments, known.call(*arguments)),
                        "operations": operations(known, its, arguments),
                        "set": serving(known, arguments),
                    }
                    self.drawn = name, row, arguments, needs
                arguments = self.drawn[2]
                return {**self.drawn[3], "seconds": self.clock.seconds(lambda: known.call(*arguments), seconds)}
        except Exception as error:  # where one runs out of memory, the other rows are still measured
            return {"failed": f"{type(error).__name__}: {error}"}


def start() -> tuple[dict[str, float], Callable[..., dict[str, Any]]]:
    """The ceilings, and what answers."""
    engine, precision, sizes, seconds = sys.argv[1:]
    worker = Worker(engine, precision, sizes)
    return worker.ceilings(float(seconds)), worker.answer


if __name__ == "__main__":
    serve(start)
