"""The extra `fast` beyond its twins' numbers: NaN, child processes, traced memory, and code that is kept on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from conftest import NO_LIBGOMP, environment, missing
from optimizer_cases import FULLEST
from twins import MANY

import bpcore as bp
from bpcore import functional as f
from bpcore import primitive
from bpcore.modules import activations

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted")
if primitive.load("kernels.fast")[0] is None:
    missing("fast", f"kernels/fast cannot be imported: {primitive.load('kernels.fast')[1]}")

ACTIVATIONS = (one.make() for one in CASES if one.name in activations.__all__)
MODULES = {repr(module): module for module in (*ACTIVATIONS, bp.LayerNorm(64), bp.Linear(64, 64)) if module.rows_independent}


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_nan_is_not_lost(module, bad):
    """Else a run that has diverged goes on as if nothing were."""
    z = np.ones((50, 64), "float32")
    z[7, 3] = bad
    theta = bp.initialize(module)
    u, B = bp.evaluate(module, theta, z)
    assert not np.isfinite(u[7]).all() or bad == np.inf
    assert np.isfinite(u[:7]).all()
    v = np.ones_like(u)
    v[7, 3] = np.nan
    assert np.isnan(B(v)[0][7]).any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of log 0 and log -1
def test_logarithms_of_the_ends(monkeypatch):
    monkeypatch.setattr(MANY, 0)
    z = np.array([0, -0.0, -1, -np.inf, np.inf, np.nan, 1, 1e-38, 1e-45, 3e38, 0.7071, 1.4143], "float32")
    np.testing.assert_allclose(f.log(z), np.log(z), rtol=2e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of 1 / 0 and what overflows
def test_large_arrays_at_the_ends(monkeypatch):
    """What NumPy gives: signs of infinities, and NaN of those that have none."""
    monkeypatch.setattr(MANY, 0)
    ends = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 3e38, 1e-38], "float32")
    a, b = np.repeat(ends, len(ends)), np.tile(ends, len(ends))
    for twin, by_numpy in ((f.add, np.add), (f.subtract, np.subtract), (f.multiply, np.multiply), (f.divide, np.divide)):
        np.testing.assert_array_equal(twin(a, b), by_numpy(a, b))
    np.testing.assert_allclose(f.exp(ends * 80), np.exp(ends * 80), rtol=2e-7)


@pytest.mark.parametrize("optimizer", FULLEST.values(), ids=FULLEST)
def test_a_nan_in_the_gradient_reaches_theta(optimizer):
    theta, g = np.ones(100, "float32"), np.full(100, np.nan, "float32")
    optimizer.update(theta, g, optimizer.start(theta), 1, 0.1, 0)
    assert np.isnan(theta).all()


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("shape", [(40, 70, 1100), (1030, 520, 1025), (1024, 1100, 3)], ids=str)
def test_products_of_all_layouts(monkeypatch, shape, packs):
    """By both kinds of oneDNN's products; what was there before does not count."""
    from bpcore.kernels.fast.engine import onednn

    if onednn.LIBRARY is None:
        missing("fast", onednn.WHY_NOT)
    monkeypatch.setattr(onednn, "PACKS", packs)
    generator = np.random.default_rng(0)
    n, k, m = shape
    a, b, bias = (generator.standard_normal(size, "float32") for size in ((n, k), (k, m), m))
    for first in (a, np.asfortranarray(a)):
        for second in (b, np.asfortranarray(b)):
            for added in (None, bias):
                u, again = np.full((2, n, m), np.nan, "float32")
                assert onednn.gemm(first, second, u, added) is u
                onednn.gemm(first, second, again, added)
                np.testing.assert_array_equal(u, again)
                expected = a.astype("float64") @ b + (0 if added is None else added)
                np.testing.assert_allclose(u, expected, rtol=1e-5, atol=1e-4)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True, timeout=100)


