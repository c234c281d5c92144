"""A second CUDA stream, for transfers while the main stream computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SideStream:
    """A CUDA stream on which a thread moves data to the GPU while the main stream computes. The host waits for neither.

    Within `with side:`, `Backend.asarray` copies to pinned memory and queues the transfer (CuPy keeps that memory until it is
    done). CuPy reuses the memory that was allocated on this stream for this stream. So call `release` after the main stream's
    last use of an array, and before the array is freed.
    """

    def __init__(self, cuda: Any):
        self.cuda = cuda
        self.stream = cuda.Stream(non_blocking=True)

    def __enter__(self) -> None:
        self.stream.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.stream.__exit__(*error)

    def mark(self) -> Any:
        """A mark after all work queued on this stream so far, for `wait`."""
        return self.stream.record(self.cuda.Event(disable_timing=True))

    def wait(self, mark: Any) -> None:
        """Let the main stream, the caller's current one, continue only after `mark`."""
        self.cuda.get_current_stream().wait_event(mark)

    def release(self) -> None:
        """Let this stream continue only after all work queued on the main stream so far."""
        self.stream.wait_event(self.cuda.get_current_stream().record(self.cuda.Event(disable_timing=True)))


class HostCopies:
    """Copies of arrays of a GPU in pinned memory of the host, made by a stream of their own. The host does not wait for them.

    pinned: a function that gives pinned memory for a copy of an array. There are two sets of copies at most, made when needed.
    """

    def __init__(self, arrays: dict[str, Any], side: SideStream, pinned: Callable[[Any], Any]):
        self.arrays = arrays
        self.side = side
        self.pinned = pinned
        self.sets: list[dict[str, Any]] = []
        self.mark: Any = None  # after copies that the main stream has not waited for yet

    def take(self, kept: dict[str, Any] | None) -> dict[str, Any]:
        """Queue copies of the arrays, and return them: the set that is not `kept`. Call `settle` before the arrays change."""
        copies = next((each for each in self.sets if each is not kept), None)
        if copies is None:
            copies = {name: self.pinned(x) for name, x in self.arrays.items()}
            self.sets.append(copies)
        self.side.release()
        for name, x in self.arrays.items():
            x.data.copy_to_host_async(copies[name].ctypes.data, x.nbytes, self.side.stream)
        self.mark = self.side.mark()
        return copies

    def settle(self) -> None:
        """Let the main stream continue only after the copies are made."""
        if self.mark is not None:
            self.side.wait(self.mark)
            self.mark = None
