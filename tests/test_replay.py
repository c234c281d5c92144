"""Products by our own cuBLAS handle, and steps replayed as graphs, on a GPU; without one, on an emulated CuPy in a process apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bpcore as bp

TESTS = Path(__file__).parent
EMULATED = os.environ.get("BPCORE_EMULATE_CUPY") == "cuda_graphs"


@pytest.fixture
def cupy():
    try:
        bp.get_backend("cupy")
    except RuntimeError as error:
        pytest.skip(str(error))
    import cupy

    return cupy


@pytest.mark.skipif(EMULATED, reason="this is that process")
def test_on_an_emulated_gpu():
    if shutil.which("g++") is None:
        pytest.skip("the emulated CuPy compiles kernels with g++, which is not here")
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "BPCORE_EMULATE_CUPY": "cuda_graphs"}
    command = [sys.executable, "-m", "pytest", "-p", "cuda_graphs", "-q", "-rs", str(TESTS / "test_replay.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


# Products


def operand(rng, shape, dtype, how):
    """A host array of this shape that lies in memory in this way."""
    *batch, rows, columns = shape
    if how == "as it is":
        x = np.empty(shape, dtype)
    elif how == "transposed":
        x = np.empty((*batch, columns, rows), dtype).swapaxes(-1, -2)
    elif how == "window":  # of wider rows
        x = np.empty((*batch, rows, columns + 3), dtype)[..., 1 : columns + 1]
    elif how == "transposed window":
        x = np.empty((*batch, columns, rows + 3), dtype).swapaxes(-1, -2)[..., 2 : rows + 2, :]
    else:  # every other number: cuBLAS cannot be told
        x = np.empty((*batch, rows, 2 * columns), dtype)[..., ::2]
    x[...] = rng.standard_normal(shape)
    return x


HOW = ("as it is", "transposed", "window", "transposed window", "every other")




def views(cupy, rng, shape, dtype, how):
    """The same operand on the host and on the device."""
    host = operand(rng, shape, dtype, how)
    *batch, rows, columns = shape
    if how == "as it is":
        return host, cupy.asarray(np.ascontiguousarray(host))
    if how == "transposed":
        return host, cupy.asarray(np.ascontiguousarray(host.swapaxes(-1, -2))).mT
    wide = np.zeros((*batch, rows, columns + 3), dtype)
    wide[..., 1 : columns + 1] = host
    if how == "window":
        return host, cupy.asarray(wide)[..., 1 : columns + 1]
    if how == "transposed window":
        tall = np.zeros((*batch, columns, rows + 3), dtype)
        tall[..., 2 : rows + 2] = host.swapaxes(-1, -2)
        return host, cupy.asarray(tall).mT[..., 2 : rows + 2, :]
    twice = np.zeros((*batch, rows, 2 * columns), dtype)
    twice[..., ::2] = host
    return host, cupy.asarray(twice)[..., ::2]


TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


def check(a, b, out, host_a, host_b, tolerance, **named):
    from bpcore.kernels.cuda.gemm import gemm

    assert gemm(a, b, out, **named) is out
    expected = host_a.astype(np.float64) @ host_b.astype(np.float64)
    scale = np.abs(host_a.astype(np.float64)) @ np.abs(host_b.astype(np.float64)) + 1e-30
    assert np.max(np.abs(out.get() - expected) / scale, initial=0.0) <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("of_b", HOW)
@pytest.mark.parametrize("of_a", HOW)
def test_gemm_of_all_layouts(cupy, of_a, of_b, dtype):
    rng = np.random.default_rng(0)
    for n, k, m in ((5, 7, 3), (1, 4, 6), (6, 1, 1), (1, 1, 1), (4, 5, 1)):
        (host_a, a), (host_b, b) = views(cupy, rng, (n, k), dtype, of_a), views(cupy, rng, (k, m), dtype, of_b)
        check(a, b, cupy.zeros((n, m), dtype=dtype), host_a, host_b, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("of_b", HOW)
@pytest.mark.parametrize("of_a", HOW)
def test_gemm_of_batches(cupy, of_a, of_b, dtype):
    rng = np.random.default_rng(1)
    n, k, m = 4, 6, 5
    for batch_a, batch_b, batch in (((3,), (3,), (3,)), ((2, 3), (2, 3), (2, 3)), ((3,), (), (3,)), ((), (3,), (3,)), ((1, 3), (2, 1), (2, 3))):
        host_a, a = views(cupy, rng, (*batch_a, n, k), dtype, of_a)
        host_b, b = views(cupy, rng, (*batch_b, k, m), dtype, of_b)
        check(a, b, cupy.zeros((*batch, n, m), dtype=dtype), host_a, host_b, TOLERANCE[dtype])


def test_gemm_of_heads(cupy):
    """q kᵀ of (n, heads, tokens, d), views of (n, tokens, heads, d): two axes of a batch that are none of one stride."""
    rng = np.random.default_rng(2)
    q, k = (rng.standard_normal((2, 5, 3, 4)).astype("float32") for _ in range(2))
    a, b = (cupy.asarray(x) for x in (q, k))
    there = cupy.empty_like(cupy.zeros((2, 3, 5, 5), dtype="float32"))
    from bpcore.backend import namespace

    swap = lambda x: namespace(x).permute_dims(x, (0, 2, 1, 3))  # noqa: E731
    host_a, host_b = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
    check(swap(a), swap(b).mT, there, host_a, host_b.swapaxes(-1, -2), TOLERANCE["float32"])


def test_gemm_writes_to_a_window_and_nowhere_else(cupy):
    rng = np.random.default_rng(3)
    z, v = (rng.standard_normal((8, n)).astype("float32") for n in (4, 3))
    gradient = cupy.zeros(30, dtype="float32")
    check(cupy.asarray(z).T, cupy.asarray(v), gradient[5:17].reshape(4, 3), z.T, v, TOLERANCE["float32"])
    assert not gradient.get()[[*range(5), *range(17, 30)]].any()
    wide = cupy.zeros((4, 10), dtype="float32")
    check(cupy.asarray(z).T, cupy.asarray(v), wide[:, 2:5], z.T, v, TOLERANCE["float32"])
    assert not wide.get()[:, [0, 1, *range(5, 10)]].any()


def test_gemm_of_nothing(cupy):
    from bpcore.kernels.cuda.gemm import gemm

    for n, k, m in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
        out = cupy.asarray(np.ones((n, m), "float32"))
        gemm(cupy.zeros((n, k), dtype="float32"), cupy.zeros((k, m), dtype="float32"), out)
        assert not out.get().any()


def test_gemm_of_half_precision_sums_in_float32(cupy):
    ones = np.ones((1, 4096), "float16")
    out = cupy.zeros((1, 1), dtype="float32")
    check(cupy.asarray(ones), cupy.asarray(ones.T), out, ones, ones.T, 0.0)
    assert out.get()[0, 0] == 4096  # float16 stops at 2048, adding ones


def test_tf32_only_where_asked(cupy):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((64, 64)).astype("float32") for _ in range(2))
    out = cupy.zeros((64, 64), dtype="float32")
    check(cupy.asarray(a), cupy.asarray(b), out, a, b, TOLERANCE["float32"])
    exact = out.get()
    check(cupy.asarray(a), cupy.asarray(b), out, a, b, 1e-3, tf32=True)
    if EMULATED:  # a GPU before Ampere has none
        assert (out.get() != exact).any()


def test_gemm_says_what_does_not_fit(cupy):
    from bpcore.kernels.cuda.gemm import gemm

    x = cupy.zeros((3, 4), dtype="float32")
    with pytest.raises(ValueError, match="the shapes do not fit"):
        gemm(x, x, x)
    with pytest.raises(ValueError, match="rows of contiguous numbers"):
        gemm(x, x.T, cupy.zeros((3, 6), dtype="float32")[:, ::2])


def test_a_status_is_an_error(cupy, monkeypatch):
    from bpcore.kernels.cuda import cublas
    from bpcore.kernels.cuda.gemm import gemm

    monkeypatch.setattr(cublas, "LIBRARY", SimpleNamespace(cublasGemmEx=lambda *args: 15))
    x = cupy.zeros((3, 3), dtype="float32")
    with pytest.raises(RuntimeError, match=r"cublasGemmEx returned CUBLAS_STATUS_NOT_SUPPORTED; run with BPCORE_KERNELS=off"):
        gemm(x, x, cupy.zeros((3, 3), dtype="float32"))


def test_without_cublas_matmul_takes_over(cupy, monkeypatch):
    from bpcore.kernels.cuda import cublas

    monkeypatch.setattr(cublas, "LIBRARY", None)
    a = np.random.default_rng(5).standard_normal((3, 4)).astype("float32")
    check(cupy.asarray(a), cupy.asarray(a.T.copy()), cupy.zeros((3, 3), dtype="float32"), a, a.T, TOLERANCE["float32"])


def test_each_stream_has_its_handle_and_workspace(cupy):
    from bpcore.kernels.cuda import cublas

    stream = cupy.cuda.Stream(non_blocking=True)
    here = cublas.handle()
    with stream:
        there = cublas.handle()
        assert cublas.handle() == there != here
    assert cublas.handle() == here
