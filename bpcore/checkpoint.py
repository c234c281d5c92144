"""Checkpoint files: safetensors with a JSON header and checksums. Writing is atomic; reading executes nothing from the file."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpcore import arguments, files

__all__ = ["CheckpointError"]

Tensors = dict[str, np.ndarray[Any, Any]]  # by name
Header = dict[str, Any]  # values that JSON can hold

FORMAT = 2  # 1 had no checksums, and bare names of classes
KEY, SUMS = "bpcore", "bpcore.checksums"  # entries of safetensors' metadata
CHECKED = "checked"  # in the JSON of a file with checksums: one that lost them is damaged
DTYPES = {"BOOL", "F16", "F32", "F64", "C64", *(f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64))}  # that NumPy has


class CheckpointError(ValueError):
    """The file is not a checkpoint, is damaged, has a newer format, or does not fit."""


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray[Any, Any]], header: Mapping[str, Any]) -> None:
    """Write tensors and header to `path`. A crash at any moment leaves the whole old file or the whole new file."""
    files.write(arguments.path("path", path), pack(tensors, header), durable=True)


def pack(tensors: Mapping[str, np.ndarray[Any, Any]], header: Mapping[str, Any]) -> list[Any]:
    """The content of a checkpoint in pieces: a length, safetensors' header, and a copy of each tensor."""
    described: dict[str, Any] = {}
    pieces: list[Any] = []
    checksums: dict[str, int] = {}
    end = 0
    # the largest dtypes first, so that each tensor begins at a multiple of its dtype's size
    for name, array in sorted(tensors.items(), key=lambda item: (-np.asarray(item[1]).dtype.itemsize, item[0])):
        host = np.array(array, order="C")  # a copy, which a thread that trains cannot change between its checksum and the disk
        host = host.astype(host.dtype.newbyteorder("<"), copy=False)
        dtype = "BOOL" if host.dtype.kind == "b" else f"{host.dtype.kind.upper()}{8 * host.dtype.itemsize}"
        if dtype not in DTYPES:
            raise TypeError(f"a checkpoint holds arrays of numbers, got {name!r} of dtype {host.dtype}; convert it first")
        start, end = end, end + host.nbytes
        described[name] = {"dtype": dtype, "shape": host.shape, "data_offsets": (start, end)}
        checksums[name] = checksum(host)
        pieces.append(host.data)
    text = json.dumps({"format": FORMAT, CHECKED: True, **header}, default=float)
    sums = {"header": zlib.crc32(text.encode()), "tensors": checksums}
    front = json.dumps({"__metadata__": {KEY: text, SUMS: json.dumps(sums)}, **described}).encode()
    front += b" " * (-len(front) % 8)
    return [struct.pack("<Q", len(front)), front, *pieces]


def checksum(array: np.ndarray[Any, Any]) -> int:
    """The CRC-32 of a contiguous array's dtype, shape and numbers: 45 ms for 100 MB, where blake2b takes 100."""
    return zlib.crc32(array.data, zlib.crc32(f"{array.dtype.name} {array.shape}".encode()))


def read(path: str | os.PathLike[str]) -> tuple[Tensors, Header]:
    """(tensors, header) of the checkpoint at `path`. Raises CheckpointError, or OSError if the file cannot be read.

    A file of an earlier format has no checksums. In others each byte is checked.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(arguments.path("path", path)):
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
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a mapping
        if header.pop(CHECKED, False) or SUMS in metadata:
            check_sums(path, metadata, tensors)
        return tensors, header
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, RecursionError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a bpcore checkpoint, or it is damaged ({error}); take an older copy. Nothing was loaded"
        ) from error


def check_sums(path: Any, metadata: Mapping[str, str], tensors: Tensors) -> None:
    """Raise CheckpointError unless the header and each tensor are what was written, or KeyError if the checksums are missing."""
    expected = json.loads(metadata[SUMS])
    wrong = [] if zlib.crc32(metadata[KEY].encode()) == expected["header"] else ["the header"]
    sums = {name: checksum(array) for name, array in tensors.items()}
    wrong += [repr(name) for name in sorted({*sums, *expected["tensors"]}) if sums.get(name) != expected["tensors"].get(name)]
    if wrong:
        raise CheckpointError(
            f"{path} is damaged: {', '.join(wrong)} changed after it was written; take an older copy. Nothing was loaded"
        )


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
