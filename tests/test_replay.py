"""Products by our own cuBLAS handle, and steps replayed, on a GPU; without one, on an emulated CuPy in a process apart."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import environment
from emulator import cupy as emulator

import bpcore as bp
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


TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


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
    return sum(recording.J is not None for recording in run._replay.recordings.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_same_bit_for_bit(cupy, case, dtype):
    (eager, expected), (replayed, J) = (trained(case, replay, dtype=dtype) for replay in (False, True))
    assert recorded(replayed) == 2
    assert len(set(J)) > 40
    assert expected == J
    expect_same(replayed, eager)
    if EMULATED:
        launches = [recording.graph.graph.launches for recording in replayed._replay.recordings.values()]
        assert launches == [38 - 2, 12 - 2]  # all but those before the graph is settled


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


@pytest.mark.parametrize("compute", [None, "float16", "tf32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_modules(cupy, family, compute):
    data, modules = FAMILIES[family]
    runs, losses = [], []
    for replay in (False, True):
        rng = np.random.default_rng(11)
        net = bp.Network(bp.Sequential(*modules()), backend="cupy", seed=1, compute_dtype=compute)
        run = bp.Trainer(net, bp.CrossEntropy(), bp.AdamW(1e-2), clip_norm=1.0, seed=2, replay=replay)
        losses.append([float(run.step(*data(rng)).get()) for _ in range(7)])
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
            pools = [recording.graph.pool for recording in run._replay.recordings.values()]
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
        for recording in run._replay.recordings.values():
            if recording.J is not None and recording not in watched:
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
    run, _ = trained("dropout, clip, AdamW", True, 20)
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
    monkeypatch.setattr(bp.training.replay, "RECORDINGS", 1)
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
        J = [trainer.step(*classes(rng, 16)) for _ in range(8)]
        return trainer, [float(x.get()) for x in J]

    with pytest.warns(RuntimeWarning, match=f"replay=True does nothing: .*{why}") as warned:
        replayed, J = run(True)
    assert len(warned) == 1
    eager, expected = run(False)
    assert expected == J
    expect_same(replayed, eager)


@pytest.mark.parametrize("setting", ["off", "verify"])
def test_settings_of_kernels_that_cannot_be_recorded(cupy, monkeypatch, setting):
    monkeypatch.setattr(bp.training.replay, "SETTING", setting)
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
