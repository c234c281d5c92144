"""Checkpoint files: whole or not at all, and nothing in one is executed, whatever it holds."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import environment
from safetensors import safe_open
from safetensors.numpy import save

import bpcore as bp
from bpcore import checkpoint, files
from bpcore.checkpoint import CheckpointError

NO_NAMES = {"mapping": []}  # no arguments by name
NET = bp.Network(bp.MLP([4, 5, 3]), backend="numpy", seed=1)


@pytest.fixture
def path(tmp_path):
    """A file with NET in it."""
    NET.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def content(header: object, **tensors: np.ndarray) -> bytes:
    """A safetensors file with this for bpcore's header, and checksums that fit."""
    tensors = tensors or {"theta": NET.theta}
    if isinstance(header, dict):
        header = {**header, "checksums": checkpoint.checksums(tensors, json.dumps(header))}
    return save(tensors, metadata={"bpcore": json.dumps(header)})


def header_of(net: bp.Network = NET, **changes: object) -> dict:
    network = {**net.state()[1]["network"], **changes}
    return {"format": checkpoint.FORMAT, "network": network}


def refused(path, says: str = ".", **named) -> None:
    """The file is refused, by CheckpointError and nothing else, and named."""
    with pytest.raises(CheckpointError, match=says) as caught:
        bp.Network.load(path, **named)
    assert str(path) in str(caught.value)


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": np.arange(12.0).reshape(3, 4).T, "b": np.zeros(0), "c": np.asarray(3, "int64"), "d": np.ones(5)[::-2]}
    tensors |= {dtype: np.arange(3).astype(dtype) for dtype in ("bool", "int8", "uint16", "float16", "float32", "complex64")}
    checkpoint.write(tmp_path / "file", tensors, {"more": {"x": [1, None, 0.1, "θ"]}})
    read, header = checkpoint.read(tmp_path / "file")
    assert header == {"format": checkpoint.FORMAT, "more": {"x": [1, None, 0.1, "θ"]}}
    for name, array in tensors.items():  # strided arrays too: the format knows contiguous ones only
        assert np.array_equal(read[name], array), name
        assert read[name].dtype == array.dtype
    checkpoint.write(tmp_path / "file", {"a": np.arange(3, dtype=">f4"), "b": np.arange(3, dtype=">u2")}, {})
    read, _ = checkpoint.read(tmp_path / "file")
    assert [array.tolist() for array in read.values()] == [[0, 1, 2]] * 2


def test_truncated_anywhere(path):
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 37), *range(12), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path, "is not a bpcore checkpoint, or it is damaged")
    path.write_bytes(whole + b"more")
    refused(path)
    path.write_bytes(whole)
    assert np.array_equal(bp.Network.load(path).theta, NET.theta)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed, tmp_path):
    generator = np.random.default_rng(seed)
    (tmp_path / "file").write_bytes(generator.bytes(generator.integers(1, 4000)))
    refused(tmp_path / "file", "is not a bpcore checkpoint, or it is damaged")


