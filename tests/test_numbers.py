"""Numbers that are huge, tiny, constant or far from zero, sums over a million rows, NumPy's error state, and sizes of zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import CASES
from runs import examples, trainer

import bpcore as bp
from bpcore import primitive
from bpcore.functional.convolution import Placement
from bpcore.functional.numerics import sum_over
from bpcore.functional.updates import times
from bpcore.module import EMPTY
from bpcore.primitive import PRIMITIVES

MILLION = 1_000_000
CONSTANTS = (0.1, -1234.567, 3333333.25, 1e7, 1e30, 1e-30)


def of_numpy(name: str, *args: Any) -> Iterator[Callable[..., Any]]:
    """The definition of a primitive, and those of NumPy's twins that serve the arguments."""
    known = PRIMITIVES[name]
    yield known.definition
    for of in primitive.SETS["numpy"]:
        twin = known.twins.get(of) if primitive.load(of)[0] is not None else None
        if twin is not None and (twin.serves is None or twin.serves(*args)):
            yield twin.call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 3, 7, 33, 768])
@pytest.mark.parametrize("c", CONSTANTS)
def test_equal_numbers_are_normalized_to_zero(c, n, dtype):
    """Exactly, in every twin; and their gradient is finite."""
    gamma, beta, row = np.ones(n, dtype), np.zeros(n, dtype), np.full((4, n), c, dtype)
    for norm in of_numpy("layer_norm", row, gamma, beta, 1e-5):
        u, mean, scale = norm(row, gamma, beta, 1e-5)
        assert not np.any(u)
        backward = (row, mean, scale, gamma, np.ones_like(row), np.empty(n, dtype), np.empty(n, dtype), True, None)
        for norm_backward in of_numpy("layer_norm_backward", *backward):
            assert np.all(np.isfinite(norm_backward(*backward)))
            assert not np.any(backward[5])
    image, six = np.full((2, n, 6), c, dtype), np.ones(6, dtype)
    for norm in of_numpy("group_norm", image, six, 0 * six, 3, 1e-5):
        assert not np.any(norm(image, six, 0 * six, 3, 1e-5)[0])
    for statistics in of_numpy("batch_statistics", row.T.copy()):
        mean, variance = statistics(row.T.copy())
        np.testing.assert_array_equal(mean, row[:, 0])
        assert not np.any(variance)


NUMBERS = {  # rows of float32
    "far": lambda r: 1e6 + r,
    "very far": lambda r: 1e8 + 100 * r,
    "huge": lambda r: 1e30 * r,
    "tiny": lambda r: 1e-30 * r,
    "one outlier": lambda r: np.where(np.arange(r.shape[1]) == 0, 1e8, r),
}


