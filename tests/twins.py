"""How the twins of primitives are found, run, and held against their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import bpcore as bp
from bpcore import primitive
from bpcore.functional.normalization import grouped_shape
from bpcore.primitive import PRIMITIVES

LARGE = 70_000  # numbers: more than two blocks of any twin
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
FLOAT32_ONLY = (
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "elu",
    "gelu",
    "gelu_again",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "attention",
    "attention_backward",
    "clip_factor",
    "matmul",
    "add",
    "subtract",
    "multiply",
    "divide",
    "negative",
    "exp",
    "log",
    "joined",
    "embedding",
    "summation",
)  # twins that serve no other dtype, in one set at least
LARGE_ONLY = ("kernels.cudnn",)  # sets that leave these sizes to others; test_cudnn.py has its own
MANY = "bpcore.kernels.fast.engine.elementwise.MANY"  # tests set it to 0: twins leave smaller arrays to NumPy
SHAPES = {
    "empty": (0, 5),
    "one": (1, 1),
    "a row": (1, 7),
    "a column": (9, 1),
    "odd": (13, 7),
    "wide": (3, LARGE // 3),
    "long": (LARGE // 5, 5),
}


def twins() -> list[tuple[str, str, str]]:
    """(library, set, primitive) of every twin that can be imported here; (library, set, "") for a set that cannot."""
    found = []
    for library, sets in primitive.SETS.items():
        for of in sets:
            if of not in primitive.ALWAYS:
                primitive.load(of)
                found += [(library, of, name) for name, known in PRIMITIVES.items() if of in known.twins] or [(library, of, "")]
    return found


def place(arguments: tuple, backend: bp.Backend) -> list[Any]:
    """The arguments of a primitive, their arrays on the backend."""
    return [backend.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments]


def results(call: Any, arguments: list[Any]) -> list[Any]:
    """What a primitive returns, and then what it leaves in its arguments: outputs that it wrote, inputs that it did not."""
    returned = call(*arguments)
    return [*(returned if isinstance(returned, tuple) else (returned,)), *arguments]


def cancelled(name: str, arguments: Sequence[Any]) -> Any:
    """The size of the terms that cancel in each number of a primitive's first result, on the host; 0 where none do.

    Two numbers less their mean, over their standard deviation, are ±1: in a group of two numbers all of
    γ v - mean(γ v) - ẑ mean(γ v ẑ) cancels but for what ε leaves.
    """
    if name != "group_norm_backward":
        return 0.0
    z, _, scale, gamma, v, *_ = arguments
    w = np.abs(gamma * v).reshape(grouped_shape(z, scale.shape[2]))
    if w.shape[1] * w.shape[3] != 2:
        return 0.0
    return np.broadcast_to(scale * np.max(w, axis=(1, 3), keepdims=True), w.shape).reshape(z.shape)


def assert_close(got: Any, expected: Any, rtol: float, where: str, size: Any = 0.0) -> None:
    """Arrays agree in shape and dtype, and to rtol of the largest entry, or of `size`, a number for each, where that is larger.

    A scalar may be a Python number.
    """
    if hasattr(expected, "dtype"):
        if expected.shape or hasattr(got, "dtype"):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype), where
        largest = np.max(np.abs(expected), initial=0)
        if np.any(size):
            got, expected, largest = got / (largest + size), expected / (largest + size), 1
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * largest, err_msg=where)
    else:
        assert got == expected, where