@pytest.mark.parametrize("seed", range(30))
def test_bytes_changed_in_the_header(seed, path):
    """Refused, or what it says is still right; no other exception, and never another network without a word."""
    generator, whole = np.random.default_rng(seed), bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    for i in generator.integers(8, 8 + length, 3):
        whole[i] = generator.integers(32, 127)
    path.write_bytes(bytes(whole))
    try:
        loaded = bp.Network.load(path)
    except CheckpointError:
        pass
    else:
        assert loaded.layout.manifest() == NET.layout.manifest()


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz", "text", "zip", "empty"])
def test_a_file_of_another_kind(kind, tmp_path):
    """A pickle, bare or in NumPy's formats, is never opened."""
    mark, file = tmp_path / "executed", tmp_path / "file"
    bomb = np.asarray([Bomb(str(mark))])
    with open(file, "wb") as stream:
        if kind == "pickle":
            pickle.dump(Bomb(str(mark)), stream)
        elif kind == "npy":
            np.save(stream, bomb, allow_pickle=True)
        elif kind == "npz":
            np.savez(stream, theta=bomb)
        elif kind != "empty":
            stream.write(b"PK\x03\x04" if kind == "zip" else b"network: MLP\n")
    refused(file, "is not a bpcore checkpoint, or it is damaged")
    assert not mark.exists()
    if kind == "pickle":  # the bomb is a real one
        pickle.loads(file.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"format": checkpoint.FORMAT + 1}, r"has checkpoint format \d+, this bpcore reads up to \d+; install a newer bpcore"),
        ({"format": 0}, r"no bpcore checkpoint"),
        ({"format": True}, r"no bpcore checkpoint"),
        ({"format": "1"}, r"no bpcore checkpoint"),
        ({}, r"no bpcore checkpoint"),
        ([], r"no bpcore checkpoint"),
        (None, r"no bpcore checkpoint"),
        ({"format": checkpoint.FORMAT}, r"has no network in it"),
        ({"format": checkpoint.FORMAT, "network": []}, r"has no network in it"),
        (header_of(structure=None), r"cannot be built.*damaged"),
        (header_of(structure=[]), r"cannot be built.*damaged"),
        (header_of(structure=[3]), r"cannot be built.*damaged"),
        (header_of(structure=[{"class": "MLP", "positional": [], "named": NO_NAMES}]), r"cannot be built.*damaged"),
        (header_of(structure=[{"class": "MLP", "positional": [["a"]], "named": NO_NAMES}]), r"cannot be built.*damaged"),
        (header_of(structure=[{"class": "Residual", "positional": [3], "named": NO_NAMES}]), r"cannot be built.*damaged"),
        (
            header_of(structure=[{"class": "Residual", "positional": [{"module": 7}], "named": NO_NAMES}]),
            r"cannot be built.*damaged",
        ),
        (
            header_of(structure=[{"class": "Circuit", "positional": ["x", 3, "x"], "named": NO_NAMES}]),
            r"cannot be built.*damaged",
        ),
        (
            header_of(structure=[{"class": "system", "positional": ["true"], "named": NO_NAMES}]),
            r"'system' that is not bpcore's own",
        ),
        (header_of(structure=[{"class": "__import__", "positional": ["os"], "named": NO_NAMES}]), r"that is not bpcore's own"),
        (header_of(dtype="float16"), r"dtype"),
        (header_of(dtype=None), r"dtype"),
        (header_of(dtype="float64"), r"expected theta of shape and dtype \(\(43,\), 'float64'\), the file has .*'float32'"),
        (header_of(parameters=None), r"does not fit: expected parameters"),
        (header_of(parameters={}), r"does not fit: expected parameters"),
        (
            header_of(bp.Network(bp.MLP([4, 6, 3]))),
            r"expected theta of shape and dtype \(\(51,\), 'float32'\), the file has .*43",
        ),
    ],
    ids=lambda x: json.dumps(x)[:60] if not isinstance(x, str) else "",
)
def test_a_header_that_does_not_fit(header, says, path):
    path.write_bytes(content(header))
    refused(path, says)


@pytest.mark.parametrize("initializer", ["sqrt", "np", "dataclass", "Any", "__builtins__", "fans", "prod", "HeNormal.__init__"])
def test_only_initializers_are_made_from_their_names(initializer, path):
    named = {"mapping": [["initializer", {"initializer": initializer, "named": {}}]]}
    linear = {"class": "Linear", "positional": [4, 3], "named": named}
    path.write_bytes(content(header_of(structure=[linear])))
    refused(path, "argument that bpcore cannot rebuild|cannot be built")


def test_a_header_nested_without_end(path):
    """JSON so deep that reading it would overflow the stack."""
    deep = "[" * 100_000 + "]" * 100_000
    path.write_bytes(save({"theta": NET.theta}, metadata={"bpcore": deep}))
    refused(path, "is not a bpcore checkpoint, or it is damaged")