@np.errstate(over="ignore")
@pytest.mark.parametrize("kind", NUMBERS)
def test_norms_of_any_numbers_are_those_of_float64(kind):
    n, generator = 512, np.random.default_rng(0)
    z = NUMBERS[kind](generator.standard_normal((8, n))).astype("float32")
    v, gamma, beta = generator.standard_normal((8, n)).astype("float32"), np.ones(n, "float32"), np.zeros(n, "float32")
    wide = z.astype("float64")
    wide, eps = wide - wide.mean(-1, keepdims=True), 1e-5
    scale_64 = 1 / np.sqrt(np.mean(wide**2, -1, keepdims=True) + eps)
    x = wide * scale_64
    dz_64 = scale_64 * (v - v.mean(-1, keepdims=True, dtype="float64") - x * np.mean(x * v, -1, keepdims=True))
    for norm in of_numpy("layer_norm", z, gamma, beta, eps):
        u, mean, scale = norm(z, gamma, beta, eps)
        np.testing.assert_allclose(u, x, atol=2e-5)
        backward = (z, mean, scale, gamma, v, np.empty(n, "float32"), np.empty(n, "float32"), True, None)
        for norm_backward in of_numpy("layer_norm_backward", *backward):
            np.testing.assert_allclose(norm_backward(*backward), dz_64, atol=1e-5 * np.max(np.abs(dz_64)))
    images = z.reshape(1, 8, n)
    by_group = images.astype("float64").reshape(8, 8, n // 8)
    by_group = by_group - by_group.mean((0, 2), keepdims=True)
    by_group /= np.sqrt(np.mean(by_group**2, (0, 2), keepdims=True) + eps)
    for norm in of_numpy("group_norm", images, gamma, beta, 8, eps):
        np.testing.assert_allclose(norm(images, gamma, beta, 8, eps)[0], by_group.reshape(1, 8, n), atol=5e-5)
    expected = z / np.sqrt(np.mean(z.astype("float64") ** 2, -1, keepdims=True) + 1e-6)
    for norm in of_numpy("rms_norm", z, gamma, 1e-6):
        np.testing.assert_allclose(norm(z, gamma, 1e-6)[0], expected, atol=1e-5)


@pytest.mark.skipif(primitive.SETTING == "verify", reason="products over a million rows differ by 0.2 %")
def test_sums_over_a_million_rows():
    """Added one by one in float32, they would be wrong by 1 %."""
    v, sums = np.full((MILLION, 3), 0.1, "float32"), np.empty((4, 3), "float32")
    one, three = np.ones((MILLION, 1), "float32"), np.ones(3, "float32")
    calls = {
        "linear_backward": (one, sums[:1], v, np.empty((1, 3), "float32"), sums[3], False),
        "linear_gelu_backward": (one, sums[:1], np.full_like(v, 100), v, np.empty((1, 3), "float32"), sums[3], False),
        "linear_relu_backward": (one, sums[:1], v, v, np.empty((1, 3), "float32"), sums[3], False),
        "layer_norm_backward": (v, 0 * one, one, three, v, sums[2], sums[3], False, None),
        "batch_norm_backward": (v, 0 * three, three, three, v, 1e-5, True, sums[2], sums[3], False),
        "scatter_add": (v, np.full(MILLION, 3), sums),
    }
    for name, arguments in calls.items():
        for call in of_numpy(name, *arguments):
            sums[...] = 0
            call(*arguments)
            np.testing.assert_allclose(sums[3], 1e5, rtol=3e-5, err_msg=name)
    for statistics in of_numpy("batch_statistics", v):
        np.testing.assert_array_equal(statistics(v)[0], v[0])
    image, placement = v[: 10**6, :2].reshape(1, 1000, 1000, 2).copy(), Placement((1000, 1000))
    for pool in of_numpy("avg_pool2d", image, placement):
        np.testing.assert_allclose(pool(image, placement), 0.1, rtol=3e-5)
    t, y = np.zeros((MILLION, 3), "float32"), np.zeros(MILLION, "int64")
    for cross_entropy in of_numpy("cross_entropy", t, y, None, 0.0):
        assert cross_entropy(t, y, None, 0.0)[0] == pytest.approx(np.log(3), rel=3e-6)
    u, _ = bp.evaluate(bp.Mean(0), EMPTY, v)
    np.testing.assert_allclose(u, 0.1, rtol=3e-5)


@pytest.mark.parametrize("shape", [(511,), (512,), (513,), (1024,), (1025,), (5000, 3), (3, 2000, 2)])
def test_a_sum_in_parts_is_the_sum(shape, backend):
    """Along every axis and all, to the last row."""
    x = np.random.default_rng(0).integers(-9, 9, shape).astype("float32")  # sums of these are exact
    for axis in (*range(len(shape)), tuple(range(len(shape))), None):
        np.testing.assert_array_equal(backend.to_host(sum_over(backend.asarray(x), axis)), x.sum(axis))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e20, 1e25, 3e38, 1e-25, 1e-30, 1e200, 1e-200])
def test_a_finite_gradient_is_clipped_to_the_norm(size, dtype):
    """However large it is; a tiny one stays as it is."""
    if dtype == "float32" and size in (1e200, 1e-200):
        pytest.skip("float32 has no such number")
    g, root = np.full(100, size, dtype), 10.0
    for squared_norm in of_numpy("squared_norm", g):
        with np.errstate(over="ignore", under="ignore"):
            square = squared_norm(g)
        if 1e-300 < (size * root) * (size * root) < 1e300:
            assert float(square) == pytest.approx(100 * size**2, rel=1e-5)
        for clip_factor in of_numpy("clip_factor", g, square, 1.0):
            with np.errstate(over="ignore", under="ignore"):
                clipped = times(g, clip_factor(g, square, 1.0))
            np.testing.assert_allclose(clipped, 0.1 if size > 1 else g, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_is_seen(bad):
    g = np.ones(100, "float32")
    g[50] = bad
    for squared_norm in of_numpy("squared_norm", g):
        with np.errstate(invalid="ignore"):
            np.testing.assert_equal(float(squared_norm(g)), abs(bad))


@pytest.mark.parametrize("w", [1e-40, 1e-30, 1e38])
@pytest.mark.parametrize("loss", [bp.CrossEntropy(), bp.SquaredError()], ids=repr)
def test_the_scale_of_weights_does_not_matter(loss, w):
    r = np.random.default_rng(0)
    t = r.standard_normal((20, 3)).astype("float32")
    y = r.integers(0, 3, 20) if isinstance(loss, bp.CrossEntropy) else r.standard_normal((20, 3)).astype("float32")
    (J, B), (expected, of_one) = (bp.evaluate(loss, EMPTY, t, y, np.full(20, x, "float32")) for x in (w, 1.0))
    assert float(J) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(B(1.0)[0][0], of_one(1.0)[0][0], rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1.0, 300.0, 1e-25])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_module_runs_where_numpy_raises(case, scale):
    if scale == 300.0 and primitive.SETTING == "verify":
        pytest.skip("the rounding errors of a twin and of its definition are amplified")
    module, r = case.make(), np.random.default_rng(0)
    z = [(scale * r.standard_normal(x) if isinstance(x, tuple) else np.asarray(x)) for x in case.inputs]
    z = [x.astype("float32") if x.dtype.kind == "f" else x for x in z]
    with np.errstate(all="raise"):
        u, B = bp.evaluate(module, bp.initialize(module), *z, mode=bp.Mode(training=True))
        v = tuple((1e-3 * r.standard_normal(x.shape)).astype(x.dtype) for x in (u if isinstance(u, tuple) else (u,)))
        B(v if isinstance(u, tuple) else v[0])


