"""The array libraries that bpcore computes with, a subclass of `Backend` for each. To add a library, write its subclass here."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any, ClassVar, cast

import numpy as np

from bpcore.array import Array, bfloat16, is_bfloat16, namespace
from bpcore.context import recording
from bpcore.host import converted
from bpcore.library import Backend, host_data
from bpcore.packages import CUDA, brief, imported, pip
from bpcore.streams import HostCopies, SideStream


class NumPy(Backend):
    """NumPy, on the CPU."""

    library = "numpy"
    compute_dtypes = ("float16",)

    def __init__(self, suffix: str):
        if suffix:
            raise ValueError(f"backend 'numpy:{suffix}' does not exist: NumPy has one device; choose 'numpy'")
        self.name = "numpy"
        self.xp = np

    @classmethod
    def recognizes(cls, array_type: type) -> bool:
        return issubclass(array_type, (np.ndarray, np.generic))

    def asarray(self, host: Any, dtype: str | None = None, name: str = "data") -> Array:
        data = host_data(host, name)
        if data is None or recording.get():
            return super().asarray(host, dtype, name)
        return data if dtype is None or data.dtype == dtype else converted(data, dtype)


class CuPy(Backend):
    """CuPy, on its current CUDA GPU."""

    library = "cupy"
    compute_dtypes = ("float16", "bfloat16", "tf32")
    asynchronous = True

    def __init__(self, suffix: str):
        cupy = imported("cupy", "backend 'cupy' needs CuPy", f"{CUDA}, or choose backend='numpy'")
        if not cupy.is_available():
            raise RuntimeError(
                "backend 'cupy' found CuPy but no usable CUDA GPU; look at nvidia-smi and the driver's version, or choose "
                "backend='numpy'"
            )
        if suffix:
            raise ValueError(
                f"backend 'cupy:{suffix}': the GPU is chosen outside, by CUDA_VISIBLE_DEVICES={suffix}; then use 'cupy'"
            )
        try:
            cupy.cuda.nvrtc.getVersion()
        except Exception as error:  # CuPy raises RuntimeError, OSError or ImportError, by version
            raise RuntimeError(
                f"backend 'cupy' found CuPy and a GPU, but not NVRTC, which compiles kernels ({brief(error)}): {CUDA}, or choose "
                "backend='numpy'"
            ) from error
        self.name = "cupy"
        self.xp = namespace(cupy.empty(0))
        self.device = cupy.cuda.Device()

    def _from_host(self, host: np.ndarray) -> Array:
        with self.device:
            array: Array = self.xp.asarray(host)
        return array

    def _to_host(self, array: Any) -> np.ndarray:
        host: np.ndarray = (self.xp.astype(array, self.xp.float32) if is_bfloat16(array) else array).get()
        return host

    def dtype(self, name: str) -> Any:
        return bfloat16() if str(name) == "bfloat16" else super().dtype(name)

    def asarray(self, host: Any, dtype: str | None = None, name: str = "data") -> Array:
        if dtype != "bfloat16":
            return super().asarray(host, dtype, name)
        wide = super().asarray(host, "float32", name)  # the device rounds
        return cast(Array, self.xp.astype(wide, self.dtype(dtype)))

    def check_compute(self, compute_dtype: Any, dtype: str) -> str:
        name = super().check_compute(compute_dtype, dtype)
        if name == "bfloat16" and dtype == "float32":
            try:
                if np.lib.NumpyVersion(np.__version__) < "2.1.2":
                    raise ImportError(f"this is NumPy {np.__version__}")
                self.zeros(1, "bfloat16")
            except Exception as error:  # CuPy raises what NumPy or ml_dtypes raises
                raise ValueError(
                    f"compute_dtype='bfloat16' needs NumPy from 2.1.2, a CuPy that knows bfloat16, and ml_dtypes, got "
                    f"{brief(error)}; {pip('ml_dtypes')}, update both, or choose 'float16'"
                ) from error
        return name

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        with self.device:
            array: Array = self.xp.zeros(shape, dtype=self.dtype(dtype) if isinstance(dtype, str) else dtype)
        return array

    def synchronize(self) -> None:
        self.device.synchronize()

    @functools.cached_property
    def side(self) -> SideStream | None:
        return SideStream(importlib.import_module("cupy").cuda)

    def host_copies(self, arrays: dict[str, Array]) -> HostCopies | None:
        cuda = importlib.import_module("cupy").cuda

        def pinned(x: Any) -> np.ndarray:
            """Pinned memory as large as x. It is not of CuPy's pool, which would lend it again before a copy has ended."""
            return np.frombuffer(cuda.PinnedMemoryPointer(cuda.PinnedMemory(x.nbytes), 0), x.dtype, x.size)

        return HostCopies(arrays, SideStream(cuda), pinned)  # a stream of its own: a long copy would delay those of `side`

    @functools.cached_property
    def graph(self) -> type[Any] | None:
        try:
            graph: type[Any] = importlib.import_module("bpcore.kernels.cuda.engine.graph").Graph
        except ImportError:  # bpcore without its folder kernels/
            return None
        return graph