def test_sizes_that_no_memory_holds_are_refused_first(path):
    """What the file says of sizes is held against the arrays in it before anything is allocated."""
    huge = bp.Network(bp.MLP([4, 5, 3])).state()[1]["network"]
    huge["structure"] = [{"class": "MLP", "positional": [[10**9, 10**9]], "named": NO_NAMES}]
    path.write_bytes(content({"format": checkpoint.FORMAT, "network": huge}))
    tracemalloc.start()
    try:
        refused(path, "does not fit: expected parameters")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": NET.theta}, r"has no vector 'theta', only \['other'\]"),
        ({"theta": NET.theta[:-1]}, r"expected theta of shape and dtype \(\(43,\), 'float32'\), the file has \(\(42,\)"),
        ({"theta": NET.theta.reshape(1, -1)}, r"the file has \(\(1, 43\), 'float32'\)"),
        ({"theta": NET.theta.astype("float64")}, r"the file has \(\(43,\), 'float64'\)"),
        ({"theta": np.zeros(43, "int32")}, r"the file has \(\(43,\), 'int32'\)"),
    ],
    ids=["name", "length", "rank", "dtype", "integers"],
)
def test_arrays_that_do_not_fit(tensors, says, path):
    path.write_bytes(content(header_of(), **tensors))
    refused(path, says)


def test_a_safetensors_file_of_somebody_else(path):
    path.write_bytes(save({"theta": NET.theta}))
    refused(path, "is a safetensors file, but no bpcore checkpoint")


def test_a_dtype_that_numpy_lacks(path):
    header = {"theta": {"dtype": "BF16", "shape": [43], "data_offsets": [0, 86]}}
    header["__metadata__"] = {"bpcore": json.dumps(header_of())}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(86))
    refused(path)


def test_another_network(path):
    refused(path, "does not fit: expected parameters", module=bp.MLP([4, 6, 3]))
    refused(path, "does not fit: expected parameters", module=bp.Sequential(bp.MLP([4, 5, 3])))
    refused(path, "expected module .*'tanh'.*, the file has .*bpcore.MLP", module=bp.MLP([4, 5, 3], "tanh"))
    assert np.array_equal(bp.Network.load(path, module=bp.MLP([4, 5, 3])).theta, NET.theta)


# ---- checksums ----


def rewritten(path, change) -> None:
    """The file as `change(tensors, header)` leaves it, with the checksums of before."""
    with safe_open(path, framework="numpy") as file:
        tensors, header = file.get_tensors(), json.loads(file.metadata()["bpcore"])
    change(tensors, header)
    path.write_bytes(save(tensors, metadata={"bpcore": json.dumps(header)}))


def test_every_bit_of_a_tensor_counts(path):
    whole = path.read_bytes()
    for at in range(len(whole) - NET.theta.nbytes, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        refused(path, r"is damaged: 'theta' changed after it was written; take an older copy\. Nothing was loaded")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, header: tensors.update(more=np.ones(3)), "'more' changed"),
        (lambda tensors, header: tensors.pop("theta"), "'theta' changed"),
        (lambda tensors, header: tensors.update(more=tensors.pop("theta")), "'more', 'theta' changed"),
        (lambda tensors, header: tensors.update(theta=tensors["theta"].reshape(1, -1)), "'theta' changed"),
        (lambda tensors, header: tensors.update(theta=tensors["theta"].view("int32")), "'theta' changed"),
        (lambda tensors, header: header.update(more=1), "the header changed"),
        (lambda tensors, header: header["network"].update(dtype="float64"), "the header changed"),
        (lambda tensors, header: header.update(format=1), "the header changed"),
        (lambda tensors, header: header.pop("checksums"), "the header, 'theta' changed"),
        (lambda tensors, header: header["checksums"].pop("tensors"), "'theta' changed"),
        (lambda tensors, header: header["checksums"].pop("header"), "the header changed"),
        (lambda tensors, header: header["checksums"]["tensors"].pop("theta"), "'theta' changed"),
        (lambda tensors, header: header["checksums"]["tensors"].update(more=1), "'more' changed"),
        (lambda tensors, header: header.update(checksums=[3]), "damaged"),
    ],
)
def test_what_changed_is_named(change, says, path):
    rewritten(path, change)
    refused(path, f"{says}.*take an older copy")


