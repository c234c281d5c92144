"""Arrays: the protocol that type checkers see, and the namespace, the device and the kind of dtype of an array."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bpcore.arguments import show

__all__ = ["Array", "namespace"]


if TYPE_CHECKING:

    class Operators:
        """The operators of Array. In the protocol, pyright would compare them with ndarray's overloads, for minutes."""

        def __add__(self, other: Any, /) -> Array: ...
        def __radd__(self, other: Any, /) -> Array: ...
        def __sub__(self, other: Any, /) -> Array: ...
        def __rsub__(self, other: Any, /) -> Array: ...
        def __mul__(self, other: Any, /) -> Array: ...
        def __rmul__(self, other: Any, /) -> Array: ...
        def __truediv__(self, other: Any, /) -> Array: ...
        def __rtruediv__(self, other: Any, /) -> Array: ...
        def __pow__(self, other: Any, /) -> Array: ...
        def __matmul__(self, other: Any, /) -> Array: ...
        def __neg__(self) -> Array: ...

        def __lt__(self, other: Any, /) -> Any: ...
        def __le__(self, other: Any, /) -> Any: ...
        def __gt__(self, other: Any, /) -> Any: ...
        def __ge__(self, other: Any, /) -> Any: ...
        def __eq__(self, other: Any, /) -> Any: ...
        def __ne__(self, other: Any, /) -> Any: ...
else:

    class Operators(Protocol):
        """The operators of Array, for type checkers."""


class Array(Operators, Protocol):  # type: ignore[misc]  # a base that is not a protocol is not compared
    """An array of any library that follows the Array API: NumPy, CuPy, PyTorch, array-api-strict.

    Use it in annotations: `def forward(self, theta: bp.Windows, z: bp.Array, mode: bp.Mode)`. The functions on arrays are those
    of the library's namespace, `bp.namespace(z)`. An operand may be an array or a Python number.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> Any: ...
    @property
    def T(self) -> Array: ...
    @property
    def mT(self) -> Array: ...

    def __getitem__(self, key: Any, /) -> Array: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...

    def __float__(self) -> float: ...
    def __int__(self) -> int: ...
    def __bool__(self) -> bool: ...


class Namespace(Protocol):
    """The functions and dtypes of the Array API for one library's arrays: what `namespace(z)` returns."""

    bool: Any
    int32: Any
    int64: Any
    float16: Any
    float32: Any
    float64: Any
    finfo: Any
    isdtype: Any

    def __getattr__(self, name: str) -> Callable[..., Array]: ...


# NumPy 2 follows the Array API itself, so its namespace needs no import; other types are added when first seen.
_namespaces: dict[type, Namespace] = dict.fromkeys((np.ndarray, np.memmap, np.float32, np.float64), np)
_kinds: dict[tuple[type, Any], str] = {}

HALF = np.dtype("float16")  # CuPy's float16 is this object too; no other backend computes in float16
_bfloat16: Any = None  # the dtype of ml_dtypes, once `bfloat16` was called


def bfloat16() -> Any:
    """The dtype bfloat16 of CuPy's arrays. Raises ImportError without the package ml_dtypes."""
    global _bfloat16
    if _bfloat16 is None:
        _bfloat16 = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return _bfloat16


def namespace(array: Array) -> Namespace:
    """The Array API namespace of `array`, remembered by type: this takes 0.1 µs, array_namespace 1.2 µs."""
    xp = _namespaces.get(type(array))
    if xp is None:
        import array_api_compat

        try:
            xp = _namespaces[type(array)] = array_api_compat.array_namespace(array)
        except TypeError:
            raise TypeError(f"expected an array, got {show(array)}; make one: bp.get_backend().asarray(...)") from None
    return xp


def device(array: Array) -> Any:
    """The device of `array`, in the form that creation functions take; None for NumPy."""
    return None if isinstance(array, (np.ndarray, np.generic)) else array.device  # type: ignore[attr-defined]


def kind(array: Array) -> str:
    """ "real floating", "integral", "bool" or "other": the kind of the dtype of `array`, remembered."""
    key = type(array), array.dtype  # the type first: dtypes of two libraries do not compare
    name = _kinds.get(key)
    if name is None:
        xp = namespace(array)
        if str(array.dtype) == "bfloat16":  # CuPy's, of which isdtype knows nothing
            return _kinds.setdefault(key, "real floating")
        name = next((k for k in ("real floating", "integral", "bool") if xp.isdtype(array.dtype, k)), "other")
        _kinds[key] = name
    return name


def is_floating(array: Array) -> bool:
    """Whether the dtype of `array` is real floating."""
    return kind(array) == "real floating"


def is_half(array: Array) -> bool:
    """Whether `array` holds float16, or bfloat16 on CuPy."""
    dtype = array.dtype
    return dtype is HALF or dtype is _bfloat16


def is_bfloat16(array: Array) -> bool:
    """Whether `array` holds bfloat16, on CuPy."""
    return array.dtype is _bfloat16
