"""The state of the current thread that other files ask for: whether it records launches, whether it may multiply in TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import numpy as np

# Whether this thread records its launches on a GPU, to repeat them later. Then no data may come from the host or go to it.
recording: ContextVar[bool] = ContextVar("bpcore_recording", default=False)

tf32: ContextVar[bool] = ContextVar("bpcore_tf32", default=False)  # whether float32 products may use TF32

# A decorator: within the function NumPy neither warns nor raises, whatever np.seterr says. Underflow in exp is no error, and
# bpcore says itself what is not finite. It costs 0.4 us, so a step has one.
quiet = np.errstate(all="ignore")


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within the block `tf32` is set if dtype is "tf32"; if it is "float16", an overflow gives infinity without a warning."""
    token = tf32.set(dtype == "tf32")
    try:
        with np.errstate(over="ignore", under="ignore", invalid="ignore") if dtype == "float16" else nullcontext():
            yield
    finally:
        tf32.reset(token)
