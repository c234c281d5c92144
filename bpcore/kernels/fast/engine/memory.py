"""Freed memory stays with the process: a step asks for the same arrays as the step before.

By default glibc gives the end of its heap back to the system as soon as some megabytes of it are free, and asks for it again
at the next step: thousands of page faults, a twentieth of a transformer's step.
"""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt
KEPT, MAPPED = 1 << 28, 1 << 25  # bytes: of the heap's end, at most; of an array that gets a mapping of its own, at least
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep() -> None:
    """Ask for it, where the C library is glibc and the user has not chosen otherwise in the environment."""
    if any(name in os.environ for name in CHOSEN):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    mallopt(MMAP_THRESHOLD, MAPPED)
    mallopt(TRIM_THRESHOLD, KEPT)
