"""What this installation runs on: versions, devices, threads, the libraries that multiply matrices, and twins in use or not."""

from __future__ import annotations

import importlib
import os
import platform
import re
import textwrap
import warnings
from typing import Any

from bpcore import primitive
from bpcore.backend import get_backend
from bpcore.library import LIBRARIES
from bpcore.packages import brief

__all__ = ["backend_info"]

PACKAGES = (
    *("bpcore", "numpy", "array-api-compat", "safetensors", "numba", "onednn-cpu-gomp", "cupy-cuda12x", "cupy-cuda13x"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"),
)
ORACLES = ("torch", "array-api-strict")  # backends for tests


class Info(dict[str, dict[str, str]]):
    """Sections by title, each a dictionary of texts by name; prints as a table."""

    def __repr__(self) -> str:
        lines = []
        for section, rows in self.items():
            lines.append(section)
            width = max(map(len, rows), default=0)
            for name, text in rows.items():
                wrapper = textwrap.TextWrapper(120, break_on_hyphens=False, break_long_words=False)
                wrapper.initial_indent, wrapper.subsequent_indent = f"  {name:{width}}  ", " " * (width + 4)
                lines += wrapper.wrap(text)
        return "\n".join(lines)


def backend_info() -> Info:
    """What this installation runs on; print it, or look up `info["twins"]["fast"]`.

    Sections: versions, backends, devices, twins, threads, products (the library that multiplies matrices). A twin is a faster
    implementation of one of bpcore's functions, for the arrays of one library. `python -m bpcore` prints the same. Every
    backend is tried, so a GPU is started if there is one.
    """
    names = [name for library in LIBRARIES.values() for name in library.names]
    return Info(
        versions={
            "python": platform.python_version(),
            **{name: installed for name in PACKAGES + ORACLES if (installed := version(name))},
        },
        backends={name: state_of(name) for name in dict.fromkeys([*names, default()])},
        devices={"cpu": f"{processor()}, {cores()} cores", **gpus()},
        **twins(),
    )


def version(package: str) -> str | None:
    """The installed version, or None."""
    from importlib import metadata  # slow to import

    try:
        return metadata.version(package)
    except Exception:  # not installed, or its metadata are damaged
        return None


def default() -> str:
    """The name of the backend that is used where none is named, from BPCORE_BACKEND."""
    return os.environ.get("BPCORE_BACKEND") or "numpy"


def state_of(name: str) -> str:
    """Whether the backend of that name works, or why not."""
    try:
        get_backend(name)
    except (RuntimeError, ValueError) as error:
        return f"not available: {error}"
    except Exception as error:  # a library that is broken in a way of its own
        return f"not available: {brief(error)}"
    return "works, and is the default" if name == default() else "works"


def processor() -> str:
    """The name of the processor, as exact as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model = re.search(r"model name\s*: (.*)", file.read())
    except OSError:
        model = None
    return model.group(1) if model else platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> dict[str, str]:
    """The CUDA GPU that backend "cupy" would use."""
    if not state_of("cupy").startswith("works"):
        return {}
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
        gpu = runtime.getDeviceProperties(runtime.getDevice())
        memory = f"{gpu['totalGlobalMem'] / 2**30:.0f} GiB"
        return {"gpu": f"{gpu['name'].decode()}, {memory}, CUDA runtime {runtime.runtimeGetVersion()}"}
    except Exception as error:
        return {"gpu": f"cannot be asked: {brief(error)}"}


def twins() -> dict[str, dict[str, str]]:
    """The section on twins, and those that sets of twins report: threads, and the library that multiplies matrices."""
    sections = {"twins": {"BPCORE_KERNELS": primitive.SETTING}}
    for library, sets in primitive.SETS.items():
        for name in sets:
            if name in primitive.ALWAYS:
                continue
            module, why_not = load(name)
            label = name.removeprefix("kernels.")
            if module is None:
                sections["twins"][label] = f"not in use: {why_not}"
            elif not primitive.in_use(name):
                sections["twins"][label] = f"not in use: BPCORE_KERNELS={primitive.SETTING}"
            else:
                names = sorted(known.name for known in primitive.PRIMITIVES.values() if name in known.twins)
                sections["twins"][label] = f"for {library}'s arrays: {', '.join(names)}"
                for section, text in module.report().items():
                    sections.setdefault(section, {})[label] = text
    return sections


def load(name: str) -> tuple[Any, str]:
    """As `primitive.load`, but whatever goes wrong is a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is shown
        try:
            return primitive.load(name)
        except Exception as error:
            return None, brief(error)
