"""Packages beyond bpcore's own dependencies: how to install them, and their import with an error that says so."""

from __future__ import annotations

import importlib
import platform
import sys
from types import ModuleType

# The packages of an extra of pyproject.toml. Errors name these, since pip knows the extras themselves in a clone only.
EXTRAS: dict[str, tuple[str, ...]] = {
    "plot": ("matplotlib>=3.8",),
    "fast": ("numba>=0.61", "onednn-cpu-gomp==2023.2.0"),
    "cuda12": ("cupy-cuda12x[ctk]>=14.0",),
    "cuda13": ("cupy-cuda13x[ctk]>=14.0",),
    "cudnn": ("nvidia-cudnn-cu13>=9.19", "nvidia-cudnn-frontend>=1.28,<1.29"),
    "tensorboard": ("tensorboardX>=2.6.4",),
}
ONEDNN = sys.platform == "linux" and platform.machine() == "x86_64"  # the systems that have its wheel


def pip(extra: str) -> str:
    """The command that installs the packages of an extra, or a package that belongs to none."""
    packages = [p for p in EXTRAS.get(extra, (extra,)) if ONEDNN or not p.startswith("onednn")]
    return " ".join(["pip install", *(f'"{p}"' if {*p} & set("[<>=") else p for p in packages)])


CUDA = f"{pip('cuda13')} (a driver for CUDA 13) or {pip('cuda12')}"


def imported(name: str, needs: str, install: str) -> ModuleType:
    """The module `name` of a package. Raises RuntimeError if the package is missing, or present and broken.

    needs: the beginning of the error, such as "pictures need matplotlib". install: the command, see `pip`.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except Exception as error:  # a broken package raises whatever it likes: OSError, AttributeError, SystemError
        if isinstance(error, ModuleNotFoundError) and (error.name or package) == package:
            raise RuntimeError(f"{needs}, which is not installed: {install}") from error
        again = install.replace("pip install", "pip install --force-reinstall")
        raise RuntimeError(
            f"{needs}, which is installed but cannot be imported ({brief(error)}); reinstall it: {again}"
        ) from error


def brief(error: BaseException) -> str:
    """An error in a line: its class, the first line of its text and, if there are several, the last, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" \t=*-")]
    text = " ... ".join([*lines[:1], *lines[1:][-1:]])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
