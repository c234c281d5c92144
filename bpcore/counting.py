"""An array namespace that computes no values: it passes shapes on and counts operations.

One operation is one addition, multiplication, comparison or function value; a product (n, m) @ (m, k) is 2 n m k operations.
Moving data (reshape, concat, astype, assignment) counts as none.
"""

from __future__ import annotations

import builtins
import functools
import math
import sys
from typing import Any

import numpy as np

from bpcore.functional.arithmetic import sparse_product
from bpcore.functional.embedding import scatter_add
from bpcore.functional.linear import linear_gelu_backward, linear_relu_backward
from bpcore.primitive import definition, twin

operations = 0  # since this module was loaded; to count a part of a program, read it before and after


def count(n: int) -> None:
    """Adds n to `operations`."""
    global operations
    operations += n


class CountingArray:
    """An array without values: its shape, its dtype, and its memory, which views share."""

    device = None

    def __init__(self, shape: Any, dtype: Any, memory: Memory | None = None):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.memory = memory or Memory(math.prod(self.shape) * self.dtype.itemsize)

    def __repr__(self) -> str:
        return f"<{self.dtype} array of shape {self.shape}, without values: bp.cost counts operations>"

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules[__name__]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def T(self) -> CountingArray:
        return matrix_transpose(self)

    mT = T

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> CountingArray:
        if isinstance(key, CountingArray):
            if key.dtype.kind == "b":
                raise TypeError(
                    "a module takes entries by a mask, and bp.cost does not know how many; write xp.where(mask, z, 0)"
                )
            return CountingArray((*key.shape, *self.shape[1:]), self.dtype)
        return CountingArray(np.broadcast_to(np.float32(0), self.shape)[key].shape, self.dtype, self.memory)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, CountingArray):
            np.broadcast_shapes(self[key].shape, getattr(value, "shape", ()))

    def _value(self) -> Any:
        raise TypeError(
            "a module asks for the value of an array (float, int, bool, if), and bp.cost has shapes only; use xp.where"
        )

    __float__ = __int__ = __bool__ = __index__ = _value

    def __matmul__(self, other: CountingArray) -> CountingArray:
        if self.shape[-1] != other.shape[-2]:
            raise ValueError(f"matmul of shapes {self.shape} and {other.shape}")
        leading = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        u = CountingArray((*leading, self.shape[-2], other.shape[-1]), self.dtype)
        count(2 * u.size * self.shape[-1])
        return u

    def __neg__(self) -> CountingArray:
        return elementwise(self)

    __abs__ = __invert__ = __neg__

    def __array_function__(self, function: Any, types: Any, args: Any, named: Any) -> Any:
        raise TypeError(numpy_only(f"np.{function.__name__}", function.__name__))

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **named: Any) -> Any:
        raise TypeError(numpy_only(f"np.{function.__name__}", function.__name__))


def numpy_only(used: str, name: str) -> str:
    """The text of the error that a module uses what only NumPy's arrays have."""
    return f"a module uses {used}, which only NumPy's arrays have; {standard(name)}"


# of the Array API, instead of a function or method of NumPy
INSTEAD = {
    "copy": "asarray(z, copy=True)",
    "dot": "matmul(z, w)",
    "flatten": "reshape(z, (-1,))",
    "ravel": "reshape(z, (-1,))",
    "swapaxes": "permute_dims(z, axes)",
    "transpose": "permute_dims(z, axes)",
}


def standard(name: str) -> str:
    """How to write a function or method of NumPy with the Array API, in the words of a repair."""
    if callable(globals().get(name)):
        return f"write bp.namespace(z).{name}(...)"
    return f"write bp.namespace(z).{INSTEAD[name]}" if name in INSTEAD else "write it by functions of the Array API"


