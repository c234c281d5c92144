"""The conditions of twins: which arguments compiled code can take. They are asked at each call, so they are cheap.

`COMPILED` has those of loops compiled for the CPU, over NumPy's arrays; `CUDA` those of kernels, over CuPy's. A set of twins
adds only what its own functions ask for beside these.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from bpcore.array import is_half


class Conditions:
    """Conditions on arrays of the dtypes `chars` (NumPy's dtype.char) that lie in one piece.

    rows_first, columns_first: the names of the flags that say that an array lies in one piece, in C's order or Fortran's.
    """

    def __init__(self, chars: str, rows_first: str, columns_first: str):
        self.chars = chars
        self.contiguous = attrgetter(f"flags.{rows_first}")
        self.transposed = attrgetter(f"flags.{columns_first}")
        self.dense = self._dense()

    def _dense(self) -> Callable[..., bool]:
        chars, contiguous = self.chars, self.contiguous

        def dense(first: Any, /, *others: Any) -> bool:
            """Whether all arrays among the arguments are C-contiguous, of one dtype that there is code for."""
            char, array = first.dtype.char, type(first)
            if char not in chars or not contiguous(first):
                return False
            for x in others:  # noqa: SIM110  a generator takes twice as long
                if type(x) is array and (x.dtype.char != char or not contiguous(x)):
                    return False
            return True

        return dense

    def some(self, first: Any, /, *others: Any) -> bool:
        """Whether the first array has entries, and all are `dense`."""
        return first.size > 0 and self.dense(first, *others)

    def matrix(self, x: Any, char: str) -> bool:
        """Whether x, of two axes, or its transpose, is C-contiguous, and of this dtype."""
        return bool(x.dtype.char == char and (self.contiguous(x) or self.transposed(x)))

    def linear(self, z: Any, W: Any, b: Any) -> bool:
        """Whether z W + b fits in shapes, z and b are `dense`, and W is a `matrix`."""
        fits = z.size > 0 and self.dense(z, b) and self.matrix(W, z.dtype.char) and z.shape[-1] == W.shape[0]
        return fits and (b is None or b.shape == W.shape[1:])

    def linear_backward(self, z: Any, W: Any, v: Any, dW: Any, db: Any, need_dz: bool) -> bool:
        """As `linear`, with v and the windows that are written."""
        fits = v.shape == (*z.shape[:-1], W.shape[1]) and dW.shape == W.shape and self.matrix(dW, z.dtype.char)
        return fits and self.dense(z, v) and self.linear(z, W, db)

    def along_rows(self, first: Any, /, *others: Any) -> bool:
        """Whether the last argument, an axis, is the last axis, and the arrays are as in `some`."""
        return others[-1] in (-1, first.ndim - 1) and self.some(first, *others)

    def classes(self, t: Any, y: Any, weights: Any) -> bool:
        """Whether t (..., k) is dense, y (...) holds class indices, and weights, if given, are like y and of t's dtype."""
        indices = y.dtype.kind in "iu" and t.ndim > 0 and y.shape == t.shape[:-1]
        return indices and self.some(t) and (weights is None or (weights.shape == y.shape and weights.dtype == t.dtype))

    def mask(self, x: Any) -> bool:
        """Whether x is None, or C-contiguous booleans."""
        return x is None or (x.dtype.char == "?" and self.contiguous(x))


COMPILED = Conditions("fd", "carray", "farray")  # writable too: compiled code knows no other arrays
CUDA = Conditions("efd", "c_contiguous", "f_contiguous")


def wide(first: Any, /, *others: Any) -> bool:
    """Whether the first array is not float16, in which NumPy adds up too coarsely: definitions go over float32."""
    return not is_half(first)
