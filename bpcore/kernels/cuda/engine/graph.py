"""CUDA graphs: what a function launches, captured once and launched again in one go."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import cupy


@functools.cache
def side_stream() -> Any:
    """The stream that all captures are made on: one, so that cuBLAS has one handle for it."""
    return cupy.cuda.Stream(non_blocking=True)


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """No garbage collection within: it could free memory of the device, which ends a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Graph:
    """Launches of a function, with the memory that they use: a pool of their own, which lives as long as they do.

    Run the function until `settled`, that is until it needs no new memory and all kernels are loaded: a capture allows
    neither. Then capture it, which runs nothing, and launch it any number of times. Each launch writes to the same memory, so
    what the function returned is to be copied before the next.
    """

    def __init__(self) -> None:
        self.pool = cupy.cuda.MemoryPool()
        self.graph: Any = None
        self.settled = False

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the side stream, between what the current stream was asked before and after, with this graph's memory."""
        current, side = cupy.cuda.get_current_stream(), side_stream()
        side.wait_event(current.record())
        try:
            with side, cupy.cuda.using_allocator(self.pool.malloc):
                yield
        finally:
            current.wait_event(side.record())

    def run(self, function: Callable[[], Any]) -> Any:
        """What the function returns, run as it is."""
        before = self.pool.total_bytes()
        with self._aside():
            result = function()
        self.settled = before == self.pool.total_bytes() > 0
        return result

    def capture(self, function: Callable[[], Any]) -> Any:
        """What the function returns: arrays that every launch writes. An error leaves no graph, and nothing was run."""
        side = side_stream()
        with without_garbage(), self._aside():
            side.begin_capture(cupy.cuda.runtime.streamCaptureModeThreadLocal)
            try:
                result = function()
            except BaseException:
                with contextlib.suppress(Exception):  # the error above is the one to tell
                    side.end_capture()
                raise
            self.graph = side.end_capture()
        return result

    def launch(self) -> None:
        """Launch what was captured, on the current stream."""
        self.graph.launch()
