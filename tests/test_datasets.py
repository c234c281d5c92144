"""Data sets: where files are found, and what becomes of damaged ones; downloads, from a server on this machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import bpcore as bp
from bpcore import datasets, downloads

SMALL = (
    ("train-images-idx3-ubyte", (6, 5, 4)),
    ("train-labels-idx1-ubyte", (6,)),
    ("t10k-images-idx3-ubyte", (3, 5, 4)),
    ("t10k-labels-idx1-ubyte", (3,)),
)


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    kind = next(code for code, dtype in datasets.IDX_TYPES.items() if np.dtype(dtype).str[1:] == array.dtype.str[1:])
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + np.asarray(array, array.dtype.newbyteorder(">")).tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data, an empty cache, and no network but this machine."""
    monkeypatch.delenv("BPCORE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("MNIST_URL", "FASHION_URL", "SHAKESPEARE_URL"):
        monkeypatch.setattr(datasets, name, "http://127.0.0.1:1/")


@pytest.fixture
def small(monkeypatch) -> dict[str, bytes]:
    """MNIST in small: the gzipped files by name; their md5s are known, and those of the files unpacked."""
    generator, files, known = np.random.default_rng(0), {}, {}
    for name, shape in SMALL:
        content = idx(generator.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8))
        files[f"{name}.gz"] = gzip.compress(content)
        known.update({name: md5(content), f"{name}.gz": md5(files[f"{name}.gz"])})
    monkeypatch.setattr(datasets, "IMAGES_AND_LABELS", SMALL)
    monkeypatch.setattr(datasets, "MNIST_MD5", known)
    monkeypatch.setattr(datasets, "FASHION_MD5", known)
    return files


def write(folder: Path, files: dict[str, bytes], unpacked: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name.removesuffix(".gz") if unpacked else name)).write_bytes(gzip.decompress(content) if unpacked else content)
    return folder


def check_small(given, files) -> None:
    """What was read is what was written, in 0..1."""
    for (X, y), which in zip(given, ("train", "t10k"), strict=True):
        images = datasets.IMAGES_AND_LABELS[0 if which == "train" else 2][1]
        raw = gzip.decompress(files[f"{which}-images-idx3-ubyte.gz"])[16:]
        assert (X.dtype, X.shape) == (np.float32, (*images, 1))
        np.testing.assert_allclose(X.reshape(-1) * 255, list(raw), rtol=1e-6)
        assert y.dtype == np.int64
        assert y.tolist() == list(gzip.decompress(files[f"{which}-labels-idx1-ubyte.gz"])[8:])


# files at hand


@pytest.mark.parametrize("unpacked", [False, True], ids=["gzipped", "unpacked"])
@pytest.mark.parametrize("where", ["BPCORE_DATA", "cache"])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion_mnist", "fashion-mnist")])
def test_found(name, folder, where, unpacked, small, tmp_path, monkeypatch):
    root = tmp_path / "cache" / "bpcore" if where == "cache" else tmp_path / "data"
    write(root / folder, small, unpacked)
    if where == "BPCORE_DATA":
        monkeypatch.setenv("BPCORE_DATA", str(root))
    check_small(getattr(bp.datasets, name)(), small)


def test_the_folder_comes_before_the_cache(small, tmp_path, monkeypatch):
    """And what it does not have is looked for in the cache, file by file."""
    write(tmp_path / "cache" / "bpcore" / "mnist", small)
    images = "train-images-idx3-ubyte.gz"
    write(tmp_path / "data" / "mnist", {images: b"damaged"})
    check_small(bp.datasets.mnist(), small)
    monkeypatch.setenv("BPCORE_DATA", str(tmp_path / "data"))
    with pytest.raises(ValueError, match=rf"data.*{images} is damaged, or another file: its md5 is {md5(b'damaged')}.*delete it"):
        bp.datasets.mnist()
    write(tmp_path / "data" / "mnist", {images: small[images]})
    check_small(bp.datasets.mnist(), small)


def test_a_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("BPCORE_DATA", str(tmp_path / "typo"))
    with pytest.raises(
        FileNotFoundError, match=r"BPCORE_DATA names .*typo, which is not a folder; correct the path, or unset it to use"
    ):
        bp.datasets.mnist()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"0", lambda b: bytes([b[0] ^ 1]) + b[1:]])
@pytest.mark.parametrize("name", [name for name, _ in SMALL])
def test_no_damaged_file_passes(name, damage, small, tmp_path):
    folder = write(tmp_path / "cache" / "bpcore" / "mnist", small)
    path = folder / f"{name}.gz"
    path.write_bytes(damage(small[path.name]))
    with pytest.raises(ValueError, match=rf"{name}.gz is damaged, or another file: its md5 is .*delete it and fetch it again"):
        bp.datasets.mnist()


