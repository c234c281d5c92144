"""Products of matrices."""

from __future__ import annotations

from typing import Any

import cupy


def gemm(a: Any, b: Any, out: Any) -> Any:
    """Writes a @ b to out, C-contiguous, and returns it. a, b: C-contiguous or transposed views; float16 sums in float32."""
    return cupy.matmul(a, b, out=out)
