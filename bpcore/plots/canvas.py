"""What the pictures share: an empty figure, the checks of arguments, writing to a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from bpcore import files
from bpcore.arguments import show
from bpcore.backend import backend_of
from bpcore.library import host_data
from bpcore.packages import imported, pip

BLUE, ORANGE = "#0072b2", "#d55e00"  # of Okabe and Ito, told apart by all; and by their lightness in print

FilePath = str | os.PathLike[str]


def matplotlib_here() -> Any:
    """bpcore/plots/picture.py. Raises RuntimeError if matplotlib is not installed."""
    imported("matplotlib.figure", "pictures need matplotlib", pip("plot"))
    from bpcore.plots import picture

    return picture


def blank(width: float, height: float, layout: Any = "constrained") -> Any:
    """An empty figure, width and height in inches. Raises RuntimeError if matplotlib is not installed."""
    return matplotlib_here().Picture(figsize=(width, height), layout=layout)


def expect_path(path: Any) -> None:
    """Raise an error unless path is None, or the path of a picture that can be written."""
    if path is None:
        return
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the name of a file, such as 'picture.png', got {show(path)}; give other arguments by name")
    formats = blank(1, 1).formats()
    files.check_place(path)
    if Path(path).suffix.lower().removeprefix(".") not in formats:
        raise ValueError(
            f"path must end in .png, .svg, .pdf or another of matplotlib's formats, got {os.fspath(path)!r}; rename it"
        )


def written(figure: Any, path: FilePath | None) -> Any:
    """Write the figure to `path`, if there is one, and return it."""
    if path is not None:
        content = figure.rendered(Path(path).suffix.lower().removeprefix("."), dpi=150)
        files.write(path, content)
    return figure


def on_host(name: str, x: Any) -> np.ndarray:
    """x, an array of any backend or what NumPy takes, as a NumPy array. name: for errors."""
    host = host_data(x, name)
    return backend_of(x).to_host(x) if host is None else host