class Memory:
    """A piece of memory: its size in bytes. `Memory.live` are those of all pieces since `start`, `Memory.peak` were the most.

    What a primitive needs only while it runs does not count: a twin may need none of it. within: how many primitives run now.
    """

    live = peak = within = starts = 0

    def __init__(self, bytes: int):
        self.bytes = bytes
        self.since = Memory.starts
        Memory.live += bytes
        Memory.look()

    def __del__(self) -> None:
        if self.since == Memory.starts:
            Memory.live -= self.bytes

    @staticmethod
    def start() -> None:
        """Count anew. Pieces of before, garbage among them, do not count."""
        Memory.starts += 1
        Memory.live = Memory.peak = 0

    @staticmethod
    def look() -> None:
        """Note the peak, unless a primitive runs."""
        if not Memory.within and Memory.live > Memory.peak:
            Memory.peak = Memory.live


def around(definition: Any) -> Any:
    """A primitive's definition, so that its intermediate results do not count as memory."""

    @functools.wraps(definition)
    def call(*args: Any) -> Any:
        Memory.within += 1
        try:
            return definition(*args)
        finally:
            Memory.within -= 1
            Memory.look()

    return call


def elementwise(*operands: Any, dtype: Any = None) -> CountingArray:
    """One operation for each entry of the result; operands broadcast."""
    arrays = [x for x in operands if isinstance(x, CountingArray)]
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    floats = [x.dtype for x in arrays if x.dtype.kind == "f"] or [arrays[0].dtype]
    count(math.prod(shape))
    return CountingArray(shape, dtype or floats[0])


def _operator(dtype: Any = None) -> Any:
    def operator(a: Any, b: Any) -> CountingArray:
        return elementwise(a, b, dtype=dtype)

    return operator


def _in_place(a: CountingArray, b: Any) -> CountingArray:
    elementwise(a, b)
    return a


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(CountingArray, f"__{_name}__", _operator())
    setattr(CountingArray, f"__i{_name}__", _in_place)
    setattr(CountingArray, f"__r{_name}__", _operator())
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(CountingArray, f"__{_name}__", _operator(np.bool_))
CountingArray.__hash__ = object.__hash__  # type: ignore[method-assign]  # __eq__ compares entries

# the elementwise functions of the Array API, those for complex numbers and bits aside
FUNCTIONS = (
    "abs acos acosh add asin asinh atan atan2 atanh ceil copysign cos cosh divide exp expm1 floor floor_divide hypot log log10 "
    "log1p log2 logaddexp maximum minimum multiply negative nextafter positive pow reciprocal remainder round sign sin sinh sqrt "
    "square subtract tan tanh trunc"
)
PREDICATES = (
    "equal greater greater_equal isfinite isinf isnan less less_equal logical_and logical_not logical_or logical_xor not_equal "
    "signbit"
)
globals().update(dict.fromkeys(FUNCTIONS.split(), elementwise))
globals().update(dict.fromkeys(PREDICATES.split(), functools.partial(elementwise, dtype=np.bool_)))
bool, int32, int64, float16, float32, float64 = np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64


def clip(x: CountingArray, /, min: Any = None, max: Any = None) -> CountingArray:
    """Two comparisons for each entry."""
    return elementwise(elementwise(x, min), max)


def where(condition: CountingArray, a: CountingArray, b: CountingArray) -> CountingArray:
    return elementwise(condition, a, b)


def astype(x: CountingArray, dtype: Any, copy: Any = True) -> CountingArray:
    return CountingArray(x.shape, dtype)


def asarray(x: Any, dtype: Any = None, device: Any = None, copy: Any = None) -> CountingArray:
    own = x if isinstance(x, CountingArray) else np.asarray(x)
    return CountingArray(own.shape, dtype or own.dtype)


def zeros(shape: Any, dtype: Any = np.float32, device: Any = None) -> CountingArray:
    return CountingArray((shape,) if isinstance(shape, int) else shape, dtype)


empty = ones = zeros


def full(shape: Any, value: Any, dtype: Any = np.float32, device: Any = None) -> CountingArray:
    """An array full of one value."""
    return CountingArray(shape, dtype)


def arange(stop: int, dtype: Any = np.int64, device: Any = None) -> CountingArray:
    return CountingArray((stop,), dtype)


def full_like(x: CountingArray, value: Any = None) -> CountingArray:
    return CountingArray(x.shape, x.dtype)


zeros_like = ones_like = full_like