def test_a_file_of_format_1_has_no_checksums(path):
    def before(tensors, header):
        del header["checksums"]
        header["format"] = 1

    rewritten(path, before)
    assert np.array_equal(bp.Network.load(path).theta, NET.theta)


def test_arrays_that_no_reader_understands_are_not_written(tmp_path):
    for array in ([1j], [None], ["text"], np.ones(2, "datetime64[s]"), np.zeros(2, [("a", "f4")])):
        with pytest.raises(TypeError, match=r"a checkpoint holds arrays of numbers, got 'a' of dtype .*; convert it first"):
            checkpoint.write(tmp_path / "file", {"a": np.array(array)}, {})
    assert os.listdir(tmp_path) == []


def test_a_network_takes_no_state_that_does_not_fit(path):
    """check_state says so and assigns nothing."""
    net = bp.Network(bp.MLP([4, 6, 3]))
    before = net.theta.copy()
    with pytest.raises(CheckpointError, match="does not fit"):
        net.check_state(path, *checkpoint.read(path))
    assert np.array_equal(net.theta, before)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*nowhere"):
        bp.Network.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError, match="it is a folder; name the checkpoint in it"):
        bp.Network.load(tmp_path)
    for use in (NET.save, bp.Network.load):
        with pytest.raises(ValueError, match="path has a null character"):
            use("a\0b")
    with pytest.raises(FileNotFoundError, match="it is a device or a pipe"):
        bp.Network.load(os.devnull)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing; make it first"):
        NET.save(tmp_path / "missing" / "net")
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file in it"):
        NET.save(tmp_path)


# ---- atomic ----


@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file(at, path, monkeypatch):
    """A disk that is full, or gone, at any of the steps."""
    before = path.read_bytes()

    def fail(*args, **named):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, at, fail)
        with pytest.raises(OSError, match="no space left"):
            bp.Network(bp.MLP([8, 9, 3])).save(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    NET.save(path)
    assert np.array_equal(bp.Network.load(path).theta, NET.theta)


def test_a_process_killed_before_the_rename_leaves_the_old_file(path):
    """Nothing runs after the kill, not even a `finally`: the old file is whole, and can be written again."""
    before = path.read_bytes()
    code = (
        "import os, signal, sys, bpcore as bp\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "bp.Network(bp.MLP([8, 9, 3])).save(sys.argv[1])\n"
    )
    if os.name != "posix":
        pytest.skip("there is no SIGKILL here")
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), check=False, timeout=60)
    assert done.returncode < 0
    assert path.read_bytes() == before
    assert np.array_equal(bp.Network.load(path).theta, NET.theta)
    NET.save(path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_usual_file_mode(umask, tmp_path):
    """As any new file has under the umask, not the private mode of temporary files."""
    old = os.umask(umask)
    try:
        NET.save(tmp_path / "net")
        (tmp_path / "usual").write_bytes(b"")
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("net", "usual")]
    assert modes[0] == modes[1] == 0o666 & ~umask


@pytest.mark.skipif(os.name != "posix", reason="making links may need rights elsewhere")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "net")
    NET.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "folder")) == ["net"]
    assert np.array_equal(bp.Network.load(tmp_path / "link").theta, NET.theta)


def test_the_file_and_the_folder_are_synced(path, monkeypatch):
    """In this order: the file's content, the rename, the folder."""
    calls = []
    fsync, replace = os.fsync, os.replace
    record = lambda what, done: (calls.append(what), done)[1]  # noqa: E731

    def synced(descriptor):
        record("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file", fsync(descriptor))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: record("rename", replace(*paths)))
    NET.save(path)
    assert calls == (["file", "rename", "folder"] if os.name == "posix" else ["file", "rename"])
