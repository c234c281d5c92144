"""Products by our own cuBLAS handle, and steps replayed, on a GPU; without one, on an emulated CuPy in a process apart."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import environment
from emulator import cupy as emulator

import bpcore as bp
import bpcore.recordings
from bpcore.array import namespace
from bpcore.context import computing_in
from bpcore.streams import HostCopies

TESTS = Path(__file__).parent
pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: nothing is recorded")
SWITCH = "BPCORE_EMULATE_GRAPHS"  # emulator.graphs takes CuPy's place
EMULATED = SWITCH in os.environ


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
    if why := emulator.why_not():
        pytest.skip(why)
    command = [sys.executable, "-m", "pytest", "-p", "emulator.graphs", "-q", "-rs", str(TESTS / "test_replay.py")]
    done = subprocess.run(command, env=environment(**{SWITCH: "1"}), capture_output=True, text=True, cwd=TESTS.parent)
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


def turned(x):
    """x with its last two axes exchanged, a view."""
    return namespace(x).matrix_transpose(x)


def views(cupy, rng, shape, dtype, how):
    """The same operand on the host and on the device."""
    host = operand(rng, shape, dtype, how)
    *batch, rows, columns = shape
    if how == "as it is":
        return host, cupy.asarray(np.ascontiguousarray(host))
    if how == "transposed":
        return host, turned(cupy.asarray(np.ascontiguousarray(host.swapaxes(-1, -2))))
    wide = np.zeros((*batch, rows, columns + 3), dtype)
    wide[..., 1 : columns + 1] = host
    if how == "window":
        return host, cupy.asarray(wide)[..., 1 : columns + 1]
    if how == "transposed window":
        tall = np.zeros((*batch, columns, rows + 3), dtype)
        tall[..., 2 : rows + 2] = host.swapaxes(-1, -2)
        return host, turned(cupy.asarray(tall))[..., 2 : rows + 2, :]
    twice = np.zeros((*batch, rows, 2 * columns), dtype)
    twice[..., ::2] = host
    return host, cupy.asarray(twice)[..., ::2]


TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "float64": 1e-14}


def check(a, b, out, host_a, host_b, tolerance):
    from bpcore.kernels.cuda.engine.gemm import gemm

    assert gemm(a, b, out) is out
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
    for batch_a, batch_b, batch in (
        ((3,), (3,), (3,)),
        ((2, 3), (2, 3), (2, 3)),
        ((3,), (), (3,)),
        ((), (3,), (3,)),
        ((1, 3), (2, 1), (2, 3)),
    ):
        host_a, a = views(cupy, rng, (*batch_a, n, k), dtype, of_a)
        host_b, b = views(cupy, rng, (*batch_b, k, m), dtype, of_b)
        check(a, b, cupy.zeros((*batch, n, m), dtype=dtype), host_a, host_b, TOLERANCE[dtype])


def test_gemm_of_heads(cupy):
    """q kᵀ of (n, heads, tokens, d), views of (n, tokens, heads, d): two axes of a batch that are none of one stride."""
    rng = np.random.default_rng(2)
    q, k = (rng.standard_normal((2, 5, 3, 4)).astype("float32") for _ in range(2))
    a, b = (cupy.asarray(x) for x in (q, k))
    there = cupy.empty_like(cupy.zeros((2, 3, 5, 5), dtype="float32"))
    swap = lambda x: namespace(x).permute_dims(x, (0, 2, 1, 3))  # noqa: E731
    host_a, host_b = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
    check(swap(a), turned(swap(b)), there, host_a, host_b.swapaxes(-1, -2), TOLERANCE["float32"])


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
    from bpcore.kernels.cuda.engine.gemm import gemm

    for n, k, m in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
        out = cupy.asarray(np.ones((n, m), "float32"))
        gemm(cupy.zeros((n, k), dtype="float32"), cupy.zeros((k, m), dtype="float32"), out)
        assert not out.get().any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gemm_of_half_precision_sums_in_float32(cupy, dtype):
    ones = np.ones((1, 4096), dtype)
    out = cupy.zeros((1, 1), dtype="float32")
    check(cupy.asarray(ones), cupy.asarray(ones.T), out, ones, ones.T, 0.0)
    assert out.get()[0, 0] == 4096  # float16 stops at 2048, adding ones, and bfloat16 at 256


def test_tf32_only_where_asked(cupy):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((64, 64)).astype("float32") for _ in range(2))
    out = cupy.zeros((64, 64), dtype="float32")
    check(cupy.asarray(a), cupy.asarray(b), out, a, b, TOLERANCE["float32"])
    exact = out.get()
    with computing_in("tf32"):
        check(cupy.asarray(a), cupy.asarray(b), out, a, b, 1e-3)
    if EMULATED:  # a GPU before Ampere has none
        assert (out.get() != exact).any()


def test_gemm_says_what_does_not_fit(cupy):
    from bpcore.kernels.cuda.engine.gemm import gemm

    x = cupy.zeros((3, 4), dtype="float32")
    with pytest.raises(ValueError, match="the shapes do not fit"):
        gemm(x, x, x)
    with pytest.raises(ValueError, match="rows of contiguous numbers"):
        gemm(x, x.T, cupy.zeros((3, 6), dtype="float32")[:, ::2])


def test_a_status_is_an_error(cupy, monkeypatch):
    from bpcore.kernels.cuda.engine import cublas
    from bpcore.kernels.cuda.engine.gemm import gemm

    monkeypatch.setattr(cublas, "LIBRARY", SimpleNamespace(cublasGemmEx=lambda *args: 15))
    x = cupy.zeros((3, 3), dtype="float32")
    with pytest.raises(RuntimeError, match=r"cublasGemmEx returned CUBLAS_STATUS_NOT_SUPPORTED; run with BPCORE_KERNELS=off"):
        gemm(x, x, cupy.zeros((3, 3), dtype="float32"))


def test_without_cublas_matmul_takes_over(cupy, monkeypatch):
    from bpcore.kernels.cuda.engine import cublas

    monkeypatch.setattr(cublas, "LIBRARY", None)
    a = np.random.default_rng(5).standard_normal((3, 4)).astype("float32")
    check(cupy.asarray(a), cupy.asarray(a.T.copy()), cupy.zeros((3, 3), dtype="float32"), a, a.T, TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("of_b", HOW[:4])
@pytest.mark.parametrize("of_a", HOW[:4])
def test_a_bias_comes_with_the_product(cupy, of_a, of_b, dtype):
    """By one call of cublasLt, which rounds once; of rows that lie apart, and of a bias that begins anywhere."""
    from bpcore.kernels.cuda.engine import cublaslt

    rng = np.random.default_rng(3)
    (host_a, a), (host_b, b) = views(cupy, rng, (33, 24), dtype, of_a), views(cupy, rng, (24, 40), dtype, of_b)
    host_bias = rng.standard_normal(41).astype(dtype)
    out = cupy.zeros((33, 40), dtype=dtype)
    for start in (0, 1):
        row = host_bias[start : start + 40].astype(np.float64)
        for compute, tolerance in ((dtype, TOLERANCE[dtype]), ("tf32", 2e-3)):
            with computing_in(compute):
                assert cublaslt.affine(a, b, out, cupy.asarray(host_bias)[start : start + 40])
            expected = host_a.astype(np.float64) @ host_b.astype(np.float64) + row
            scale = np.abs(host_a.astype(np.float64)) @ np.abs(host_b.astype(np.float64)) + np.abs(row)
            assert np.max(np.abs(out.get() - expected) / scale) <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", HOW)
def test_a_product_and_a_sum(cupy, how, bias, dtype, monkeypatch):
    """By the same call of cublasLt where it adds a bias, also to an array that begins anywhere; nothing else is written."""
    from bpcore.kernels.cuda.engine import cublaslt

    rng, n = np.random.default_rng(4), 40
    (host_z, z), (host_W, W) = (views(cupy, rng, shape, dtype, "as it is") for shape in ((33, 24), (24, n)))
    host_b, b = views(cupy, rng, (1, n), dtype, "as it is")
    host_x, x = views(cupy, rng, (33, n), dtype, how)
    odd = cupy.zeros(33 * n + 1, dtype=dtype)[1:].reshape(33, n)
    odd[...] = x
    exact = host_z.astype(np.float64) @ host_W.astype(np.float64) + host_x + (host_b if bias else 0.0)
    for library in (cublaslt.LIBRARY, None):
        monkeypatch.setattr(cublaslt, "LIBRARY", library)
        for at in (x, odd):
            if EMULATED:
                from emulator.cublaslt import calls

                calls.clear()
            u = bp.functional.linear_add(z, W, b[0] if bias else None, at)
            assert np.max(np.abs(u.get().astype(np.float64) - exact)) <= 2 * TOLERANCE[dtype] * np.max(np.abs(exact)) + 1e-13
            assert np.array_equal(at.get(), host_x)
            dense = at is odd or how == "as it is"
            if EMULATED and library is not None and bias and dense and dtype != "float64":
                assert [call["beta"] for call in calls] == [1.0]


def test_what_has_no_bias_in_its_product(cupy, monkeypatch):
    """float64, no rows, and columns that lie apart: a kernel adds the bias; so it does without cublasLt."""
    from bpcore.kernels.cuda.engine import cublaslt

    one = cupy.asarray(np.ones((4, 4)))
    single = one.astype("float32")
    assert not cublaslt.affine(one, one, cupy.zeros((4, 4), dtype="float64"), one[0])
    assert not cublaslt.affine(single[:0], single, cupy.zeros((0, 4), dtype="float32"), single[0])
    assert not cublaslt.affine(single, single[:, ::2], cupy.zeros((4, 2), dtype="float32"), single[0, :2])
    monkeypatch.setattr(cublaslt, "LIBRARY", None)
    for x in (one, single):
        assert bp.functional.linear(x, x, x[0]).get().tolist() == [[5.0] * 4] * 4


def test_plans_of_products_are_bounded(cupy, monkeypatch):
    from bpcore.kernels.cuda.engine import cublaslt

    monkeypatch.setattr(cublaslt, "PLANS", {})
    monkeypatch.setattr(cublaslt, "MOST", 3)
    for n in (1, 2, 3, 4, 5, 1):
        x = cupy.asarray(np.ones((n, 4), "float32"))
        assert bp.functional.linear(x, cupy.asarray(np.ones((4, 4), "float32")), x[0]).get().tolist() == [[5.0] * 4] * n
        assert 1 <= len(cublaslt.PLANS) <= 3


def test_each_stream_has_its_handle_and_workspace(cupy):
    from bpcore.kernels.cuda.engine import cublas

    stream = cupy.cuda.Stream(non_blocking=True)
    here = cublas.handle()
    with stream:
        there = cublas.handle()
        assert cublas.handle() == there != here
    assert cublas.handle() == here


# Steps


def classes(rng, n, features=12, k=5):
    return rng.standard_normal((n, features)).astype("float32"), rng.integers(0, k, n)


def mlp():
    return bp.Sequential(bp.Linear(12, 16), bp.ReLU(), bp.Dropout(0.3), bp.Linear(16, 5))


def normalised():
    return bp.Sequential(bp.Linear(12, 16), bp.BatchNorm(16), bp.GELU(), bp.Linear(16, 16), bp.LayerNorm(16), bp.Linear(16, 5))


CASES = {
    "dropout, clip, AdamW": (
        mlp,
        {"optimizer": bp.AdamW(1e-2), "clip_norm": 0.5, "schedule": bp.schedules.Cosine(50, 0.1)},
        False,
    ),
    "weights, BatchNorm, SGD": (normalised, {"optimizer": bp.SGD(0.1, momentum=0.9, weight_decay=1e-3)}, True),
    "micro-batches, Adam": (mlp, {"optimizer": bp.Adam(1e-2), "accumulate": 2, "clip_norm": 1.0}, True),
    "RMSProp": (normalised, {"optimizer": bp.RMSProp(1e-3, weight_decay=1e-3), "schedule": bp.schedules.WarmUp(9)}, False),
    "Lion": (mlp, {"optimizer": bp.Lion(1e-3, weight_decay=0.1)}, False),
    "Adagrad": (mlp, {"optimizer": bp.Adagrad(1e-2)}, True),
}


def trained(case, replay, steps=50, between=lambda trainer, step: None, dtype="float32"):
    """A trainer after some steps on batches of 16, each fourth of 9, and the J of all steps on the host."""
    module, named, weighted = CASES[case]
    run = bp.Trainer(bp.Network(module(), backend="cupy", dtype=dtype, seed=1), bp.CrossEntropy(), seed=2, replay=replay, **named)
    rng, J = np.random.default_rng(7), []
    for step in range(steps):
        n = 9 if step % 4 == 3 else 16
        X, y = classes(rng, n)
        J.append(run.step(X.astype(dtype), y, rng.random(n) if weighted else None))
        between(run, step)
    return run, [float(x.get()) for x in J]


def state(run):
    """All that steps write, on the host."""
    return {"theta": run.network.theta.get(), **{name: vector.get() for name, vector in run.moments.items()}}


def expect_same(one, other):
    for name, array in state(one).items():
        assert np.array_equal(array, state(other)[name], equal_nan=True), name


def recorded(run):
    """How many of a trainer's shapes are recorded."""
    return sum(recording.recorded for recording in run._replay.recordings.known.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_same_bit_for_bit(cupy, case, dtype):
    (eager, expected), (replayed, J) = (trained(case, replay, dtype=dtype) for replay in (False, True))
    assert recorded(replayed) == 2
    assert len(set(J)) > 40
    assert expected == J
    expect_same(replayed, eager)
    if EMULATED:
        launches = sorted(recording.graph.graph.launches for recording in replayed._replay.recordings.known.values())
        assert launches == [12 - 5, 38 - 5]  # all but those before the graph is settled


def images(rng):
    return rng.standard_normal((8, 8, 8, 2)).astype("float32"), rng.integers(0, 3, 8)


def sequences(rng):
    return rng.standard_normal((8, 5, 4)).astype("float32"), rng.integers(0, 3, 8)


def tokens(rng):
    x = rng.integers(0, 11, (8, 7))
    return x[:, :-1], x[:, 1:]


FAMILIES = {
    "convolution": (images, lambda: [bp.Conv2d(2, 4, 3), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten(), bp.Linear(36, 3)]),
    "groups": (
        images,
        lambda: [bp.Conv2d(2, 4, 3, groups=2), bp.GroupNorm(2, 4), bp.Dropout2d(0.3), bp.GlobalAvgPool(), bp.Linear(4, 3)],
    ),
    "transposed": (images, lambda: [bp.ConvTranspose2d(2, 4, 2), bp.AvgPool2d(2), bp.GlobalAvgPool(), bp.Linear(4, 3)]),
    "LSTM": (sequences, lambda: [bp.LSTM(4, 6), bp.Flatten(), bp.Linear(30, 3)]),
    "transformer": (tokens, lambda: [bp.Embedding(11, 8), bp.TransformerBlock(8, 2, causal=True, dropout=0.1), bp.Linear(8, 11)]),
    "GRU": (sequences, lambda: [bp.GRU(4, 6), bp.Flatten(), bp.Linear(30, 3)]),
    "containers": (
        sequences,
        lambda: [bp.Recompute(bp.Linear(4, 6)), bp.Residual(bp.Linear(6, 6)), bp.RMSNorm(6), bp.Flatten(), bp.Linear(30, 3)],
    ),
    "shared embedding": (tokens, lambda: shared()),
}


def shared():
    embedding = bp.Embedding(11, 8)
    return [embedding, bp.Linear(8, 8), bp.Tanh(), bp.Unembed(embedding)]


@pytest.mark.parametrize("compute", [None, "float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_modules(cupy, family, compute):
    data, modules = FAMILIES[family]
    runs, losses = [], []
    for replay in (False, True):
        rng = np.random.default_rng(11)
        net = bp.Network(bp.Sequential(*modules()), backend="cupy", seed=1, compute_dtype=compute)
        run = bp.Trainer(net, bp.CrossEntropy(), bp.AdamW(1e-2), clip_norm=1.0, seed=2, replay=replay)
        losses.append([float(run.step(*data(rng)).get()) for _ in range(9)])
        runs.append(run)
    assert recorded(runs[1]) == 1
    assert losses[0] == losses[1]
    expect_same(*runs)


def test_other_work_between_steps_changes_nothing(cupy):
    """Evaluations, gradients elsewhere, and memory that is taken, written and given back: a graph's own is not lent again."""

    def disturb(run, step):
        net = run.network
        X, y = classes(np.random.default_rng(step), 16)
        net(X)
        net.value_and_gradient(bp.CrossEntropy(), X, y)
        for n in (64, 256, 4096, 16384):
            junk = net.backend.zeros(n, "float32")
            junk[...] = float("nan")
        if step == 20:
            cupy.get_default_memory_pool().free_all_blocks()
            pools = [recording.graph.pool for recording in run._replay.recordings.known.values()]
            sizes[:] = [(pool, pool.total_bytes()) for pool in pools]

    sizes = []
    case = "dropout, clip, AdamW"
    replayed, J = trained(case, True, between=disturb)
    eager, expected = trained(case, False)
    assert expected == J
    expect_same(replayed, eager)
    assert len(sizes) == 2
    assert all(pool.total_bytes() == size > 0 for pool, size in sizes)


def test_nothing_is_taken_from_a_graph_s_pool_once_it_is_recorded(cupy):
    def watch(run, step):
        for recording in run._replay.recordings.known.values():
            if recording.recorded and recording not in watched:
                watched.append(recording)
                before.append(recording.graph.pool.free_bytes())
        assert [recording.graph.pool.free_bytes() for recording in watched] == before

    watched, before = [], []
    trained("dropout, clip, AdamW", True, between=watch)
    assert len(watched) == 2


def fitted(path, replay, epochs, resume=False):
    rng = np.random.default_rng(3)
    train, held_out = classes(rng, 75), classes(rng, 30)
    run = bp.Trainer(
        bp.Network(mlp(), backend="cupy", seed=1), bp.CrossEntropy(), bp.AdamW(1e-2), bp.schedules.Cosine(40), ["accuracy"], 1.0,
        seed=5, replay=replay,
    )  # fmt: skip
    if resume:
        run.resume(path)
    run.fit(train, held_out, epochs=epochs, batch_size=16)
    if path is not None and not resume:
        run.save(path)
    return run


def test_fit_and_resume_are_the_same_bit_for_bit(cupy, tmp_path):
    whole = fitted(None, False, 6)
    fitted(tmp_path / "at_4", True, 4)
    resumed, unbroken = fitted(tmp_path / "at_4", True, 6, resume=True), fitted(None, True, 6)
    assert recorded(unbroken) == 2
    for run in (resumed, unbroken):
        expect_same(run, whole)
        for one, other in zip(run.history.records, whole.history.records, strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_loss_that_is_not_finite_leads_back_to_the_same(cupy):
    stories, runs = [], []
    for replay in (False, True):
        run = bp.Trainer(bp.Network(mlp(), backend="cupy", seed=1), bp.CrossEntropy(), bp.Adam(1e-2), seed=2, replay=replay)
        rng = np.random.default_rng(0)
        X, y = classes(rng, 16)
        for step in range(130):
            run.step(X * (float("inf") if step == 120 else 1.0), y)
            if run.guard.candidate is not None and step < 120:
                run.guard.look_back()
        with pytest.raises(bp.NonFiniteLoss) as raised:
            run.guard.look_back()
        stories.append(str(raised.value))
        runs.append(run)
    assert runs[0].steps == runs[1].steps == 100
    assert stories[0] == stories[1]
    expect_same(*runs)
    assert np.isfinite(runs[0].network.theta.get()).all()


@pytest.mark.parametrize("replay", [False, True])
def test_snapshots_are_in_the_memory_of_the_host(cupy, replay):
    """Two sets in turn: the last good one stays as it is, also while a later one is made."""
    run = bp.Trainer(bp.Network(mlp(), backend="cupy", seed=1), bp.CrossEntropy(), bp.Adam(1e-2), seed=2, replay=replay)
    X, y = classes(np.random.default_rng(0), 16)
    thetas = []
    for step in range(301):
        if step % 100 == 0:
            thetas.append(run.network.theta.get())
        run.step(X, y)
        if step in (100, 200):
            run.guard.look_back()
            assert run.guard.candidate is None
        if step % 100 == 0:
            for snapshot, theta in ((run.guard.snapshot, thetas[step // 100 - (step == 300)]), (run.guard.candidate, thetas[-1])):
                if snapshot is not None:
                    assert all(type(vector) is np.ndarray for vector in snapshot.vectors.values())
                    np.testing.assert_array_equal(snapshot.vectors["theta"], theta)
    assert run.guard.snapshot.steps == 200
    assert run.guard.candidate.steps == 300
    assert len(run.guard.host_copies.sets) == 2


def test_the_update_waits_for_the_copies(cupy, monkeypatch):
    """The stand-in notices where it does not."""
    if cupy.__version__ != emulator.VERSION:
        pytest.skip("a GPU does not notice")
    monkeypatch.setattr(HostCopies, "settle", lambda self: None)
    run = bp.Trainer(bp.Network(mlp(), backend="cupy", seed=1), bp.CrossEntropy(), bp.Adam(1e-2), seed=2)
    with pytest.raises(RuntimeError, match="does not wait for stream"):
        run.step(*classes(np.random.default_rng(0), 16))


def test_labels_are_looked_at_in_replayed_steps(cupy):
    run, _ = trained("dropout, clip, AdamW", True, 28)
    before, steps = state(run), run.steps
    X, y = classes(np.random.default_rng(0), 16)
    with pytest.raises(ValueError, match="class indices 0 to 4 for 5 outputs, got values from 0 to 9"):
        run.step(X, y * 0 + np.arange(16) % 10)
    with pytest.raises(ValueError, match="expected features 12 in the last axis"):
        run.step(X[:, :7], y)
    assert run.steps == steps
    assert all(np.array_equal(before[name], array) for name, array in state(run).items())
    run.step(X, y)
    assert recorded(run) == 2  # the data were to blame, and replay goes on


def test_more_shapes_than_recordings(cupy, monkeypatch):
    monkeypatch.setattr(bpcore.recordings, "RECORDINGS", 1)
    (replayed, J), (eager, expected) = (trained("dropout, clip, AdamW", replay) for replay in (True, False))
    assert recorded(replayed) == 1
    assert expected == J
    expect_same(replayed, eager)


# Where a step cannot be recorded


class Looks(bp.Module):
    """u = z, and somebody looks at a value on the way."""

    def forward(self, theta, z, mode):
        bp.backend_of(z).to_host(z)
        return z, None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


class Draws(bp.Module):
    """u = z ⊙ something that the host makes."""

    def forward(self, theta, z, mode):
        scale = bp.backend_of(z).asarray(np.linspace(0.5, 1.5, z.shape[-1], dtype="float32"))
        return z * scale, scale

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v * saved


class Own(bp.Adam):
    """Adam, with an update of its own."""

    def update(self, *args):
        super().update(*args)


UNFIT = {
    "looks": (Looks, bp.Adam(1e-2), "each step looks at a value on the device"),
    "draws": (Draws, bp.Adam(1e-2), "each step moves data of the host to the device"),
    "own update": (bp.Identity, Own(1e-2), "Own has an update of its own"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_recorded_runs_as_it_is(cupy, case):
    module, optimizer, why = UNFIT[case]

    def run(replay):
        net = bp.Network(bp.Sequential(bp.Linear(12, 16), module(), bp.Linear(16, 5)), backend="cupy", seed=1)
        trainer = bp.Trainer(net, bp.CrossEntropy(), optimizer, seed=2, replay=replay)
        rng = np.random.default_rng(7)
        J = [trainer.step(*classes(rng, 16)) for _ in range(10)]
        return trainer, [float(x.get()) for x in J]

    with pytest.warns(RuntimeWarning, match=f"replay=True does nothing: .*{why}") as warned:
        replayed, J = run(True)
    assert len(warned) == 1
    eager, expected = run(False)
    assert expected == J
    expect_same(replayed, eager)


@pytest.mark.parametrize("setting", ["off", "verify"])
def test_settings_of_kernels_that_cannot_be_recorded(cupy, monkeypatch, setting):
    monkeypatch.setattr(bpcore.recordings, "SETTING", setting)
    with pytest.warns(RuntimeWarning, match=f"replay=True does nothing: BPCORE_KERNELS={setting}"):
        trained("dropout, clip, AdamW", True, 3)


def test_a_backend_that_records_nothing():
    X, y = classes(np.random.default_rng(0), 16)
    runs = []
    for replay in (False, True):
        net = bp.Network(mlp(), backend="numpy", seed=1)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            runs.append(bp.Trainer(net, bp.CrossEntropy(), bp.Adam(1e-2), replay=replay))
        assert [str(w.message).partition("; ")[0] for w in warned] == [
            "replay=True does nothing: backend 'numpy' records nothing"
        ] * replay
        for _ in range(3):
            runs[-1].step(X, y)
    assert np.array_equal(runs[0].network.theta, runs[1].network.theta)


# What a recording holds


def expect_replayed_same(change, steps=40, make=mlp, every=1, recorded_after=1, **named):
    """Runs with a change in the middle, replayed and not, are equal; the change is a function of (trainer, step)."""
    runs, losses = [], []
    for replay in (False, "auto"):
        compute = named.get("compute_dtype")
        net = bp.Network(make(), backend="cupy", seed=1, compute_dtype=compute)
        run = bp.Trainer(net, bp.CrossEntropy(), bp.AdamW(1e-2), clip_norm=0.5, seed=2, replay=replay)
        rng, J = np.random.default_rng(7), []
        for step in range(steps):
            change(run, step)
            J.append(run.step(*classes(rng, 16)))
        losses.append([float(x.get()) for x in J])
        runs.append(run)
    assert losses[0] == losses[1]
    expect_same(*runs)
    assert recorded(runs[1]) == recorded_after
    return runs[1]


def at(when, what):
    return lambda run, step: what(run) if step == when else None


class Scaled(bp.Module):
    """u = scale z, with scale an attribute."""

    def __init__(self, scale):
        self.scale = scale

    def forward(self, theta, z, mode):
        return z * self.scale, self.scale

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v * saved


def assign(name, value):
    return lambda run: setattr(run, name, value)


CHANGES = {
    "loss": assign("loss", bp.CrossEntropy(smoothing=0.3)),
    "attribute of the loss": lambda run: setattr(run.loss, "smoothing", 0.3),
    "clip_norm": assign("clip_norm", 0.01),
    "no clip": assign("clip_norm", None),
    "accumulate": assign("accumulate", 4),
    "seed": assign("seed", 9),
    "betas": assign("optimizer", bp.AdamW(1e-2, betas=(0.5, 0.6))),
    "weight decay": assign("optimizer", bp.AdamW(1e-2, weight_decay=0.5)),
    "attribute of a module": lambda run: setattr(run.network.module.children["2"], "p", 0.6),
    "θ in place": lambda run: run.network.theta.__setitem__(..., run.network.theta * 0.5),
    "a moment in place": lambda run: run.moments["m"].__setitem__(..., run.moments["m"] * 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_the_middle_is_seen(cupy, name):
    expect_replayed_same(at(20, CHANGES[name]))


def test_an_attribute_of_a_module_of_one_s_own(cupy):
    def make():
        return bp.Sequential(bp.Linear(12, 16), Scaled(1.0), bp.ReLU(), bp.Linear(16, 5))

    expect_replayed_same(at(20, lambda run: setattr(run.network.module.children["1"], "scale", 0.25)), make=make)
    anneal = lambda run, step: setattr(run.network.module.children["1"], "scale", 1 / (1 + step))  # noqa: E731
    expect_replayed_same(anneal, make=make, recorded_after=0)


class Counted(bp.Identity):
    """u = z, and an attribute that says how often."""

    def forward(self, theta, z, mode):
        self.times = getattr(self, "times", 0) + 1
        return z, None


def test_a_module_that_changes_itself_is_not_recorded(cupy):
    def make():
        return bp.Sequential(bp.Linear(12, 16), Counted(), bp.Linear(16, 5))

    run = expect_replayed_same(lambda run, step: None, make=make, recorded_after=0)
    assert run.network.module.children["1"].times == 40


def test_the_scaling_s_interval(cupy):
    change = at(20, lambda run: setattr(run.scaling, "interval", 2))
    run = expect_replayed_same(change, compute_dtype="float16")
    assert float(run.scaling.S.get()) > 2**17


def test_the_learning_rate_is_no_part_of_a_recording(cupy):
    recordings = []

    def change(run, step):
        run.optimizer = bp.AdamW(1e-2 / (1 + step))
        if run._replay is not None and step > 10:
            recordings.extend(run._replay.recordings.known.values())

    expect_replayed_same(change)
    assert len(set(recordings)) == 1


def test_tf32_of_the_thread_is_seen(cupy):
    runs = []
    for replay in (False, True):
        run = bp.Trainer(bp.Network(mlp(), backend="cupy", seed=1), bp.CrossEntropy(), bp.AdamW(1e-2), replay=replay)
        rng = np.random.default_rng(7)
        for step in range(30):
            with computing_in("tf32" if step >= 15 else "float32"):
                run.step(*classes(rng, 16))
        runs.append(run)
    expect_same(*runs)


def test_a_parameter_frozen_later_is_the_same_error(cupy):
    run, _ = trained("dropout, clip, AdamW", True, 28)
    run.network(np.zeros((4, 12), "float32"))
    run.network.module.children["0"].parameters["W"].trained = False
    X, y = classes(np.random.default_rng(0), 16)
    for call in (lambda: run.step(X, y), lambda: run.network(X)):
        with pytest.raises(ValueError, match="was changed after this network was made"):
            call()


def test_gradients_elsewhere_leave_a_recording_its_memory(cupy):
    """A recorded step writes ∇J in float16, and a spare vector: other vectors take their place in the network, not in memory."""
    runs, losses = [], []
    for replay in (False, True):
        rng = np.random.default_rng(11)
        net = bp.Network(bp.Sequential(*shared()), backend="cupy", seed=1, compute_dtype="float16")
        run = bp.Trainer(net, bp.CrossEntropy(), bp.AdamW(1e-2), seed=2, replay=replay)
        J, other = [], []
        for step in range(16):
            J.append(run.step(*tokens(rng)))
            if step > 8:
                out = net.backend.zeros(net.n_parameters, "float32")
                net.value_and_gradient(bp.CrossEntropy(), *tokens(rng), out=out)
                other.append(net.backend.zeros(net.n_parameters, "float16") + 7)
        losses.append([float(x.get()) for x in J])
        assert all((x.get() == 7).all() for x in other)
        runs.append(run)
    assert losses[0] == losses[1]
    expect_same(*runs)


# Evaluation


def recordings_of(net):
    return [] if net._recordings is None else [r for r in net._recordings.known.values() if r.recorded]


def host(u):
    return [x.get() for x in (u if isinstance(u, tuple) else (u,))]


@pytest.mark.parametrize("compute", [None, "float16", "tf32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_evaluations_are_the_same_bit_for_bit(cupy, family, compute):
    data, modules = FAMILIES[family]
    plain, replayed = (
        bp.Network(bp.Sequential(*modules()), backend="cupy", seed=1, compute_dtype=compute, replay=replay)
        for replay in (False, "auto")
    )
    rng, results = np.random.default_rng(3), []
    for step in range(12):
        X = data(rng)[0]
        for net in (plain, replayed):
            net.theta[...] = net.theta * (0.9 if step % 3 else 1.1)  # in place: seen
        results.append((plain(X), replayed(X)))
    assert not recordings_of(plain)
    assert len(recordings_of(replayed)) == 1
    for expected, u in results:  # fresh arrays: none was overwritten
        assert all(np.array_equal(a, b) for a, b in zip(host(expected), host(u), strict=True))
    assert len({x.tobytes() for _, u in results for x in host(u)}) == 12


def test_several_outputs_and_inputs(cupy):
    def make():
        nodes = {"a": (bp.Linear(3, 4), "x"), "b": (bp.Linear(2, 4), "y"), "sum": (bp.Add(), "a", "b")}
        return bp.Circuit(("x", "y"), nodes, ("sum", "a"))

    nets = [bp.Network(make(), backend="cupy", replay=replay) for replay in (False, True)]
    rng = np.random.default_rng(0)
    for _ in range(8):
        X = tuple(rng.standard_normal((5, n)).astype("float32") for n in (3, 2))
        expected, u = (host(net(X)) for net in nets)
        assert len(u) == 2
        assert all(map(np.array_equal, expected, u))
    assert len(recordings_of(nets[1])) == 1


def test_ids_out_of_range_are_the_same_error_in_a_replayed_evaluation(cupy):
    net = bp.Network(bp.Sequential(bp.Embedding(11, 8), bp.Linear(8, 3)), backend="cupy")
    ids = np.arange(10).reshape(2, 5)
    with pytest.raises(IndexError) as plain:
        net(ids + 4)
    for _ in range(8):
        net(ids)
    assert len(recordings_of(net)) == 1
    with pytest.raises(IndexError) as replayed:
        net(ids + 4)
    assert str(plain.value) == str(replayed.value)
    net(ids)


def test_moved_copied_and_pickled_networks_have_no_recordings(cupy):
    net = bp.Network(mlp(), backend="cupy", seed=1)
    X = classes(np.random.default_rng(0), 16)[0]
    for _ in range(8):
        u = net(X)
    assert len(recordings_of(net)) == 1
    for other in (net.copy(), pickle.loads(pickle.dumps(net)), net.to("cupy")):
        assert not recordings_of(other)
        for _ in range(8):
            other.theta[...] = other.theta * 1
            assert np.array_equal(other(X).get(), u.get())
        assert len(recordings_of(other)) == 1
    net.replay = False
    assert np.array_equal(net(X).get(), u.get())
    assert not recordings_of(net)
    net.replay = "auto"
    for _ in range(8):
        net(X)
    assert len(recordings_of(net)) == 1
    with pytest.raises(ValueError, match="replay must be 'auto', True or False, got 'no'"):
        net.replay = "no"


def test_an_attribute_of_a_module_in_evaluation(cupy):
    net = bp.Network(bp.Sequential(bp.Linear(12, 4), Scaled(1.0)), backend="cupy", seed=1)
    X = classes(np.random.default_rng(0), 16)[0]
    u = [net(X) for _ in range(8)][-1].get()
    net.module.children["1"].scale = 2.0
    for _ in range(8):
        assert np.array_equal(net(X).get(), 2 * u)
    assert len(recordings_of(net)) == 1


def test_training_modes_are_not_replayed(cupy):
    net = bp.Network(mlp(), backend="cupy", seed=1)
    X = classes(np.random.default_rng(0), 16)[0]
    for step in range(8):
        net(X, mode=bp.Mode(training=True, step=step))
    assert not recordings_of(net)


class Taught(bp.Module):
    """u = teacher(z), where the teacher is a network of its own; z gets no gradient."""

    def __init__(self, teacher):
        self.teacher = teacher

    def forward(self, theta, z, mode):
        return self.teacher(z), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return saved * 0


def test_a_network_within_a_recorded_function(cupy):
    """It runs normally there, however often."""
    thetas = []
    for replay in (False, True):
        teacher = bp.Network(mlp(), backend="cupy", seed=5, replay=replay)
        for seed in range(4):
            module = bp.Sequential(bp.Linear(12, 12), Taught(teacher), bp.Linear(5, 5))
            run = bp.Trainer(bp.Network(module, backend="cupy", seed=seed), bp.CrossEntropy(), bp.Adam(1e-2), replay=replay)
            rng = np.random.default_rng(7)
            for _ in range(12):
                teacher(classes(rng, 16)[0])
                run.step(*classes(rng, 16))
            thetas.append(run.network.theta.get())
            assert not replay or recorded(run) == 1
        assert len(recordings_of(teacher)) == replay
    for seed in range(4):
        assert np.array_equal(thetas[seed], thetas[seed + 4])


def test_each_stream_has_its_recordings(cupy):
    net = bp.Network(mlp(), backend="cupy", seed=1)
    X = net.backend.asarray(classes(np.random.default_rng(0), 16)[0])
    u = [net(X) for _ in range(8)][-1].get()
    side = cupy.cuda.Stream(non_blocking=True)
    side.wait_event(cupy.cuda.get_current_stream().record())
    with side:
        results = [net(X) for _ in range(8)]
    cupy.cuda.get_current_stream().wait_event(side.record())
    assert all(np.array_equal(result.get(), u) for result in results)
    assert len(recordings_of(net)) == 2


@pytest.mark.skipif(EMULATED, reason="the emulator has one thread")
def test_threads_do_not_disturb_each_other(cupy):
    net = bp.Network(mlp(), backend="cupy", seed=1)
    data = [net.backend.asarray(classes(np.random.default_rng(i), 16)[0]) for i in range(4)]
    expected = [net(X).get() for X in data]

    def evaluate(i):
        return all(np.array_equal(net(data[i]).get(), expected[i]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(evaluate, range(4)))


# Bounds, messages


def evaluated(net, rows, times=8):
    for _ in range(times):
        u = net(np.ones((rows, 12), "float32"))
    return u


def rows_recorded(net):
    return {r.inputs[0].shape[0] for r in recordings_of(net)}


def test_the_least_recently_used_goes_first(cupy, monkeypatch):
    bpcore.recordings.kept.clear()
    monkeypatch.setattr(bpcore.recordings, "RECORDINGS", 2)
    net = bp.Network(mlp(), backend="cupy", seed=1)
    evaluated(net, 3)
    evaluated(net, 4)
    evaluated(net, 3, 1)
    evaluated(net, 5)
    assert rows_recorded(net) == {3, 5}
    assert np.array_equal(evaluated(net, 4, 1).get()[0], evaluated(net, 3, 1).get()[0])
    evaluated(net, 4, 5)  # twice as many normal runs as before
    assert rows_recorded(net) == {3, 5}
    evaluated(net, 4, 4)
    assert rows_recorded(net) == {3, 4}
    del net
    gc.collect()
    assert not len(bpcore.recordings.kept)


def test_recordings_have_a_part_of_the_memory(cupy, monkeypatch):
    from bpcore.kernels.cuda.engine.graph import Graph

    bpcore.recordings.kept.clear()
    net = bp.Network(mlp(), backend="cupy", seed=1)
    evaluated(net, 64)
    (recording,) = recordings_of(net)
    size, total = recording.size, [0]
    assert size >= 64 * 12 * 4
    monkeypatch.setattr(Graph, "memory", staticmethod(lambda: (size, 1 << 30, total[0])))
    total[0] = bpcore.recordings.SHARE * (2 * size + size // 2)
    evaluated(net, 63)
    assert rows_recorded(net) == {63, 64}
    evaluated(net, 62)
    assert rows_recorded(net) == {62, 63}
    total[0] = bpcore.recordings.SHARE * (size - 1)
    with pytest.warns(RuntimeWarning, match=r"replay='auto' does nothing: a recording needs .* GB of memory.* silences this"):
        evaluated(net, 65, 12)
    assert 65 not in rows_recorded(net)


def test_what_cannot_be_recorded_is_tried_once_for_each_shape_and_said_once(cupy, monkeypatch):
    from bpcore.kernels.cuda.engine.graph import Graph

    tried, capture = [], Graph.capture
    monkeypatch.setattr(Graph, "capture", lambda self, function: tried.append(1) or capture(self, function))
    net = bp.Network(bp.Sequential(bp.Linear(12, 16), Looks(), bp.Linear(16, 5)), backend="cupy", seed=1)
    run = bp.Trainer(net, bp.CrossEntropy(), bp.Adam(1e-2))

    def steps(rows):
        for _ in range(30):
            run.step(*classes(np.random.default_rng(0), rows))

    with pytest.warns(RuntimeWarning, match="replay='auto' does nothing: 1: Looks: .*looks at a value") as warned:
        steps(16)
    assert len(warned) == len(tried) == 1
    steps(8)
    assert len(tried) == 2


def test_auto_says_nothing_where_nothing_can_be_recorded(cupy, monkeypatch):
    for backend in ("numpy", "array_api_strict"):
        run = bp.Trainer(bp.Network(mlp(), backend=backend), bp.CrossEntropy(), Own(1e-2))
        assert run._replay is None
        assert run._take is run.training_step
        assert run.network._recordings is None
    monkeypatch.setattr(bpcore.recordings, "SETTING", "off")
    assert bp.Trainer(bp.Network(mlp(), backend="cupy"), bp.CrossEntropy(), Own(1e-2))._replay is None
    monkeypatch.setattr(bpcore.recordings, "SETTING", "on")
    with pytest.warns(RuntimeWarning, match="replay='auto' does nothing: Own has an update of its own"):
        assert bp.Trainer(bp.Network(mlp(), backend="cupy"), bp.CrossEntropy(), Own(1e-2))._replay is None


def test_replay_must_be_auto_true_or_false():
    net = bp.Network(mlp(), backend="numpy")
    for wrong in ("no", None, 1):
        with pytest.raises(ValueError, match="replay must be 'auto', True or False"):
            bp.Trainer(net, bp.CrossEntropy(), bp.Adam(1e-2), replay=wrong)
        with pytest.raises(ValueError, match="replay must be 'auto', True or False"):
            bp.Network(mlp(), backend="numpy", replay=wrong)


def test_a_copied_trainer_has_recordings_of_its_own(cupy):
    run, _ = trained("dropout, clip, AdamW", True, 28)
    other = copy.copy(run)
    assert recorded(other) == 0
    rng = np.random.default_rng(1)
    for _ in range(10):
        X, y = classes(rng, 16)
        assert float(run.step(X, y).get()) == float(other.step(X, y).get())
    assert recorded(other) == 1
    expect_same(run, other)
