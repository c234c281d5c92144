"""The matrix of backends that tests run over, and the guard against looking at a device inside a step.

BPCORE_TEST_BACKENDS=numpy,torch runs these alone. A backend that is not here is skipped with the reason, unless
BPCORE_REQUIRE=cupy,torch names it: then its tests fail.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest

import bpcore as bp

MATRIX = ("numpy", "numpy-readonly", "array_api_strict", "array_api_strict:device1", "torch", "cupy")


def named(variable: str) -> list[str]:
    """The names in an environment variable, comma separated."""
    return [name for name in os.environ.get(variable, "").split(",") if name]


def missing(library: str, reason: str) -> NoReturn:
    """Skip, or fail where BPCORE_REQUIRE asks for the library."""
    if library in named("BPCORE_REQUIRE"):
        pytest.fail(f"BPCORE_REQUIRE asks for {library}: {reason}", pytrace=False)
    pytest.skip(reason)


def selected() -> list[str]:
    """The backends to run over."""
    wanted = named("BPCORE_TEST_BACKENDS") or MATRIX
    for name in (*wanted, *named("BPCORE_REQUIRE")):
        if name not in MATRIX:
            raise pytest.UsageError(f"there is no backend {name!r} in the matrix: choose of {', '.join(MATRIX)}")
    return list(wanted)


class BackendUnderTest:
    """One backend of the matrix: what goes in, what comes out, and the guard that a step runs under."""

    def __init__(self, name: str, backend: bp.Backend):
        self.name, self.backend, self.xp = name, backend, backend.xp

    def __repr__(self) -> str:
        return self.name

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A fresh array of this backend, which nobody may write to where the backend can say so."""
        array = self.backend.asarray(np.array(host, dtype=dtype))
        if self.name == "numpy-readonly":
            array.flags.writeable = False
        return array

    def writable(self, host: Any, dtype: str | None = None) -> Any:
        """A fresh array of this backend, to be written to."""
        return self.backend.asarray(np.array(host, dtype=dtype))

    def to_host(self, array: Any) -> np.ndarray:
        return self.backend.to_host(array)

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, looking at an array of an asynchronous device is an error; move values in and out outside of it."""
        guards: dict[str, Callable[[], Any]] = {"cupy": no_synchronization, "array_api_strict:device1": strict_device}
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
    lines = []
    for name in selected():
        try:
            bp.get_backend(name.partition("-")[0])
        except RuntimeError as error:
            lines.append(f"backend {name} is skipped: {error}")
    return [f"backends: {', '.join(selected())}", *lines]


@pytest.fixture(params=selected())
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    """Each backend of the matrix in turn."""
    name = request.param
    root = name.partition("-")[0]
    try:
        return BackendUnderTest(name, bp.get_backend(root))
    except RuntimeError as error:
        return missing(root.partition(":")[0], str(error))


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, the oracle."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return missing("torch", "PyTorch, the oracle, is not installed")