@pytest.mark.parametrize("loss", [bp.CrossEntropy(), bp.LogisticLoss()], ids=repr)
def test_probabilities_where_numpy_raises(loss):
    with np.errstate(all="raise"):
        phi = loss.probabilities(np.array([[-6e4, 6e4]], "float16"))
    np.testing.assert_array_equal(phi, [[0, 1]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "optimizer", [bp.SGD(momentum=0.9), bp.Adam(), bp.NAdam(), bp.Lion(), bp.RMSProp(), bp.Adagrad()], ids=repr
)
def test_a_run_where_numpy_raises(optimizer):
    """The same history; and the caller's setting is the caller's again."""
    histories = []
    for setting in ("warn", "raise"):
        with np.errstate(all=setting, under="ignore" if setting == "warn" else "raise"):
            run = trainer(bp.Sequential(bp.Linear(5, 8), bp.Sigmoid(), bp.Linear(8, 3)), optimizer=optimizer, clip_norm=1.0)
            X, y = examples()[:2]
            run.fit((300 * X, y), validation=(1e-30 * X, y), epochs=2, batch_size=8)
            histories.append(run.history["test_loss"])
            assert np.geterr()["over"] == setting
    assert histories[0] == histories[1]


EMPTIES = [
    (bp.MaxPool2d(2, 2, 1), (2, 0, 4, 1), 1),
    (bp.AvgPool2d(2), (2, 4, 0, 1), 2),
    (bp.Conv2d(1, 2, 3, padding=2), (2, 0, 4, 1), 1),
    (bp.ConvTranspose2d(1, 2, 3), (2, 3, 0, 1), 2),
    (bp.GroupNorm(1, 2), (2, 0, 2), 1),
    (bp.Softmax(0), (0, 4), 0),
    (bp.LogSoftmax(), (3, 0), -1),
    (bp.Mean(0), (0, 4), 0),
    (bp.MultiHeadAttention(4, 2), (2, 0, 4), 1),
]


@pytest.mark.parametrize(("module", "shape", "axis"), EMPTIES, ids=lambda x: str(x))
def test_an_axis_without_entries_is_an_error(module, shape, axis):
    name = type(module).__name__
    text = rf"0: {name} expected at least one entry along axis {axis}, got z of shape .*; check the data"
    net = bp.Network(bp.Sequential(module))
    with pytest.raises(ValueError, match=text):
        net(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"CrossEntropy expected at least one entry along axis -1, got z of shape \(3, 0\)"):
        bp.evaluate(bp.CrossEntropy(), EMPTY, np.zeros((3, 0), "float32"), np.zeros(3, "int64"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_sizes_of_zero(case):
    """Each axis of each input: a sentence that names the module, or finite results forward and backward."""
    arrays = [np.ones(x, "float32") if isinstance(x, tuple) else np.asarray(x) for x in case.inputs]
    arrays = [x.astype("float32") if x.dtype.kind == "f" else x for x in arrays]
    for k, x in enumerate(arrays):
        for axis in range(x.ndim):
            together = [axis == 0 and z.ndim > 0 and z.shape[0] == x.shape[0] for z in arrays]
            z = [np.take(a, [], axis=axis) if i == k or together[i] else a for i, a in enumerate(arrays)]
            module = case.make()
            try:
                u, B = bp.evaluate(module, bp.initialize(module), *z, mode=bp.Mode(training=True))
            except (ValueError, TypeError) as error:
                assert any(word in str(error) for word in (" expected ", " got no examples", " takes "))  # noqa: PT017
                continue
            v = tuple(np.ones_like(x) for x in (u if isinstance(u, tuple) else (u,)))
            dz, dtheta = B(v if isinstance(u, tuple) else v[0])
            dz = dz if isinstance(dz, tuple) else (dz,)
            for array in (*v, *(d for d in dz if d is not None), *(d for _, d in dtheta.items())):
                assert np.all(np.isfinite(array))
