"""Ctrl-C during training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, Ctrl-C only calls `call`. No effect outside the main thread: there Python handles no signals."""

    def handle(number: int, frame: Any) -> None:
        call()

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # somebody wants no Ctrl-C, e.g. nohup
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
