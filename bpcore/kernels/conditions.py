"""Conditions of twins: which arguments compiled code can take. They are asked at each call, so they must be cheap.

`COMPILED` has the conditions of loops compiled for the CPU, on NumPy's arrays; `CUDA` those of kernels, on CuPy's. A set of twins
adds only what its own functions need beyond these.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from bpcore.array import is_half


class Conditions:
    """Conditions on arrays that are contiguous and have one of the dtypes `chars` (NumPy's dtype.char).

    rows_first, columns_first: the names of the flags of arrays that are contiguous in C order and in Fortran order.
    """

    def __init__(self, chars: str, rows_first: str, columns_first: str):
        self.chars = chars
        self.contiguous = attrgetter(f"flags.{rows_first}")
        self.transposed = attrgetter(f"flags.{columns_first}")
        self.dense = self._dense()

    def _dense(self) -> Callable[..., bool]:
        chars, contiguous = self.chars, self.contiguous

        def dense(first: Any, /, *others: Any) -> bool:
            """Whether all arrays among the arguments are C-contiguous and have one dtype, for which there is code."""
            char, array = first.dtype.char, type(first)
            if char not in chars or not contiguous(first):
                return False
            for x in others:  # noqa: SIM110  a generator takes twice as long
                if type(x) is array and (x.dtype.char != char or not contiguous(x)):
                    return False
            return True

        return dense

    def nonempty(self, first: Any, /, *others: Any) -> bool:
        """Whether the arrays are `dense` and the first one has entries."""
        return first.size > 0 and self.dense(first, *others)

    def matrix(self, x: Any, char: str) -> bool:
        """Whether x, which has two axes, has this dtype, and x or its transpose is C-contiguous."""
        return x.dtype.char == char and (self.contiguous(x) or self.transposed(x))  # type: ignore[no-any-return]

    def linear(self, z: Any, W: Any, b: Any) -> bool:
        """Whether the shapes allow z W + b, z and b are `dense`, and W is a `matrix`."""
        char, shape, contiguous = z.dtype.char, W.shape, self.contiguous  # written out: it is asked in every layer
        if char not in self.chars or z.shape[-1] != shape[0] or not (contiguous(z) and z.size and self.matrix(W, char)):
            return False
        return b is None or (b.dtype.char == char and b.shape == shape[1:] and contiguous(b))

    def linear_backward(self, z: Any, W: Any, v: Any, dW: Any, db: Any, need_dz: bool) -> bool:
        """As `linear`, for v and for the windows dW and db too."""
        char = z.dtype.char
        if not self.linear(z, W, db) or v.shape != (*z.shape[:-1], *W.shape[1:]) or dW.shape != W.shape:
            return False
        return v.dtype.char == char and self.contiguous(v) and self.matrix(dW, char)

    def last_axis(self, first: Any, /, *others: Any) -> bool:
        """Whether the last argument, an axis, is the last axis of the first array, and the arrays are `nonempty`."""
        return others[-1] in (-1, first.ndim - 1) and self.nonempty(first, *others)

    def class_indices(self, t: Any, y: Any, weights: Any) -> bool:
        """Whether t (..., k) is `nonempty`, y (...) has class indices, and weights, if any, have y's shape and t's dtype."""
        indices = y.dtype.kind in "iu" and t.ndim > 0 and t.size > 0 and y.shape == t.shape[:-1] and self.dense(t)
        return indices and (weights is None or (weights.shape == y.shape and weights.dtype == t.dtype))

    def mask(self, x: Any) -> bool:
        """Whether x is None or an array of C-contiguous booleans."""
        return x is None or (x.dtype.char == "?" and self.contiguous(x))


def but_last(serves: Callable[..., bool]) -> Callable[..., bool]:
    """The condition `serves` on all arguments but the last, which the twin takes in any layout."""

    def condition(first: Any, /, *others: Any) -> bool:
        return serves(first, *others[:-1])

    return condition


COMPILED = Conditions("fd", "carray", "farray")  # carray: writable too, since the loops are compiled for no read-only arrays
CUDA = Conditions("eEfd", "c_contiguous", "f_contiguous")


def not_half(first: Any, /, *others: Any) -> bool:
    """Whether the first array is not float16 or bfloat16. NumPy sums float16 too coarsely; the definitions go over float32."""
    return not is_half(first)