def test_another_shape_is_not_taken(small, tmp_path, monkeypatch):
    """Whatever its md5."""
    write(tmp_path / "cache" / "bpcore" / "mnist", small)
    monkeypatch.setattr(datasets, "IMAGES_AND_LABELS", (("train-images-idx3-ubyte", (6, 4, 5)),))
    with pytest.raises(ValueError, match=r"holds uint8 of shape \(6, 5, 4\), expected uint8 of shape \(6, 4, 5\); delete it"):
        bp.datasets.mnist()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, Path("/x/bpcore")),
        ("linux", {}, Path("/home/one/.cache/bpcore")),
        ("darwin", {}, Path("/home/one/Library/Caches/bpcore")),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/bpcore")),
        ("win32", {}, Path("/home/one/AppData/Local/bpcore")),
    ],
)
def test_the_cache_is_where_the_platform_has_it(platform, variables, expected, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/one"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert downloads.cache() == expected


# IDX files


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (3, 0, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_read_idx(dtype, shape, packed, tmp_path):
    array = np.asarray(np.random.default_rng(0).standard_normal(shape) * 50, dtype=dtype)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    got = bp.datasets.read_idx(path)
    assert (got.dtype, got.shape) == (array.dtype, shape)
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array)
    if got.ndim:
        got[...] = 0  # one's own


GOOD = idx(np.arange(6, dtype="uint8").reshape(2, 3))
PACKED = gzip.compress(GOOD * 50)
DAMAGED = {
    "empty": (b"", "is no IDX file: it begins with nothing"),
    "two bytes": (b"\0\0", "is no IDX file: it begins with 00 00;"),
    "text": (b"<html>not found</html>", "is no IDX file: it begins with 3c 68 74 6d"),
    "another type": (b"\0\0\x07" + GOOD[3:], "is no IDX file: it begins with 00 00 07 02"),
    "no sizes": (GOOD[:7], "is no IDX file"),
    "cut off": (GOOD[:-1], r"has 17 bytes where its header, shape \(2, 3\), means 18; delete it and fetch it again"),
    "no numbers": (GOOD[:12], "has 12 bytes where its header"),
    "too long": (GOOD + b"0", "has 19 bytes where its header"),
    "huge": (b"\0\0\x0e\xff" + b"\xff" * 1020, "bytes where its header"),
    "gzip, cut off": (PACKED[:-9], "is a damaged gzip file"),
    "gzip, header only": (PACKED[:5], "is a damaged gzip file"),
    "gzip, a bit": (PACKED[:25] + bytes([PACKED[25] ^ 255]) + PACKED[26:], "is a damaged gzip file"),
    "gzip, its first block": (PACKED[:10] + b"\xff" + PACKED[11:], "is a damaged gzip file"),
    "gzip, its sum": (PACKED[:-5] + bytes([PACKED[-5] ^ 1]) + PACKED[-4:], "is a damaged gzip file .*CRC"),
    "gzip, then something": (PACKED + b"more", "is a damaged gzip file"),
    "gzip of text": (gzip.compress(b"text"), "is no IDX file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_idx_file(name, tmp_path):
    content, message = DAMAGED[name]
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"images.gz .*{message}"):
        bp.datasets.read_idx(path)


# downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by name; what is in `answers` is answered in its own way."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.let_go = files, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        stall, missing = getattr(content, "stall", False), getattr(content, "missing", 0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)
        if stall:
            self.server.let_go.wait(10)

    def log_message(self, *arguments):
        """Nothing."""


class Odd(bytes):
    """Content that lacks `missing` bytes of what was announced, and, where `stall`, does not end."""

    missing, stall = 0, False


@pytest.fixture
def server(small, monkeypatch):
    """A server that has the small files, under the addresses of the real ones."""
    with Server(dict(small)) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        for name in ("MNIST_URL", "FASHION_URL", "SHAKESPEARE_URL"):
            monkeypatch.setattr(datasets, name, server.url)
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()


def left(tmp_path) -> list[str]:
    """The names of the files in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_downloaded_once(server, small, tmp_path):
    check_small(bp.datasets.mnist(), small)
    assert server.asked == [f"{name}.gz" for name, _ in SMALL]
    assert left(tmp_path) == sorted(small)
    path = tmp_path / "cache" / "bpcore" / "mnist" / server.asked[0]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode  # the usual, not a temporary file's
    check_small(bp.datasets.mnist(), small)
    assert len(server.asked) == 4
    path.unlink()
    check_small(bp.datasets.mnist(), small)
    assert server.asked[4:] == [path.name]


def odd(content: bytes, **what) -> Odd:
    content = Odd(content)
    vars(content).update(what)
    return content


IMAGES = "train-images-idx3-ubyte.gz"
FAILS = {
    "not there": (None, OSError, r"could not be downloaded from http.*404.*; fetch it on another machine, and put it there"),
    "another file": (b"<html>sign in</html>", ValueError, f"{IMAGES} gave another file than expected: its md5 is .*, expected"),
    "cut off": (odd(b"half", missing=4), (ValueError, OSError), "gave another file than expected|could not be downloaded"),
    "stalls": (odd(b"half", missing=4, stall=True), OSError, "could not be downloaded from .*timed out"),
    "empty": (b"", ValueError, "gave another file than expected"),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_download_that_fails_leaves_nothing(name, server, small, tmp_path, monkeypatch):
    content, error, message = FAILS[name]
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    server.files[IMAGES] = content
    with pytest.raises(error, match=message):
        bp.datasets.mnist()
    assert left(tmp_path) == []
    server.files[IMAGES] = small[IMAGES]
    check_small(bp.datasets.mnist(), small)


def test_without_a_network(small, tmp_path):
    """The error says where the file goes."""
    message = (
        rf"cache.bpcore.mnist.{IMAGES} does not exist, and could not be downloaded .*mnist/ of the folder that BPCORE_DATA names"
    )
    with pytest.raises(OSError, match=message):
        bp.datasets.mnist()
    assert left(tmp_path) == []


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"does not exist, and could not be downloaded .*fetch it on another machine"):
        bp.datasets.mnist()


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bp.datasets.mnist()
    assert left(tmp_path) == []


# text, and the sets of scikit-learn


def test_tiny_shakespeare(server, tmp_path, monkeypatch):
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
    monkeypatch.setattr(datasets, "SHAKESPEARE_MD5", {"input.txt": md5(text.encode())})
    server.files["input.txt"] = text.encode()
    assert bp.datasets.tiny_shakespeare() == text
    path = tmp_path / "cache" / "bpcore" / "tinyshakespeare" / "input.txt"
    assert bp.datasets.tiny_shakespeare() == text
    assert server.asked == ["input.txt"]
    path.write_bytes(text.encode()[:-1])
    with pytest.raises(ValueError, match=r"input.txt is damaged, or another file"):
        bp.datasets.tiny_shakespeare()


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes"])
def test_bundled(name):
    sklearn = pytest.importorskip("sklearn.datasets")
    X, y = bp.datasets.bundled(name)
    expected, labels = getattr(sklearn, f"load_{name}")(return_X_y=True)
    assert (X.dtype, y.dtype) == (np.float32, np.float32 if name == "diabetes" else np.int64)
    np.testing.assert_allclose(X, expected, rtol=1e-6)
    np.testing.assert_array_equal(y.reshape(-1), labels)
    loss = bp.SquaredError() if name == "diabetes" else bp.CrossEntropy()
    net = bp.Network(bp.Linear(X.shape[1], 1 if name == "diabetes" else int(y.max()) + 1), backend="numpy")
    bp.Trainer(net, loss, bp.SGD(1e-9)).fit((X, y), epochs=1, batch_size=100)


def test_bundled_knows_its_names(monkeypatch):
    with pytest.raises(ValueError, match="there is no bundled set 'mnist': choose one of digits, iris"):
        bp.datasets.bundled("mnist")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(RuntimeError, match="pip install scikit-learn"):
        bp.datasets.bundled("iris")


# the real files, where they are

DATA = os.environ.get("BPCORE_DATA", "")


@pytest.mark.skipif(not Path(DATA, "mnist").is_dir() or not DATA, reason="BPCORE_DATA names no folder with mnist/")
def test_the_real_mnist(tmp_path, monkeypatch):
    """Gzipped and unpacked; the counts of the digits, and the mean that everybody knows."""
    monkeypatch.setenv("BPCORE_DATA", DATA)
    (X, y), (X_test, y_test) = bp.datasets.mnist()
    assert (X.shape, X_test.shape, X.dtype) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1), np.float32)
    assert (X.min(), X.max()) == (0, 1)
    assert X.mean(dtype="float64") == pytest.approx(0.1307, abs=5e-5)
    assert np.bincount(y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    write(tmp_path / "mnist", {path.name: path.read_bytes() for path in Path(DATA, "mnist").glob("*.gz")}, unpacked=True)
    monkeypatch.setenv("BPCORE_DATA", str(tmp_path))
    np.testing.assert_array_equal(bp.datasets.mnist()[0][1], y)


@pytest.mark.skipif(not Path(DATA, "tinyshakespeare").is_dir() or not DATA, reason="BPCORE_DATA names no tinyshakespeare/")
def test_the_real_shakespeare(monkeypatch):
    monkeypatch.setenv("BPCORE_DATA", DATA)
    text = bp.datasets.tiny_shakespeare()
    assert (len(text), len(set(text))) == (1_115_394, 65)
