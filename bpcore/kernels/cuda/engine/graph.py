"""CUDA graphs: the launches of a function, captured once and then launched together."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import cupy


@functools.cache
def side_stream() -> Any:
    """The stream for all captures. There is only one, so that cuBLAS needs one handle."""
    return cupy.cuda.Stream(non_blocking=True)


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """Within the block there is no garbage collection: it could free memory of the device, which would break a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Graph:
    """The captured launches of a function, with the memory pool that they use.

    First `run` the function until `settled`: it needs no new memory and all its kernels are loaded, since a capture allows
    neither. Then `capture` it, which executes nothing, and `launch` it any number of times. Each launch writes to the same
    memory: copy the results before the next launch.
    """

    def __init__(self) -> None:
        self.pool = cupy.cuda.MemoryPool()
        self.graph: Any = None
        self.settled = False

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Within the block, work goes to the side stream, in order with the current stream, and uses this graph's memory."""
        current, side = cupy.cuda.get_current_stream(), side_stream()
        side.wait_event(current.record())
        try:
            with side, cupy.cuda.using_allocator(self.pool.malloc):
                yield
        finally:
            current.wait_event(side.record())

    @staticmethod
    def stream() -> int | None:
        """The address of the current stream, or None while somebody captures it."""
        current = cupy.cuda.get_current_stream()
        return None if current.is_capturing() else int(current.ptr)

    @staticmethod
    def memory() -> tuple[int, int, int]:
        """Bytes: those that CuPy's pool has got back and not lent again, those free on the device, all on the device."""
        free, total = cupy.cuda.runtime.memGetInfo()
        return int(cupy.get_default_memory_pool().free_bytes()), int(free), int(total)

    @staticmethod
    def release() -> None:
        """Return to the device what CuPy's pool has got back."""
        cupy.get_default_memory_pool().free_all_blocks()

    def run(self, function: Callable[[], Any]) -> Any:
        """Run the function without capturing it, and return its result."""
        before = self.pool.total_bytes()
        with self._aside():
            result = function()
        self.settled = before == self.pool.total_bytes() > 0
        return result

    def capture(self, function: Callable[[], Any]) -> Any:
        """Capture the function and return its result: arrays that every launch writes. After an error there is no graph."""
        side = side_stream()
        with without_garbage(), self._aside():
            side.begin_capture(cupy.cuda.runtime.streamCaptureModeThreadLocal)
            try:
                result = function()
            except BaseException:
                with contextlib.suppress(Exception):  # the error above matters more
                    side.end_capture()
                raise
            self.graph = side.end_capture()
        return result

    def launch(self) -> None:
        """Launch the captured function on the current stream."""
        self.graph.launch()
