"""A second CUDA stream, for transfers while the main stream computes."""

from __future__ import annotations

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