class PyTorch(Backend):
    """PyTorch, on the CPU or on a GPU that PyTorch supports. bpcore's definitions compute, without faster kernels.

    "torch:cuda" is an NVIDIA GPU, or an AMD GPU with PyTorch for ROCm; "torch:mps" is an Apple GPU, "torch:xpu" an Intel GPU.
    "torch:cuda:1" is the second GPU.
    """

    library = "torch"
    names = ("torch", "torch:cuda", "torch:mps", "torch:xpu")
    gpus: ClassVar = {
        "cuda": "an NVIDIA GPU (or an AMD GPU, with PyTorch for ROCm)",
        "mps": "an Apple GPU",
        "xpu": "an Intel GPU",
    }

    def __init__(self, suffix: str):
        kind, _, index = (suffix or "cpu").partition(":")
        if kind not in ("cpu", *self.gpus) or (":" in suffix and not (kind in self.gpus and index.isdecimal())):
            raise ValueError(f"backend 'torch:{suffix}' does not exist: choose one of {', '.join(self.names)}")
        name = f"torch:{suffix}" if suffix else "torch"
        torch: Any = imported("torch", f"backend {name!r} needs PyTorch", f"{pip('torch')}, or choose backend='numpy'")
        self.torch = torch
        self.xp = namespace(torch.empty(0))
        self.device = torch.device("cpu")
        if kind != "cpu":
            self._expect_gpu(kind, int(index or 0))
            self.device = torch.device(kind, int(index or 0))
            self.asynchronous = True
        if kind == "mps" or (kind == "xpu" and not torch.xpu.get_device_properties(self.device).has_fp64):
            self.dtypes = ("float32",)
        self.name = self._name(self.device)

    def _expect_gpu(self, kind: str, index: int) -> None:
        """Raise RuntimeError unless PyTorch finds this GPU."""
        says = getattr(self.torch.backends if kind == "mps" else self.torch, kind, None)
        if says is None or not says.is_available():
            reason = f"it has no torch.{kind}" if says is None else f"{says.__name__}.is_available() is False"
            raise RuntimeError(
                f"backend 'torch:{kind}' needs {self.gpus[kind]}, and PyTorch {self.torch.__version__} finds none: "
                f"{reason}; install the PyTorch and the driver for it (pytorch.org/get-started), "
                "or choose backend='torch', the CPU"
            )
        count = getattr(self.torch, kind).device_count()
        if index >= count:
            raise RuntimeError(f"backend 'torch:{kind}:{index}' does not exist: PyTorch finds {count}; choose 'torch:{kind}'")

    @staticmethod
    def _name(device: Any) -> str:
        """The name of the backend on a torch.device."""
        return "torch" if device.type == "cpu" else f"torch:{device.type}" + (f":{device.index}" if device.index else "")

    @classmethod
    def recognizes(cls, array_type: type) -> bool:
        torch = sys.modules.get("torch")  # no import here: a value cannot be a tensor before PyTorch is imported
        return torch is not None and issubclass(array_type, torch.Tensor)

    @classmethod
    def name_of(cls, array: Any) -> str:
        return cls._name(array.device)

    def dtype(self, name: str) -> Any:
        return getattr(self.xp, self.check_dtype(name) if name == "float64" else str(name))

    def _from_host(self, host: np.ndarray) -> Array:
        if host.dtype == "float64" and "float64" not in self.dtypes:
            host = host.astype("float32")
        tensor = self.torch.asarray(host.copy())  # without the copy, PyTorch would share the memory, and warn if it is read-only
        if self.device.type == "cuda":  # from pinned memory, which PyTorch keeps until it is read: the host does not wait
            array: Array = tensor.pin_memory().to(self.device, non_blocking=True)
        else:
            array = tensor.to(self.device)
        return array

    def asarray(self, host: Any, dtype: str | None = None, name: str = "data") -> Array:
        array: Any = super().asarray(host, dtype, name)
        dense: Array = array.detach() if array.requires_grad else array  # PyTorch must record no graph
        return dense

    def _to_host(self, array: Any) -> np.ndarray:
        array = array.detach().cpu()
        host: np.ndarray = (array.float() if array.dtype == self.torch.bfloat16 else array).numpy()
        return host

    def synchronize(self) -> None:
        if self.asynchronous:
            self.torch.accelerator.synchronize(self.device)


class ArrayAPIStrict(Backend):
    """array-api-strict, for tests: it has the standard and no more. Its devices "device1" and "device2" stand in for GPUs."""

    library = "array_api_strict"

    def __init__(self, suffix: str):
        install = f"{pip('array-api-strict')}, or choose backend='numpy'"
        self.xp: Any = imported("array_api_strict", "backend 'array_api_strict' needs array-api-strict", install)
        try:
            self.device = self.xp.Device(suffix or "CPU_DEVICE")
        except ValueError as error:
            raise ValueError(
                f"backend 'array_api_strict:{suffix}' does not exist: choose CPU_DEVICE, device1 or device2"
            ) from error
        self.asynchronous = bool(suffix)
        self.name = "array_api_strict" + (f":{suffix}" if suffix else "")

    @classmethod
    def name_of(cls, array: Any) -> str:
        device = str(array.device).split("'")[1]
        return cls.library if device == "CPU_DEVICE" else f"{cls.library}:{device}"

    def _to_host(self, array: Any) -> np.ndarray:
        return np.asarray(array.to_device(self.xp.Device("CPU_DEVICE")))
