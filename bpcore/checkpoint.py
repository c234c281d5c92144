"""Checkpoint files: safetensors with a JSON header. Writing is atomic; reading executes nothing from the file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpcore.arguments import file

__all__ = ["CheckpointError"]

Tensors = dict[str, np.ndarray[Any, Any]]  # by name
Header = dict[str, Any]  # values that JSON can hold

FORMAT = 1
KEY = "bpcore"


class CheckpointError(ValueError):
    """The file is not a checkpoint, is damaged, has a newer format, or does not fit."""


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray[Any, Any]], header: Mapping[str, Any]) -> None:
    """Write tensors and header to `path`. A crash at any moment leaves the whole old file or the whole new file."""
    from safetensors.numpy import save

    # safetensors writes the memory of a strided array as if it were contiguous
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    content = save(whole, metadata={KEY: json.dumps({"format": FORMAT, **header}, default=float)})
    target = check_place(path)
    temporary = target.with_name(f".{target.name}.tmp")  # always this name: the next write replaces what a killed process left
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path of a file to write, links resolved. Raises OSError if no file can be written there."""
    target = Path(os.path.realpath(file(path)))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file in it")
    return target


def read(path: str | os.PathLike[str]) -> tuple[Tensors, Header]:
    """(tensors, header) of the checkpoint at `path`. Raises CheckpointError, or OSError if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(file(path)):
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with safe_open(os.fspath(path), framework="numpy") as opened:
            metadata = opened.metadata() or {}
            header = json.loads(metadata[KEY]) if KEY in metadata else None
            if not isinstance(header, dict) or type(header.get("format")) is not int or header["format"] < 1:
                raise CheckpointError(f"{path} is a safetensors file, but no bpcore checkpoint: its header has no {KEY!r} entry")
            if header["format"] > FORMAT:
                raise CheckpointError(
                    f"{path} has checkpoint format {header['format']}, this bpcore reads up to {FORMAT}; install a newer bpcore"
                )
            return {name: opened.get_tensor(name) for name in opened.keys()}, header  # noqa: SIM118  it is not a mapping
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a bpcore checkpoint, or it is damaged ({error}); take an older copy. Nothing was loaded"
        ) from error


def expect(path: Any, what: str, expected: Any, got: Any) -> None:
    """Raise CheckpointError unless `got`, from the file, equals `expected`. what: the name of both in the error."""
    if expected != got:
        raise CheckpointError(f"{path} does not fit: expected {what} {expected}, the file has {got}. Nothing was loaded")


def tensor(path: Any, tensors: Mapping[str, np.ndarray[Any, Any]], name: str, size: int, dtype: str) -> np.ndarray[Any, Any]:
    """The vector `name` of a checkpoint. Raises CheckpointError unless it has this size and dtype."""
    if name not in tensors:
        raise CheckpointError(f"{path} does not fit: it has no vector {name!r}, only {sorted(tensors)}. Nothing was loaded")
    expect(path, f"{name} of shape and dtype", ((size,), dtype), (tensors[name].shape, str(tensors[name].dtype)))
    return tensors[name]
