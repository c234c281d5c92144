"""What the present thread is doing, for those below it to ask: recording launches, multiplying in TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import numpy as np

# Whether this thread records what it launches, to launch it again later: then nothing may come from the host, nor go there.
recording: ContextVar[bool] = ContextVar("bpcore_recording", default=False)

tf32: ContextVar[bool] = ContextVar("bpcore_tf32", default=False)  # whether products of float32 may be in TF32


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within it, kernels find `tf32` set if dtype is "tf32"; if it is "float16", an overflow gives infinity without a warning."""
    token = tf32.set(dtype == "tf32")
    try:
        with np.errstate(over="ignore", invalid="ignore") if dtype == "float16" else nullcontext():
            yield
    finally:
        tf32.reset(token)
