"""Which array library, on which device: the ground floor, and the only one (with kernels/) that names a backend.

Everything above asks an array for its namespace (`namespace(z)`) and writes Array API against it.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np

from bpcore.streams import SideStream

NAMES = ("numpy", "cupy", "torch", "array_api_strict", "auto")

# NumPy 2 speaks the Array API itself, so its namespace costs no import; the others join when first seen.
_namespaces: dict[type, Any] = dict.fromkeys((np.ndarray, np.memmap, np.float32, np.float64), np)
_kinds: dict[Any, str] = {}


def namespace(array: Any) -> Any:
    """The Array API namespace of `array`, remembered by type.        0.1 µs, where array_namespace costs 1.2"""
    xp = _namespaces.get(type(array))
    if xp is None:
        import array_api_compat

        xp = _namespaces[type(array)] = array_api_compat.array_namespace(array)
    return xp


def device(array: Any) -> Any:
    """The device of `array`, to be given to creation functions beside it."""
    if isinstance(array, (np.ndarray, np.generic)):
        return None
    if hasattr(array, "__array_namespace__") and not hasattr(array, "get"):
        return array.device
    import array_api_compat

    return array_api_compat.device(array)


def kind(array: Any) -> str:
    """ "real floating", "integral", "bool" or "other": the kind of the dtype of `array`, remembered."""
    key = type(array), array.dtype  # the type first: dtypes of two libraries do not compare
    found = _kinds.get(key)
    if found is None:
        xp = namespace(array)
        found = next((k for k in ("real floating", "integral", "bool") if xp.isdtype(array.dtype, k)), "other")
        _kinds[key] = found
    return found


def is_floating(array: Any) -> bool:
    """Whether the dtype of `array` is a real floating one."""
    return kind(array) == "real floating"


# Whether this thread records what it launches, to launch it again later: then nothing may come from the host, nor go there.
recording: ContextVar[bool] = ContextVar("bpcore_recording", default=False)

HALF = np.dtype("float16")  # CuPy's too; no other backend computes in it


def is_half(array: Any) -> bool:
    """Whether `array` holds float16."""
    return array.dtype is HALF


def is_array(value: Any) -> bool:
    """Whether `value` is an array of a library that speaks the Array API (a list, a number or a table is not)."""
    if isinstance(value, (np.ndarray, np.generic)):  # NumPy 2.0's scalars do not say so themselves
        return True
    return hasattr(value, "__array_namespace__") or type(value).__module__.partition(".")[0] in ("torch", "cupy")


def host_data(x: Any) -> np.ndarray | None:
    """x as a NumPy array where it is host data (NumPy, lists, numbers, a table's column), None where it is another array."""
    if type(x) is np.ndarray and x.dtype.kind in "biuf":
        return x
    if is_array(x) and not isinstance(x, (np.ndarray, np.generic)):
        return None
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"expected rows of one length, got data that make no array ({error}); pad or cut the rows") from error
    if x.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got an array of dtype {x.dtype}; convert it, e.g. X.astype('float32')")
    return x


