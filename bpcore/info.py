"""What this installation runs on: versions, devices, threads, which products and twins are in use, and why others are not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import textwrap

from bpcore import primitive
from bpcore.backend import get_backend
from bpcore.library import LIBRARIES

__all__ = ["backend_info"]

PACKAGES = ("bpcore", "numpy", "array-api-compat", "safetensors", "numba", "onednn-cpu-gomp", "cupy-cuda12x", "cupy-cuda13x")
ORACLES = ("torch", "array-api-strict")  # backends that tests run on


class Info(dict[str, dict[str, str]]):
    """Section to (name to text), printed as a table."""

    def __repr__(self) -> str:
        lines = []
        for section, rows in self.items():
            lines.append(section)
            width = max(map(len, rows), default=0)
            for name, text in rows.items():
                lines += textwrap.wrap(text, 120, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))
        return "\n".join(lines)


def backend_info() -> Info:
    """Versions, devices, threads, products and twins of this installation; print it, or look up `info["twins"]["fast"]`.

    `python -m bpcore` prints it. It tries each backend, so it wakes a GPU that is there.
    """
    return Info(
        versions={
            "python": platform.python_version(),
            **{name: found for name in PACKAGES + ORACLES if (found := version(name))},
        },
        backends={name: backend(name) for library in LIBRARIES.values() for name in library.names},
        devices={"cpu": f"{processor()}, {cores()} cores", **gpus()},
        **twins(),
    )


def version(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def backend(name: str) -> str:
    """Whether the backend works, and why not where it does not."""
    chosen = os.environ.get("BPCORE_BACKEND", "numpy")
    try:
        get_backend(name)
    except RuntimeError as error:
        return f"not here: {error}"
    return "works, and is chosen where none is named" if name == chosen else "works"


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"model name\s*: (.*)", file.read())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> dict[str, str]:
    """The CUDA GPU that backend "cupy" would use."""
    try:
        get_backend("cupy")
    except RuntimeError:
        return {}
    runtime = importlib.import_module("cupy").cuda.runtime
    found = runtime.getDeviceProperties(runtime.getDevice())
    memory = f"{found['totalGlobalMem'] / 2**30:.0f} GiB"
    return {"gpu": f"{found['name'].decode()}, {memory}, CUDA runtime {runtime.runtimeGetVersion()}"}


def twins() -> dict[str, dict[str, str]]:
    """The sections on twins, and what their sets tell of themselves: threads, and who computes products."""
    sections = {"twins": {"BPCORE_KERNELS": primitive.SETTING}}
    for library, sets in primitive.SETS.items():
        for name in sets:
            module, why_not = primitive.load(name)
            label = name.removeprefix("kernels.")
            if name in primitive.ALWAYS:
                continue
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
