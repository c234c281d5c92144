"""The choice of a backend: by name, by a `with` block, by the environment, or as the backend of an array."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from bpcore import libraries
from bpcore.arguments import nearest, show
from bpcore.library import LIBRARIES, Backend, library_of

__all__ = ["backend_of", "get_backend", "use_backend"]

_made: dict[str, Backend] = {}
_chosen: ContextVar[str | None] = ContextVar("bpcore_backend", default=None)


def get_backend(name: str | Backend | None = None) -> Backend:
    """The backend called `name`: "numpy", "cupy", "torch" (on the CPU), "array_api_strict", or "auto" (CuPy if its GPU works).

    A device may follow a colon: "torch:cuda", "torch:mps", "torch:xpu". With None the choice is that of `use_backend`,
    else of the environment variable BPCORE_BACKEND, else NumPy. Raises ValueError for an unknown name or device, and
    RuntimeError, which says what to install or choose, if the library or the device is missing.
    """
    if isinstance(name, Backend):
        return name
    if name is not None and not isinstance(name, str):
        hint = nearest(name.__name__, LIBRARIES) if isinstance(name, ModuleType) else ""
        raise ValueError(f"unknown backend {show(name)}: choose one of {', '.join(LIBRARIES)}, auto{hint}")
    name = str(name or _chosen.get() or os.environ.get("BPCORE_BACKEND") or "numpy")
    if name not in _made:
        library, _, suffix = name.partition(":")
        if library == "auto":
            _made[name] = _working_gpu() or get_backend("numpy")
        elif library in LIBRARIES:
            _made[name] = LIBRARIES[library](suffix)
        else:
            raise ValueError(f"unknown backend {show(name)}: choose one of {', '.join(LIBRARIES)}, auto")
    return _made[name]


def _working_gpu() -> Backend | None:
    """CuPy, or None unless its GPU computes: a GPU that is listed may be unable to compile or to run."""
    try:
        backend = libraries.CuPy("")
        backend.xp.sum(backend.zeros(2, "float32"))
        backend.synchronize()
    except Exception:  # auto: whatever is wrong with the GPU, go on without it
        return None
    return backend


@contextmanager
def use_backend(name: str | Backend) -> Iterator[Backend]:
    """Within the `with` block, networks and arrays are made on this backend unless another one is named."""
    backend = get_backend(name)
    token = _chosen.set(backend.name)
    try:
        yield backend
    finally:
        _chosen.reset(token)


def backend_of(array: Any) -> Backend:
    """The backend of `array`. Raises TypeError unless it is an array of a known library."""
    library = library_of(array)
    if library is None:
        of = f"{type(array).__module__}.{type(array).__name__}"
        raise TypeError(f"expected an array of one of {', '.join(LIBRARIES)}, got {of}")
    return get_backend(library.name_of(array))
