"""Data sets by name, as host arrays: from files that downloads.py finds or downloads, or from scikit-learn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bpcore.arguments import show
from bpcore.downloads import find
from bpcore.packages import imported, pip

Pairs = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # ((X_train, y_train), (X_test, y_test))

IMAGES_AND_LABELS = (
    ("train-images-idx3-ubyte", (60_000, 28, 28)),
    ("train-labels-idx1-ubyte", (60_000,)),
    ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    ("t10k-labels-idx1-ubyte", (10_000,)),
)
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MD5 = {  # of the gzipped files: no md5 of the unpacked files is published
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
SHAKESPEARE_MD5 = {"input.txt": "6fb458f1232090904fb40fe944165e91"}

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def mnist() -> Pairs:
    """Handwritten digits: ((X_train, y_train), (X_test, y_test)) of 60,000 and 10,000.

    X (n, 28, 28, 1), float32 from 0 to 1; y (n,), int64, the digit. Reads IDX files, gzipped or not, in the folder mnist/. Raises
    ValueError for a damaged file, and OSError for a file that is neither found nor downloadable.

    LeCun, Cortes and Burges
    """
    return images_and_labels("mnist", MNIST_MD5, MNIST_URL)


def fashion_mnist() -> Pairs:
    """Articles of clothing, shaped and split like `mnist`.

    Reads gzipped IDX files in the folder fashion-mnist/. Raises the errors of `mnist`.

    Xiao, Rasul and Vollgraf, 2017
    """
    return images_and_labels("fashion-mnist", FASHION_MD5, FASHION_URL)


def tiny_shakespeare() -> str:
    """Shakespeare's plays in one text of 1,115,394 characters, 65 of them distinct.

    Reads input.txt in the folder tinyshakespeare/. Raises the errors of `mnist`.

    Karpathy's char-rnn
    """
    return find("tinyshakespeare", "input.txt", SHAKESPEARE_MD5, SHAKESPEARE_URL).read_text(encoding="utf-8")


def bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(X, y) of a data set that comes with scikit-learn: "digits", "iris", "wine", "breast_cancer", or "diabetes", a regression.

    X (n, features), float32, in scikit-learn's units; y (n,), int64, or for a regression (n, 1), float32.
    """
    names = ("digits", "iris", "wine", "breast_cancer", "diabetes")
    if name not in names:
        raise ValueError(f"there is no bundled set {show(name)}: choose one of {', '.join(names)}")
    datasets = imported("sklearn.datasets", "the bundled sets need scikit-learn", pip("scikit-learn"))
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return X.astype("float32"), y.astype("float32")[:, None] if name == "diabetes" else y.astype("int64")


def images_and_labels(folder: str, md5: Mapping[str, str], url: str) -> Pairs:
    """((X_train, y_train), (X_test, y_test)) from four IDX files with MNIST's names and shapes."""
    arrays = []
    for name, shape in IMAGES_AND_LABELS:
        path = find(folder, name, md5, url)
        array = read_idx(path)
        if array.shape != shape or array.dtype != np.uint8:
            got = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{path} holds {got}, expected uint8 of shape {shape}; delete it and fetch it again")
        arrays.append(np.multiply(array[..., None], 1 / 255, dtype="float32") if len(shape) == 3 else array.astype("int64"))
    X_train, y_train, X_test, y_test = arrays
    return (X_train, y_train), (X_test, y_test)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzipped or not. Raises ValueError if the file is damaged or of another format.

    The format: two zero bytes, the type, the number of axes; the length of each axis in 4 bytes; the numbers; all big-endian.
    """
    import gzip
    import zlib

    content = Path(path).read_bytes()
    repair = "delete it and fetch it again"
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); {repair}") from error
    start = 4 + 4 * content[3] if len(content) >= 4 else 4
    if content[:2] != b"\0\0" or len(content) < start or content[2] not in IDX_TYPES:
        raise ValueError(f"{path} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}; {repair}")
    dtype = np.dtype(IDX_TYPES[content[2]])
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes where its header, shape {shape}, means {expected}; {repair}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