STEP = """
import os, sys, tracemalloc
import numpy as np
from bpcore.functional.activations import relu
from bpcore.functional.linear import linear
z = np.ones((512, 512), "float32")
{before}
relu(z), linear(z, z, None)
{after}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_process_computes():
    """libgomp's workers stay with the parent: a child that asked for them would wait for ever."""
    after = "child = os.fork()\nrelu(z), linear(z, z, None)\nchild == 0 and os._exit(0)\nassert os.waitpid(child, 0)[1] == 0"
    done = run(STEP.format(before="", after=after))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("module", "shape"), [("bp.Conv2d(1, 8, 3)", (64, 12, 12, 1)), ("bp.MultiHeadAttention(32, 4)", (8, 64, 32))]
)
def test_a_child_makes_its_own_plans(module, shape):
    """Those of the parent are for all threads, also where the shapes are the same."""
    code = f"""
import os, numpy as np, bpcore as bp
z = np.ones({shape}, "float32")
net = bp.Network({module}, seed=0, backend="numpy")
y = np.zeros_like(net(z))
before = net.value_and_gradient(bp.SquaredError(), z, y)[1].copy()
child = os.fork()
after = net.value_and_gradient(bp.SquaredError(), z, y)[1]
child == 0 and os._exit(not np.allclose(after, before, rtol=1e-4, atol=1e-4))
assert os.waitpid(child, 0)[1] == 0
"""
    done = run(code, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


IN_NUMBAS_POOL = """
import hashlib, os, tracemalloc, numpy as np
from bpcore.functional import gelu, gelu_again, layer_norm, softmax
from bpcore.kernels.fast.engine import threads
assert threads.count() == {threads}, threads.POOL
def bits():
    z = np.random.default_rng(0).standard_normal((3001, 701)).astype("float32")
    results = gelu(z), gelu_again(z, z.copy()), *layer_norm(z, z[0], z[1], 1e-5), softmax(z, -1)
    return hashlib.sha256(b"".join(u.tobytes() for u in results)).hexdigest()
tracemalloc.start()
print(bits())
child = os.fork() if hasattr(os, "fork") else 1
child == 0 and os._exit(len(bits()) != 64)
assert child == 1 or os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_without_libgomp_loops_run_in_numbas_pool_with_the_same_bits(layer):
    expected = run(IN_NUMBAS_POOL.format(threads=2), OMP_NUM_THREADS="2")
    for threads in ("2", "1"):
        variables = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": threads}
        got = run(NO_LIBGOMP + IN_NUMBAS_POOL.format(threads=threads), **variables)
        if "No threading layer could be loaded" in got.stderr:
            pytest.skip(f"Numba has no layer {layer} here")
        assert got.stdout == expected.stdout != "", got.stderr


def test_traced_memory_does_not_hang():
    """An allocation in a thread would wait for the interpreter, which waits for the thread."""
    code = """
from bpcore.functional import batch_statistics, group_norm, layer_norm
image = np.ones((64, 256, 1, 32), "float32")
group_norm(image, image[0, 0, 0], image[0, 0, 0], 4, 1e-5), batch_statistics(image), layer_norm(z, z[0], z[0], 1e-5)
"""
    done = run(STEP.format(before="tracemalloc.start()", after=code))
    assert done.returncode == 0, done.stderr


def copy_of_the_package(folder: Path) -> Path:
    """The package elsewhere, without what was compiled."""
    shutil.copytree(Path(bp.__file__).parent, folder / "bpcore", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "bpcore" / "kernels" / "fast"


def test_what_is_kept_holds_for_all_files_together(tmp_path):
    """A change to one file is seen by functions of another, which its code was compiled into."""
    fast = copy_of_the_package(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + STEP.format(
        before="z = -z", after="from bpcore.functional.activations import sigmoid; print(sigmoid(z)[0, 0])"
    )
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    first = run(code, **kept)
    assert float(first.stdout) == pytest.approx(1 / (1 + np.e)), first.stderr
    arrays = fast / "engine" / "arrays.py"
    arrays.write_text(arrays.read_text().replace("if abs(x) < least else x", "if abs(x) < 1 else x"))
    second = run(code, **kept)
    assert float(second.stdout) == 0, second.stderr


def test_what_is_kept_gives_the_bits_of_what_was_compiled(tmp_path):
    """Else a run that is killed and resumed would end with other bits if its first process had to compile."""
    code = """
import hashlib, numpy as np, bpcore as bp
generator = np.random.default_rng(0)
for optimizer in (bp.Adam(1e-2), bp.AdamW(1e-2), bp.RMSProp(1e-2), bp.SGD(1e-2, momentum=0.9)):
    net = bp.Network(bp.MLP([20, 30, 5]), seed=0, backend="numpy")
    run = bp.Trainer(net, bp.CrossEntropy(), optimizer, clip_norm=0.1)
    for _ in range(20):
        run.step(generator.standard_normal((16, 20)), generator.integers(0, 5, 16))
    print(hashlib.sha256(net.theta.tobytes()).hexdigest())
net = bp.Network(bp.Sequential(bp.LSTM(20, 48), bp.GRU(48, 48)), seed=0, backend="numpy")
z, y = (generator.standard_normal((37, 9, n)).astype("float32") for n in (20, 48))
print(hashlib.sha256(net.value_and_gradient(bp.SquaredError(), z, y)[1].tobytes()).hexdigest())
"""
    first, second = (run(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stdout.split() == second.stdout.split() != [], first.stderr + second.stderr


def test_without_a_place_to_keep_code_it_is_compiled_each_time():
    code = """
import numba.core.caching as caching
caching.FunctionCache._impl_class._locator_classes = []
""" + STEP.format(before="", after="print(relu(z)[0, 0])")
    done = run(code)
    assert done.stdout.strip() == "1.0", done.stderr
