"""Work for a GPU that goes on beside the main stream's."""

from __future__ import annotations

from typing import Any


class SideStream:
    """A CUDA stream for what a thread moves to the GPU while the main stream computes. The host waits for neither.

    Within `with side:`, `Backend.asarray` copies to pinned memory and queues the transfer (CuPy keeps that memory until it is
    done). CuPy's pool has memory for each stream: what was allocated here is reused here, so `release` must come between the
    main stream's last use of it and letting go of it.
    """

    def __init__(self, cuda: Any):
        self.cuda, self.stream = cuda, cuda.Stream(non_blocking=True)

    def __enter__(self) -> None:
        self.stream.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.stream.__exit__(*error)

    def mark(self) -> Any:
        """What `wait` waits for: all that this stream was asked so far."""
        return self.stream.record(self.cuda.Event(disable_timing=True))

    def wait(self, mark: Any) -> None:
        """The main stream, that is the caller's, goes on once `mark` is reached."""
        self.cuda.get_current_stream().wait_event(mark)

    def release(self) -> None:
        """This stream goes on once the main one has done all that it was asked so far."""
        self.stream.wait_event(self.cuda.get_current_stream().record(self.cuda.Event(disable_timing=True)))
