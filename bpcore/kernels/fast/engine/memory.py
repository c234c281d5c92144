"""Keeps freed memory in the process, because each step allocates the same arrays as the step before.

By default glibc returns the end of its heap to the system as soon as some megabytes of it are free, and the next step asks for it
again: thousands of page faults, 5 % of a transformer's step.
"""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt
TRIM_BYTES = 1 << 28  # free bytes at the heap's end that glibc may keep
MMAP_BYTES = 1 << 25  # arrays of this size and larger get a memory mapping of their own
VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed() -> None:
    """Set glibc's thresholds, unless the environment sets them or the C library is not glibc."""
    if any(name in os.environ for name in VARIABLES):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    mallopt(MMAP_THRESHOLD, MMAP_BYTES)
    mallopt(TRIM_THRESHOLD, TRIM_BYTES)