class Backend:
    """An array namespace on a device.

    Attributes: `name` as it was chosen; `xp`, the Array API namespace; `device`, what its creation functions take;
    `asynchronous`, whether looking at a value makes the host wait (a GPU, and what stands in for one in tests).
    """

    def __init__(self, name: str, xp: Any, device: Any = None, asynchronous: bool = False):
        self.name, self.xp, self.device, self.asynchronous = name, xp, device, asynchronous

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, device={self.device})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and (self.xp, self.device) == (other.xp, other.device)

    def __hash__(self) -> int:
        return hash((self.xp.__name__, str(self.device)))

    def dtype(self, name: str) -> Any:
        """The dtype object that this library calls `name`, e.g. "float32"."""
        return getattr(self.xp, str(name))

    def owns(self, array: Any) -> bool:
        """Whether `array` is one of this backend's, on its device."""
        return is_array(array) and namespace(array) is self.xp and device(array) == self.device

    def asarray(self, host: Any, dtype: Any = None) -> Any:
        """`host` (a NumPy array, nested lists, numbers, or an array already here) as an array of this backend.

        dtype: a name such as "float32"; None keeps what `host` has. No copy is promised. Raises TypeError for an array
        of another backend or device: those come over `their_backend.to_host(array)`, never by accident.
        """
        wanted = None if dtype is None else self.dtype(dtype)
        found = host_data(host)
        if found is None:
            if not self.owns(host):
                raise TypeError(
                    f"expected an array of backend {self.name!r} (device {self.device}) or host data (NumPy, lists), got "
                    f"{type(host).__module__}.{type(host).__name__} on device {device(host)}; move it first: "
                    f"bp.get_backend({self.name!r}).asarray(bp.backend_of(x).to_host(x))"
                )
            return host if wanted is None or host.dtype == wanted else self.xp.astype(host, wanted)
        if recording.get():
            raise RuntimeError("data of the host go to the device in each step, which a recorded step cannot do")
        host = found if dtype is None else np.asarray(found, dtype=str(dtype))
        if self.xp is np:
            return host
        if self.name == "torch":
            host = host.copy()  # torch would share a read-only array and warn of it
        if self.name == "cupy":
            with self.device:
                return self.xp.asarray(host)
        return self.xp.asarray(host, device=self.device)

    def to_host(self, array: Any) -> np.ndarray:
        """`array` as a NumPy array. On a GPU this waits for it: the one door through which values leave a device."""
        if isinstance(array, (np.ndarray, np.generic)):
            return np.asarray(array)
        if recording.get():
            raise RuntimeError("a value of the device is looked at in each step, which a recorded step cannot do")
        if self.name == "cupy":
            return array.get()
        if self.name == "torch":
            return array.detach().cpu().numpy()
        return np.asarray(array.to_device(self.xp.Device("CPU_DEVICE")))

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        """Zeros of this backend. dtype: a name, or a dtype object of this library."""
        wanted = self.dtype(dtype) if isinstance(dtype, str) else dtype
        if self.name == "cupy":
            with self.device:
                return self.xp.zeros(shape, dtype=wanted)
        return self.xp.zeros(shape, dtype=wanted, device=self.device)

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it. Nothing to wait for on a CPU."""
        if self.name == "cupy":
            self.device.synchronize()

    @functools.cached_property
    def graph(self) -> Any:
        """The class of graphs that record what this library launches, to launch it again; None where it has none."""
        if self.name != "cupy":
            return None
        try:
            return importlib.import_module("bpcore.kernels.cuda.graph").Graph
        except ImportError:  # the folder was deleted
            return None

    @functools.cached_property
    def side(self) -> SideStream | None:
        """A stream for transfers that go on beside the steps; None where the host does not run ahead of the device."""
        return SideStream(importlib.import_module("cupy").cuda) if self.name == "cupy" else None


def _numpy(index: str) -> Backend:
    if index:
        raise ValueError(f"backend 'numpy:{index}' does not exist: NumPy has one device; choose 'numpy'")
    return Backend("numpy", np)


def _cupy(index: str) -> Backend:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "backend 'cupy' needs CuPy, which is not installed: pip install 'bpcore[cuda13]' (driver for CUDA 13) or "
            "'bpcore[cuda12]', or choose backend='numpy'"
        ) from error
    if not cupy.is_available():
        raise RuntimeError(
            "backend 'cupy' found CuPy but no usable CUDA GPU; look at nvidia-smi and the driver's version, or choose "
            "backend='numpy'"
        )
    if index:
        raise ValueError(f"backend 'cupy:{index}': the GPU is chosen outside, by CUDA_VISIBLE_DEVICES={index}; then use 'cupy'")
    return Backend("cupy", namespace(cupy.empty(0)), cupy.cuda.Device(), asynchronous=True)


def _torch(index: str) -> Backend:
    if index not in ("", "cpu"):
        raise ValueError(f"backend 'torch:{index}' is not supported: torch runs on the CPU here; for a GPU choose 'cupy'")
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise RuntimeError("backend 'torch' needs PyTorch: pip install torch, or choose backend='numpy'") from error
    return Backend("torch", namespace(torch.empty(0)), torch.device("cpu"))


def _strict(index: str) -> Backend:
    try:
        xp = importlib.import_module("array_api_strict")
    except ImportError as error:
        raise RuntimeError(
            "backend 'array_api_strict' needs array-api-strict: pip install array-api-strict, or choose backend='numpy'"
        ) from error
    try:
        where = xp.Device(index or "CPU_DEVICE")
    except ValueError as error:
        raise ValueError(f"backend 'array_api_strict:{index}' does not exist: choose CPU_DEVICE, device1 or device2") from error
    return Backend("array_api_strict" + (f":{index}" if index else ""), xp, where, asynchronous=bool(index))


def _auto(_index: str) -> Backend:
    try:
        backend = _cupy("")
        backend.xp.sum(backend.zeros(2, "float32"))  # a GPU that is listed but cannot compile or run is no GPU
        backend.synchronize()
        return backend
    except Exception:  # whatever is wrong with the GPU, auto means: go on without it
        return get_backend("numpy")


_makers = {
    "numpy": _numpy,
    "cupy": _cupy,
    "torch": _torch,
    "array_api_strict": _strict,
    "auto": _auto,
}
_made: dict[str, Backend] = {}
_chosen: ContextVar[str | None] = ContextVar("bpcore_backend", default=None)


def get_backend(name: str | Backend | None = None) -> Backend:
    """The backend called `name`: "numpy", "cupy", "torch" (on the CPU), "array_api_strict", or "auto" (a GPU that works).

    A device may follow a colon: "array_api_strict:device1". None takes what `use_backend` chose, else the
    environment variable BPCORE_BACKEND, else NumPy. Raises ValueError for an unknown name, and RuntimeError, saying what
    to install or choose, for one that is not here.
    """
    if isinstance(name, Backend):
        return name
    name = str(name or _chosen.get() or os.environ.get("BPCORE_BACKEND") or "numpy")
    if name not in _made:
        kind, _, index = name.partition(":")
        if kind not in _makers:
            raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
        _made[name] = _makers[kind](index)
    return _made[name]


@contextmanager
def use_backend(name: str | Backend) -> Iterator[Backend]:
    """Within the `with` block, networks and arrays that name no backend are made on this one."""
    backend = get_backend(name)
    token = _chosen.set(backend.name)
    try:
        yield backend
    finally:
        _chosen.reset(token)


tf32: ContextVar[bool] = ContextVar("bpcore_tf32", default=False)  # whether products of float32 may be in TF32


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within, kernels find `tf32` set where dtype is "tf32"; where it is "float16", an overflow is infinity and no warning."""
    token = tf32.set(dtype == "tf32")
    try:
        with np.errstate(over="ignore", invalid="ignore") if dtype == "float16" else nullcontext():
            yield
    finally:
        tf32.reset(token)


