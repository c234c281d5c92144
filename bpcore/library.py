"""The class Backend: an array library on a device. libraries.py has a subclass for each library."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from bpcore.arguments import show
from bpcore.array import Array, device, namespace
from bpcore.context import recording
from bpcore.host import NUMBERS, as_numbers, converted, sparse
from bpcore.streams import HostCopies, SideStream

__all__ = ["Backend"]

LIBRARIES: dict[str, type[Backend]] = {}  # a library's name to its subclass of Backend; subclasses register themselves
_of_types: dict[type, type[Backend] | None] = {}  # a type to the library of its arrays, remembered by `library_of`


class Backend:
    """An array library on a device; a subclass for each library.

    Attributes of an instance: `name`, as `get_backend` takes it; `xp`, the Array API namespace; `device`, as creation functions
    of `xp` take it; `dtypes`, the floating dtypes that a network may have here.

    A subclass sets `library`, and overrides the methods that its library needs in another form. Its constructor takes the text
    after the name's colon, "" if there is none. It raises ValueError for a device that does not exist, and RuntimeError, with
    the repair, for a library or a device that is missing.
    """

    library: ClassVar[str]  # the package that defines its arrays; the names of its backends begin with it
    names: ClassVar[tuple[str, ...]] = ()  # of its backends; by default `library` alone
    compute_dtypes: ClassVar[tuple[str, ...]] = ()  # that a network of float32 may compute in: "float16", "bfloat16", "tf32"

    name: str
    xp: Any
    device: Any = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    asynchronous: bool = False  # whether the host must wait to look at a value, as on a GPU

    def __init_subclass__(cls) -> None:
        LIBRARIES[cls.library] = cls
        cls.names = cls.names or (cls.library,)
        _of_types.clear()  # the new library may recognise a type that no other did

    def __init__(self, suffix: str):
        raise TypeError("a Backend is made by get_backend(name)")

    def __reduce__(self) -> tuple[Any, ...]:  # pickle and copy make it anew from its name; `xp` is a module
        return type(self), (self.name.partition(":")[2],)

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
        """`host` as an array of this backend; the two may share memory."""
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
        """Wait until the device has finished its work. A CPU has always finished."""

    @functools.cached_property
    def side(self) -> SideStream | None:
        """A second stream, for transfers while a step computes; None if this backend has none."""
        return None

    def host_copies(self, arrays: dict[str, Array]) -> HostCopies | None:
        """What copies these arrays to the host while a step computes; None if this backend cannot."""
        return None

    @functools.cached_property
    def graph(self) -> type[Any] | None:
        """The class that records launches and repeats them as one; None if this backend has none."""
        return None

    def dtype(self, name: str) -> Any:
        """The dtype object that this library calls `name`, e.g. "float32"."""
        return getattr(self.xp, str(name))

    def owns(self, array: Any) -> bool:
        """Whether `array` is an array of this backend, on its device."""
        return is_array(array) and namespace(array) is self.xp and device(array) == self.device

    def asarray(self, host: Any, dtype: str | None = None, name: str = "data") -> Array:
        """`host` (a NumPy array, nested lists, numbers, or an array of this backend) as an array of this backend.

        dtype: a name such as "float32"; None keeps the dtype of `host`. The result may share memory with `host`. name: what
        errors call the data. Raises TypeError unless it holds numbers, or for an array of another backend or device: move it to
        the host first, with its own backend's `to_host`.
        """
        wanted = None if dtype is None else self.dtype(dtype)
        data = host_data(host, name)
        if data is None:
            if not self.owns(host):
                of = type(host).__module__.partition(".")[0]
                there = f", or make the network there: Network(..., backend={of!r})" * (
                    of in ("torch", "cupy") and of != self.library
                )
                raise TypeError(
                    f"{name} expected an array of backend {self.name!r} (device {self.device}) or host data (NumPy, lists), got "
                    f"{type(host).__module__}.{type(host).__name__} on device {device(host)}; move it first: "
                    f"bp.get_backend({self.name!r}).asarray(bp.backend_of(x).to_host(x)){there}"
                )
            array: Array = host if wanted is None or host.dtype == wanted else self.xp.astype(host, wanted)
            return array
        if recording.get():
            raise RuntimeError("each step moves data of the host to the device, which a recorded step cannot do")
        return self._from_host(data if dtype is None else converted(data, str(dtype)))

    def to_host(self, array: Any) -> np.ndarray:
        """`array` as a NumPy array. On a GPU the host waits for it. Values leave a device by this function only."""
        if isinstance(array, (np.ndarray, np.generic)):
            return np.asarray(array)
        if recording.get():
            raise RuntimeError("each step looks at a value on the device, which a recorded step cannot do")
        return self._to_host(array)

    def check_dtype(self, dtype: Any) -> str:
        """The name of a network's dtype, or a ValueError unless it is float32 or float64 and this backend has it."""
        name = dtype_name(dtype)
        if name not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {show(dtype)}")
        if name not in self.dtypes:
            raise ValueError(f"backend {self.name!r} has no {name}; choose dtype={self.dtypes[0]!r}, or another backend")
        return name

    def check_compute(self, compute_dtype: Any, dtype: str) -> str:
        """The name of compute_dtype (dtype if None), or a ValueError if a network of dtype cannot compute in it here."""
        name = dtype if compute_dtype is None else dtype_name(compute_dtype)
        if name == dtype:
            return name
        if name not in ("float16", "bfloat16", "tf32"):
            known = "'float16', 'bfloat16', 'tf32'"
            raise ValueError(f"compute_dtype must be {known} or dtype's own {show(dtype)}, got {show(compute_dtype)}")
        if dtype != "float32":
            raise ValueError(f"compute_dtype={name!r} needs a θ of dtype='float32', got {show(dtype)}; leave one of them out")
        if name not in self.compute_dtypes:
            able = " or ".join(repr(library) for library, cls in LIBRARIES.items() if name in cls.compute_dtypes)
            raise ValueError(f"compute_dtype={name!r} needs backend {able}, got {self.name!r}; choose that, or leave it out")
        return name


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, which may be a name or a dtype object of any library."""
    return str(getattr(dtype, "name", getattr(dtype, "__name__", dtype))).removeprefix("torch.")


def library_of(value: Any) -> type[Backend] | None:
    """The subclass of Backend for the array `value`, remembered by type; None if `value` is not an array of a known library."""
    try:
        return _of_types[type(value)]
    except KeyError:
        library = next((library for library in LIBRARIES.values() if library.recognizes(type(value))), None)
        return _of_types.setdefault(type(value), library)


def is_array(value: Any) -> bool:
    """Whether `value` is an array of a library that speaks the Array API (a list, a number or a table is not)."""
    return hasattr(value, "__array_namespace__") or library_of(value) is not None  # PyTorch's tensors have no __array_namespace__


def host_data(x: Any, name: str = "data") -> np.ndarray | None:
    """x as a NumPy array if it is host data (NumPy, lists, numbers, a table); None for an array of one of the libraries here.

    name: of the data, for the errors if it does not hold numbers.
    """
    if type(x) is np.ndarray and x.dtype.kind in NUMBERS and x.dtype.isnative:
        return x
    if library_of(x) is None or isinstance(x, (np.ndarray, np.generic)):
        return as_numbers(x, name)
    if "sparse" in str(getattr(x, "layout", "")):  # PyTorch's
        raise TypeError(sparse(x, name, "to_dense"))
    return None