def reduction(x: CountingArray, axis: Any = None, keepdims: Any = False, dtype: Any = None) -> CountingArray:
    """One operation for each entry of x."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    summed = {i % x.ndim for i in axes}
    count(x.size)
    shape = [1 if i in summed else n for i, n in enumerate(x.shape) if keepdims or i not in summed]
    return CountingArray(shape, dtype or x.dtype)


def var(x: CountingArray, *, axis: Any = None, correction: Any = 0, keepdims: Any = False) -> CountingArray:
    """Four operations for each entry: a mean, a difference, its square and their mean."""
    count(3 * x.size)
    return reduction(x, axis, keepdims)


def std(x: CountingArray, *, axis: Any = None, correction: Any = 0, keepdims: Any = False) -> CountingArray:
    return elementwise(var(x, axis=axis, keepdims=keepdims))


sum = mean = max = min = prod = reduction
all = any = functools.partial(reduction, dtype=np.bool_)
argmax = argmin = functools.partial(reduction, dtype=np.int64)


def reshape(x: CountingArray, shape: Any) -> CountingArray:
    shape = tuple(shape)
    if -1 in shape:
        known = -math.prod(shape)
        shape = tuple(x.size // known if n == -1 else n for n in shape)
    if math.prod(shape) != x.size:
        raise ValueError(f"cannot reshape {x.shape} to {shape}")
    return CountingArray(shape, x.dtype, x.memory)


def broadcast_to(x: CountingArray, shape: Any) -> CountingArray:
    return CountingArray(np.broadcast_shapes(x.shape, tuple(shape)), x.dtype, x.memory)


def matrix_transpose(x: CountingArray) -> CountingArray:
    return CountingArray((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype, x.memory)


def matmul(a: CountingArray, b: CountingArray) -> CountingArray:
    return a @ b


def expand_dims(x: CountingArray, axis: int) -> CountingArray:
    at = axis % (x.ndim + 1)
    return CountingArray((*x.shape[:at], 1, *x.shape[at:]), x.dtype, x.memory)


def concat(arrays: Any, axis: int = 0) -> CountingArray:
    first = arrays[0]
    at = axis % first.ndim
    length = builtins.sum(x.shape[at] for x in arrays)
    return CountingArray((*first.shape[:at], length, *first.shape[at + 1 :]), first.dtype)


isdtype, finfo = np.isdtype, np.finfo


def permute_dims(x: CountingArray, axes: Any) -> CountingArray:
    """x with its axes in another order."""
    return CountingArray([x.shape[i] for i in axes], x.dtype, x.memory)


def squeeze(x: CountingArray, axis: int) -> CountingArray:
    """x without an axis of length one."""
    return CountingArray((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype, x.memory)


def take(x: CountingArray, indices: CountingArray, axis: int) -> CountingArray:
    """The entries of x at `indices` along an axis."""
    return CountingArray((*x.shape[:axis], indices.size, *x.shape[axis + 1 :]), x.dtype)


def stack(arrays: Any, axis: int = 0) -> CountingArray:
    """The arrays along a new axis."""
    first = arrays[0]
    at = axis % (first.ndim + 1)
    return CountingArray((*first.shape[:at], len(arrays), *first.shape[at:]), first.dtype)


ARRAY = CountingArray  # this module is also a set of twins, for arrays of this type


@twin(sparse_product)
def _(A: CountingArray, x: CountingArray) -> CountingArray:
    """Counts one product. The definition's others only look for what is not finite."""
    return A @ x


@twin(scatter_add)
def _(v: CountingArray, index: CountingArray, out: CountingArray) -> None:
    """Counts one addition for each entry of v. The definition's product with a one-hot matrix would count more."""
    count(v.size)


def register_composition(primitive: Any) -> None:
    """Register a twin that runs the definition: what lives between its parts lives so in every twin, and counts as memory."""
    parts = definition(primitive)

    @twin(primitive)
    def _(z: CountingArray, /, *others: Any) -> Any:
        return parts(z, *others)


for _primitive in (linear_relu_backward, linear_gelu_backward):
    register_composition(_primitive)
