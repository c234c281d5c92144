"""What a backend is: an array library on a device. Each library has its subclass of `Backend`, in libraries.py."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from bpcore.array import Array, device, namespace
from bpcore.context import recording
from bpcore.streams import SideStream

__all__ = ["Backend"]

LIBRARIES: dict[str, type[Backend]] = {}  # name of a library to its subclass of Backend, which registers itself
_of_types: dict[type, type[Backend] | None] = {}  # what `library_of` found


class Backend:
    """An array library on a device; a subclass for each library.

    Attributes of an instance: `name`, as `get_backend` takes it; `xp`, the Array API namespace; `device`, as creation functions
    of `xp` take it; `dtypes`, the floating dtypes that a network may have here.

    A subclass gives `library`, a constructor that takes the text after the name's colon ("" if there is none) and raises
    ValueError for a device that does not exist and RuntimeError, with the repair, for a library or device that is missing, and
    overrides what its library does in another way.
    """

    library: ClassVar[str]  # the package that the types of its arrays come from; names of its backends begin with it
    names: ClassVar[tuple[str, ...]] = ()  # of its backends, where there are more than `library` to choose from
    compute_dtypes: ClassVar[tuple[str, ...]] = ()  # what networks of float32 may compute in besides: "float16", "tf32"

    name: str
    xp: Any
    device: Any = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    asynchronous: bool = False  # whether the host waits when it looks at a value: a GPU, and what stands in for one in tests

    def __init_subclass__(cls) -> None:
        LIBRARIES[cls.library] = cls
        cls.names = cls.names or (cls.library,)
        _of_types.clear()  # the new one may recognise what no other did

    def __init__(self, suffix: str):
        raise TypeError("a Backend is made by get_backend(name)")

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, device={self.device})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and (self.xp, self.device) == (other.xp, other.device)

    def __hash__(self) -> int:
        return hash((self.xp.__name__, str(self.device)))

    @classmethod
    def recognizes(cls, array_type: type) -> bool:
        """Whether objects of this type are arrays of this library."""
        return array_type.__module__.partition(".")[0] == cls.library

    @classmethod
    def name_of(cls, array: Any) -> str:
        """The name of the backend that an array of this library lives on."""
        return cls.library

    def _from_host(self, host: np.ndarray) -> Array:
        """`host` as an array of this backend. No copy is promised."""
        array: Array = self.xp.asarray(host, device=self.device)
        return array

    def _to_host(self, array: Any) -> np.ndarray:
        """An array of this backend as a NumPy array."""
        return np.asarray(array)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Zeros of this backend. dtype: a name, or a dtype object of this library."""
        array: Array = self.xp.zeros(shape, dtype=self.dtype(dtype) if isinstance(dtype, str) else dtype, device=self.device)
        return array

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it. On a CPU there is nothing to wait for."""

    @functools.cached_property
    def side(self) -> SideStream | None:
        """A stream for transfers that go on beside the steps; None if this backend has none."""
        return None

    @functools.cached_property
    def graph(self) -> type[Any] | None:
        """The class that records launches and launches them again in one go; None if this backend has none."""
        return None

    def dtype(self, name: str) -> Any:
        """The dtype object that this library calls `name`, e.g. "float32"."""
        return getattr(self.xp, str(name))

    def owns(self, array: Any) -> bool:
        """Whether `array` is one of this backend's, on its device."""
        return is_array(array) and namespace(array) is self.xp and device(array) == self.device

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        """`host` (a NumPy array, nested lists, numbers, or an array already here) as an array of this backend.

        dtype: a name such as "float32"; None keeps what `host` has. No copy is promised. Raises TypeError for an array
        of another backend or device: those come over `their_backend.to_host(array)`, never by accident.
        """
        wanted = None if dtype is None else self.dtype(dtype)
        data = host_data(host)
        if data is None:
            if not self.owns(host):
                raise TypeError(
                    f"expected an array of backend {self.name!r} (device {self.device}) or host data (NumPy, lists), got "
                    f"{type(host).__module__}.{type(host).__name__} on device {device(host)}; move it first: "
                    f"bp.get_backend({self.name!r}).asarray(bp.backend_of(x).to_host(x))"
                )
            array: Array = host if wanted is None or host.dtype == wanted else self.xp.astype(host, wanted)
            return array
        if recording.get():
            raise RuntimeError("data of the host go to the device in each step, which a recorded step cannot do")
        return self._from_host(data if dtype is None else np.asarray(data, dtype=str(dtype)))

    def to_host(self, array: Any) -> np.ndarray:
        """`array` as a NumPy array. On a GPU this waits for it: the one door through which values leave a device."""
        if isinstance(array, (np.ndarray, np.generic)):
            return np.asarray(array)
        if recording.get():
            raise RuntimeError("a value of the device is looked at in each step, which a recorded step cannot do")
        return self._to_host(array)

    def check_dtype(self, dtype: Any) -> str:
        """The name of a network's dtype, or a ValueError unless it is float32 or float64 and this backend has it."""
        name = dtype_name(dtype)
        if name not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
        if name not in self.dtypes:
            raise ValueError(f"backend {self.name!r} has no {name}; choose dtype={self.dtypes[0]!r}, or another backend")
        return name

    def check_compute(self, compute_dtype: Any, dtype: str) -> str:
        """The name of compute_dtype (dtype if None), or a ValueError if a network of dtype cannot compute in it here."""
        name = dtype if compute_dtype is None else dtype_name(compute_dtype)
        if name == dtype:
            return name
        if name not in ("float16", "tf32"):
            raise ValueError(f"compute_dtype must be 'float16', 'tf32' or dtype's own {dtype!r}, got {compute_dtype!r}")
        if dtype != "float32":
            raise ValueError(f"compute_dtype={name!r} needs a θ of dtype='float32', got {dtype!r}; leave one of them out")
        if name not in self.compute_dtypes:
            able = " or ".join(repr(library) for library, cls in LIBRARIES.items() if name in cls.compute_dtypes)
            raise ValueError(f"compute_dtype={name!r} needs backend {able}, got {self.name!r}; choose that, or leave it out")
        return name


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, given as a name or as any library's object."""
    return str(getattr(dtype, "name", getattr(dtype, "__name__", dtype))).removeprefix("torch.")


def library_of(value: Any) -> type[Backend] | None:
    """The subclass of Backend whose array `value` is, remembered by type; None if it is none of theirs."""
    try:
        return _of_types[type(value)]
    except KeyError:
        library = next((library for library in LIBRARIES.values() if library.recognizes(type(value))), None)
        return _of_types.setdefault(type(value), library)


def is_array(value: Any) -> bool:
    """Whether `value` is an array of a library that speaks the Array API (a list, a number or a table is not)."""
    return hasattr(value, "__array_namespace__") or library_of(value) is not None  # PyTorch's do not say so themselves


def host_data(x: Any) -> np.ndarray | None:
    """x as a NumPy array if it is host data (NumPy, lists, numbers, a table's column), None if it is another array."""
    if type(x) is np.ndarray and x.dtype.kind in "biuf":
        return x
    if is_array(x) and not isinstance(x, (np.ndarray, np.generic)):
        return None
    try:
        host = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"expected rows of one length, got data that make no array ({error}); pad or cut the rows") from error
    if host.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got an array of dtype {host.dtype}; convert it, e.g. X.astype('float32')")
    return host
