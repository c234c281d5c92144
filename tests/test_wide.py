"""Kernels that load 16 bytes at once: at addresses that are multiples of 16 bytes, at others, and for all that is left over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from primitive_cases import TABLE, family
from test_cuda import CUDA, HALF, Rounded, gpu, of_cuda
from twins import TOLERANCE, results

import bpcore as bp
from bpcore import functional
from bpcore.primitive import PRIMITIVES, definition

FAMILIES = (
    "activations", "arithmetic", "batch_normalization", "dropout", "linear", "losses", "normalization", "positions",
    "softmax", "updates",
)  # fmt: skip
NAMES = [name for name in CUDA if name and family(name) in FAMILIES and name not in ("matmul", "keep_mask", "rescale")]
BY_TEAMS = ("losses", "normalization", "softmax")  # a thread's entries, and so the order of a row's sum, depend on the address
STATISTICS = ("mean", "scale", "variance")  # float32 if the others are float16
SHAPES = [(13, 7), (9, 16), (300, 8), (9, 520), (3, 2080), (1, 1)]


def at(backend: bp.Backend, x: np.ndarray, off: int) -> Any:
    """x on the device, `off` numbers after a multiple of 16 bytes."""
    vector = backend.zeros((x.size + 32,), str(x.dtype))
    first = -vector.data.ptr % 16 // x.dtype.itemsize + off
    placed = vector[first : first + x.size].reshape(x.shape)
    placed[...] = backend.asarray(x)
    assert x.size == 0 or (placed.data.ptr - off * x.dtype.itemsize) % 16 == 0
    return placed


def row_of(name: str, row: tuple, dtype: str, backend: bp.Backend, offs: Any) -> list[Any]:
    """The arguments of a primitive, the next array after a multiple of 16 bytes by the next number of offs."""

    def move(parameter: str, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        of = {"float16": "float32"}.get(dtype, dtype) if parameter in STATISTICS else dtype
        return at(backend, x.astype(of) if x.dtype.kind == "f" else x, next(offs))

    return [move(*pair) for pair in zip(PRIMITIVES[name].signature.parameters, row, strict=True)]


def offsets(which: str) -> Any:
    """Endless: 0, or 1, or 1 only once."""
    while True:
        yield int(which == "all" or which == "first")
        which = which if which == "all" else ""


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_address(name, shape, dtype):
    """The results are those of the definition, and the same bits at every address where sums have the same order."""
    backend = gpu()
    if name.startswith("group_norm") and shape[1] > 1000:
        pytest.skip("slow in the emulator")
    twin = of_cuda(name)
    draws = Rounded(*shape, "float32") if dtype == "float16" else Rounded(*shape, dtype)
    exact = family(name) not in BY_TEAMS and name != "summation"
    rtol = HALF if dtype == "float16" else TOLERANCE[dtype]
    for row in TABLE[name](draws):
        if not any(isinstance(x, np.ndarray) for x in row):
            continue
        single = "float32" if dtype == "float16" else dtype
        expected = results(definition(PRIMITIVES[name].call), row_of(name, row, single, backend, offsets("")))
        found = []
        for which in ("", "all", "first"):
            arguments = row_of(name, row, dtype, backend, offsets(which))
            if twin.serves is None or twin.serves(*arguments):
                found.append([backend.to_host(x) for x in results(twin.call, arguments) if hasattr(x, "dtype")])
        for which, got in enumerate(found):
            for i, (one, other, right) in enumerate(
                zip(got, found[0], (backend.to_host(x) for x in expected if hasattr(x, "dtype")), strict=True)
            ):
                assert not exact or one.tobytes() == other.tobytes(), (which, i)
                scale = np.max(np.abs(right.astype("float64")), initial=0)
                np.testing.assert_allclose(one, right, rtol=rtol, atol=rtol * scale + 1e-6 * (dtype == "float16"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 8), (3, 0)])
def test_the_sums_of_what_gelu_passes_back(shape, dtype):
    """dt = B[GELU, t](v), and the sums of its columns, in one pass."""
    backend = gpu()
    from bpcore.kernels.cuda.engine.sums import sum_columns

    draw = Rounded(*shape, "float32" if dtype == "float16" else dtype)
    for off in (0, 1):
        t, v = (at(backend, draw.z().astype(dtype), off) for _ in range(2))
        db, dt = at(backend, np.full(shape[1], np.nan, dtype), off), at(backend, np.full(shape, np.nan, dtype), off)
        sum_columns(v, db, u=t, dt=dt, through="gelu")
        rtol = HALF if dtype == "float16" else TOLERANCE[dtype]
        expected = backend.to_host(functional.gelu_backward(t, v))
        np.testing.assert_array_equal(backend.to_host(dt), expected)
        sums = np.sum(expected.astype("float64"), axis=0)
        size = np.sum(np.abs(expected.astype("float64")), axis=0)
        assert np.all(np.abs(backend.to_host(db) - sums) <= rtol * size + 1e-30), off


def test_gelu_of_every_float16():
    """Within two roundings of the value in float64, its gradient within 1e-6 or one rounding; -0.0, infinities, and NaN too."""
    backend = gpu()
    z = np.arange(2**16, dtype=np.uint16).view(np.float16)
    at_z, ones = backend.asarray(z), backend.asarray(np.ones(2**16, np.float16))
    wide = backend.asarray(z.astype("float64")), backend.asarray(np.ones(2**16))
    with np.errstate(all="ignore"):
        for got, right in (
            (functional.gelu(at_z), definition(functional.gelu)(wide[0])),
            (functional.gelu_backward(at_z, ones), definition(functional.gelu_backward)(*wide)),
        ):
            got, right = backend.to_host(got).astype("float64"), backend.to_host(right)
            finite = np.abs(right) < 65504
            assert np.array_equal(np.isnan(got), np.isnan(right))
            assert np.array_equal(got[~finite], right[~finite].astype("float16").astype("float64"), equal_nan=True)
            assert np.all(np.abs(got - right)[finite] <= 6e-4 * np.abs(right[finite]) + 1.3e-6)


def test_sums_of_many_parts():
    """More parts than one pass of the second kernel's threads takes."""
    backend = gpu()
    from bpcore.kernels.cuda.engine.launch import SUMMING, by_columns
    from bpcore.kernels.cuda.engine.sums import sum_columns

    rows, n = 1400, 136
    assert by_columns(rows, n, "f", SUMMING)[0][1] > 32
    z = np.random.default_rng(0).standard_normal((rows, n)).astype("float32")
    on_device, sums = backend.asarray(z), backend.zeros((n,), "float32")
    sum_columns(on_device, sums)
    mean, variance = functional.batch_statistics(on_device)
    for got, right in ((sums, z.sum(0, "float64")), (mean, z.mean(0, "float64")), (variance, z.var(0, "float64"))):
        np.testing.assert_allclose(backend.to_host(got), right, rtol=1e-5, atol=1e-5)
