"""The matrix of backends that tests run over, and the guard against looking at a device inside a step.

BPCORE_TEST_BACKENDS=numpy,torch runs these alone. A backend that is not here is skipped with the reason, and PyTorch's devices
that are not here are left out, unless BPCORE_REQUIRE=cupy,torch:cuda names it: then its tests fail.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest

import bpcore as bp

TORCH_DEVICES = ("torch:cuda", "torch:mps", "torch:xpu")
MATRIX = ("numpy", "numpy-readonly", "array_api_strict", "array_api_strict:device1", "torch", *TORCH_DEVICES, "cupy")
# Code with which a process begins that is to find no libgomp
NO_LIBGOMP = """
import ctypes
class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **named):
        if "libgomp" in str(name): raise OSError("no libgomp.so.1")
        super().__init__(name, *args, **named)
ctypes.CDLL = CDLL
"""


def named(variable: str) -> list[str]:
    """The names in an environment variable, comma separated."""
    return [name for name in os.environ.get(variable, "").split(",") if name]


def missing(name: str, reason: str) -> NoReturn:
    """Skip what needs a library or backend, or fail if BPCORE_REQUIRE asks for it, or for its library."""
    for required in {name, name.partition(":")[0]} & set(named("BPCORE_REQUIRE")):
        pytest.fail(f"BPCORE_REQUIRE asks for {required}: {reason}", pytrace=False)
    pytest.skip(reason)


def why_missing(name: str) -> str:
    """Why a backend of the matrix is not here; "" if it is."""
    try:
        bp.get_backend(name.partition("-")[0])
    except RuntimeError as error:
        return str(error)
    return ""


def selected() -> list[str]:
    """The backends to run over."""
    wanted, required = named("BPCORE_TEST_BACKENDS"), named("BPCORE_REQUIRE")
    for name in (*wanted, *required):
        if name not in MATRIX:
            raise pytest.UsageError(f"there is no backend {name!r} in the matrix: choose of {', '.join(MATRIX)}")
    return wanted or [name for name in MATRIX if name not in TORCH_DEVICES or name in required or not why_missing(name)]


def environment(**more: str) -> dict[str, str]:
    """Of a child process: this one's, which finds the modules that this process finds; pytest without plugins from elsewhere."""
    path = os.pathsep.join([*filter(None, sys.path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more}


class BackendUnderTest:
    """One backend of the matrix: what goes in, what comes out, and the guard that a step runs under."""

    def __init__(self, name: str, backend: bp.Backend):
        self.name, self.backend, self.xp = name, backend, backend.xp

    def __repr__(self) -> str:
        return self.name

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A fresh array of this backend, which nobody may write to where the backend can say so."""
        array = self.writable(host, dtype)
        if self.name == "numpy-readonly":
            array.flags.writeable = False
        return array

    def writable(self, host: Any, dtype: str | None = None) -> Any:
        """A fresh array of this backend, to be written to."""
        array = np.array(host, dtype=dtype)
        self.expect(array.dtype)
        return self.backend.asarray(array)

    def expect(self, dtype: Any) -> None:
        """Skip a test of float64 where the backend has none."""
        if dtype == "float64" and "float64" not in self.backend.dtypes:
            pytest.skip(f"{self.name} has no float64")

    def to_host(self, array: Any) -> np.ndarray:
        return self.backend.to_host(array)

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, looking at an array of an asynchronous device is an error; move values in and out outside of it."""
        guards: dict[str, Callable[[], Any]] = {
            "cupy": no_synchronization,
            "torch:cuda": torch_error,
            "array_api_strict:device1": strict_device,
        }
        return guards.get(self.name, contextlib.nullcontext)()


@contextlib.contextmanager
def no_synchronization() -> Iterator[None]:
    """CuPy's own guard, which warns that it does not see every look."""
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stack.enter_context(importlib.import_module("cupyx").allow_synchronize(False))
        yield


@contextlib.contextmanager
def torch_error() -> Iterator[None]:
    """PyTorch's own guard on CUDA, which warns that it does not see every look either."""
    cuda = importlib.import_module("torch").cuda
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def strict_device() -> Iterator[None]:
    """array-api-strict without what needs values to know a shape, its off-CPU device without the ways to read a value."""
    import array_api_strict

    Array, cpu = type(array_api_strict.zeros(1)), array_api_strict.Device("CPU_DEVICE")

    def forbid(patch: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(Array, name)

        def guarded(self: Any, *args: Any, **named: Any) -> Any:
            if self.device != cpu:
                raise RuntimeError(f"{name} reads a value of {self.device}: on a GPU the host would wait for it")
            return original(self, *args, **named)

        patch.setattr(Array, name, guarded)

    flags = array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False)
    with flags, pytest.MonkeyPatch.context() as patch:
        for name in ("__float__", "__int__", "__bool__", "__index__", "__complex__", "__array__"):
            forbid(patch, name)
        yield


def pytest_report_header() -> list[str]:
    """Which backends the run covers, and why not the others."""
    names = selected()
    lines = [f"backend {name} is skipped: {why}" for name in names if (why := why_missing(name))]
    left_out = [name for name in TORCH_DEVICES if name not in names and not named("BPCORE_TEST_BACKENDS")]
    if left_out:
        lines.append(f"left out, for PyTorch finds no such device: {', '.join(left_out)}")
    return [f"backends: {', '.join(names)}", *lines]


@pytest.fixture(params=selected())
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    """Each backend of the matrix in turn."""
    root = request.param.partition("-")[0]
    if why := why_missing(root):
        missing(root, why)
    backend = BackendUnderTest(request.param, bp.get_backend(root))
    if hasattr(request.node, "callspec"):
        backend.expect(request.node.callspec.params.get("dtype"))
    return backend


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, the oracle."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return missing("torch", "PyTorch, the oracle, is not installed")