def backend_of(array: Any) -> Backend:
    """The backend that `array` lives on. Raises TypeError for what is not an array of a known library."""
    if isinstance(array, (np.ndarray, np.generic)):
        return get_backend("numpy")
    root = type(array).__module__.partition(".")[0]
    if root == "array_api_strict":
        where = str(array.device).split("'")[1]
        return get_backend(root if where == "CPU_DEVICE" else f"{root}:{where}")
    if root == "cupy":
        return get_backend("cupy")
    if root == "torch" and array.device.type == "cpu":
        return get_backend("torch")
    raise TypeError(f"expected an array of one of {', '.join(NAMES[:-1])}, got {type(array).__module__}.{type(array).__name__}")


def keep_mask(like: Any, p: float, key: tuple[int, ...]) -> Any:
    """A mask of booleans shaped and placed like `like`, each False with probability p: the randomness of dropout.

    Philox4x64-10 (Salmon et al., 2011) as NumPy has it, at key (key[0], 0) and counter (0, key[1], key[2], key[3]); element
    i takes the i-th 32-bit word, low half first, and is kept where that word is at least p 2³². A function of the key
    alone, so every backend draws the same mask.
    """
    shape = tuple(like.shape)
    size = int(np.prod(shape))
    stream = np.random.Philox(key=key[0], counter=np.asarray([0, *key[1:]], dtype=np.uint64))
    words = stream.random_raw((size + 1) // 2).astype("<u8", copy=False).view("<u4")[:size]
    kept = np.reshape(words >= np.uint32(min(round(p * 2**32), 2**32 - 1)), shape)
    return kept if isinstance(like, np.ndarray) else backend_of(like).asarray(kept)
