"""Every primitive on inputs with infinities, NaN, -0, huge and tiny numbers: each twin against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import missing
from primitive_cases import TABLE, Draw
from twins import MANY, place, twins

import bpcore as bp
from bpcore import functional as f
from bpcore import primitive
from bpcore.functional.convolution import Placement
from bpcore.primitive import PRIMITIVES
from bpcore.verify import verified

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions run, and need no such test")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow and of infinity less infinity

VALUES = {
    "inf": [math.inf],
    "-inf": [-math.inf],
    "nan": [math.nan],
    "-0": [-0.0],
    "huge": [1e30, -1e30],
    "tiny": [1e-38, -1e-42],
    "all": [math.inf, -math.inf, math.nan, -0.0, 1e-42],
}


class Planted(Draw):
    """Arguments with some of their numbers replaced by `values`, each time in other places."""

    def __init__(self, rows: int, columns: int, dtype: str, values: list[float]):
        super().__init__(rows, columns, dtype)
        self.values = values

    def planted(self, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        for value in self.values if x.size else ():
            x.flat[self.generator.integers(0, x.size, 1 + x.size // 60)] = value
        return x

    def z(self, *shape: int, scale: float = 2.0) -> np.ndarray:
        return self.planted(super().z(*shape, scale=scale))

    def vector(self, scale: float = 1.0) -> np.ndarray:
        return self.planted(super().vector(scale))

    def weights(self) -> np.ndarray:
        w = super().weights()
        w[::4] = 0
        return w

    def out(self, *shape: int) -> np.ndarray:
        return np.full(shape, 7.0, self.dtype)


def multiplies_padding(name: str, row: tuple) -> bool:
    """Whether a convolution has padding. 0 times an infinite weight is NaN in the definition; oneDNN skips the padding."""
    return "conv" in name and any(isinstance(x, Placement) and x.padding != ((0, 0), (0, 0)) for x in row)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("library", "of", "name"), twins())
def test_twin_equals_its_definition(library, of, name, values, dtype, monkeypatch):
    if not name:
        extra = of.removeprefix("kernels.") if of in primitive.EXTRAS else library
        missing(extra, f"the twins of {of} cannot be imported here: {primitive.load(of)[1]}")
    try:
        backend = bp.get_backend(library)
    except RuntimeError as error:
        missing(library, str(error))
    if of == "kernels.fast":
        monkeypatch.setattr(MANY, 0)
    definition, twin = PRIMITIVES[name].definition, PRIMITIVES[name].twins[of]
    checked = verified(twin.call, of, definition)
    for shape in ((13, 7), (40, 33)):
        for row in TABLE[name](Planted(*shape, dtype, VALUES[values])):
            arguments = place(row, backend)
            if multiplies_padding(name, row) and not np.isfinite(VALUES[values]).all():
                continue
            if twin.serves is None or twin.serves(*arguments):
                checked(*arguments)  # raises ArithmeticError where they differ


LIMITS = {  # u at -∞ and ∞, and the derivative there
    "ReLU": ((0, math.inf), (0, 1)),
    "LeakyReLU": ((-math.inf, math.inf), (0.01, 1)),
    "ELU": ((-1, math.inf), (0, 1)),
    "Sigmoid": ((0, 1), (0, 0)),
    "Tanh": ((-1, 1), (0, 0)),
    "Softplus": ((0, math.inf), (0, 1)),
    "SiLU": ((0, math.inf), (0, 1)),
    "Mish": ((0, math.inf), (0, 1)),
    "GELU": ((0, math.inf), (0, 1)),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("module", "limits"), LIMITS.items())
def test_activations_at_infinity(module, limits, dtype):
    """The limits, also for huge numbers; NaN stays NaN, forward and backward."""
    for one in (getattr(bp, module)(), *([bp.GELU("tanh")] if module == "GELU" else [])):
        huge = 6e4 if dtype == "float16" else 1e30
        z = np.array([-math.inf, math.inf, -huge, huge, math.nan], dtype)
        u, B = bp.evaluate(one, bp.initialize(one), z)
        dz = B(np.ones_like(z))[0]
        (low, high), slopes = limits
        np.testing.assert_allclose(u[:4], [low, high, max(low, -0.01 * huge), min(high, huge)], rtol=1e-3)
        np.testing.assert_allclose(dz[:4], [*slopes, *slopes], rtol=1e-3)
        assert np.isnan(u[4])
        assert np.isnan(dz[4]) or module in ("ReLU", "LeakyReLU")  # they see only that u > 0 is false, and pass v


REACHES = {  # which numbers of a matrix are normalised with the one at [1, 2]
    bp.LayerNorm(8): np.s_[1],
    bp.RMSNorm(8): np.s_[1],
    bp.GroupNorm(2, 8): np.s_[1, :4],
    bp.BatchNorm(8): np.s_[:, 2],
}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("module", "reaches"), REACHES.items(), ids=map(repr, REACHES))
def test_norms_keep_what_is_not_finite_in_its_row_or_feature(module, reaches, bad, backend):
    """All that is normalised with it is NaN, forward and backward; the rest is as without it."""
    z, v = np.random.default_rng(0).standard_normal((2, 20, 8)).astype("float32")
    theta = bp.initialize(module, 0, backend.backend, "float32")

    def results() -> list[np.ndarray]:
        u, B = bp.evaluate(module, theta, backend.asarray(z), mode=bp.Mode(training=True))
        return [backend.to_host(x).copy() for x in (u, B(backend.asarray(v))[0])]

    expected = results()
    z[1, 2] = bad
    for got, clean in zip(results(), expected, strict=True):
        clean[reaches] = math.nan
        np.testing.assert_allclose(got, clean, rtol=1e-4, atol=1e-6)


def loss_of(loss: bp.Loss, backend, z: np.ndarray, y: np.ndarray, weights: list[float] | None = None) -> tuple[float, np.ndarray]:
    """J and dJ/dz, on the host."""
    inputs = [backend.asarray(x) for x in (z, y, *(() if weights is None else (np.array(weights, z.dtype),)))]
    J, B = bp.evaluate(loss, bp.initialize(loss, 0, backend.backend, "float32"), *inputs)
    return float(backend.to_host(J)), backend.to_host(B(1.0)[0][0])


@pytest.mark.parametrize(
    "loss", [bp.SquaredError(), bp.Huber(), bp.LogisticLoss(), bp.CrossEntropy(), bp.CrossEntropy(0.1)], ids=str
)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_example_of_weight_0_is_left_out(loss, bad, backend):
    z = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    y = np.array([0, 1, 2, 0]) if isinstance(loss, bp.CrossEntropy) else (z > 0).astype("float32")
    J, dz = loss_of(loss, backend, z, y, [1, 2, 0, 3])
    z[2] = bad
    got, got_dz = loss_of(loss, backend, z, y, [1, 2, 0, 3])
    assert got == J
    np.testing.assert_array_equal(got_dz, dz)
    assert not np.any(dz[2])
    if math.isnan(bad):
        assert math.isnan(loss_of(loss, backend, z, y, [1, 2, 1, 3])[0])


def test_losses_of_infinite_logits(backend):
    t = np.array([math.inf, -math.inf, math.inf, -math.inf], "float32")
    for y, J in (([1, 0, 1, 0], 0), ([1, 0, 0, 0], math.inf), ([1, 1, 1, 0], math.inf)):
        got, dt = loss_of(bp.LogisticLoss(), backend, t, np.array(y, "float32"))
        assert got == J
        np.testing.assert_array_equal(dt, (np.array([1, 0, 1, 0]) - y) / 4)
    masked = np.array([[2, -math.inf, 1]], "float32")
    for y, J in (([0], math.log1p(math.exp(-1))), ([1], math.inf)):
        got, dt = loss_of(bp.CrossEntropy(), backend, masked, np.array(y))
        np.testing.assert_allclose(got, J, rtol=1e-6)
        assert np.isfinite(dt).all()
    rows = np.array([[0.5, 0, 0.5]], "float32")
    assert math.isfinite(loss_of(bp.CrossEntropy(), backend, masked, rows)[0])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_dropout_and_relu_leave_out_what_they_mask(bad, backend):
    keep, x = np.array([[True, False]]), np.array([[1.0, bad]])
    keep, x = backend.asarray(keep), backend.asarray(x)
    np.testing.assert_array_equal(backend.to_host(f.dropout(x, keep, 0.5)), [[2, 0]])
    u = backend.asarray(np.array([[3.0, 0.0]]))
    np.testing.assert_array_equal(backend.to_host(f.relu_backward(u, x)), [[1, 0]])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_gradients_of_ids_stay_in_their_rows(bad, backend):
    v = np.array([[1.0, 2], [bad, 3], [4, 5]])
    out = backend.writable(np.zeros((3, 2)))
    f.scatter_add(backend.asarray(v), backend.asarray(np.array([0, 1, 0])), out)
    np.testing.assert_array_equal(backend.to_host(out), [[5, 7], [bad, 3], [0, 0]])


@pytest.mark.parametrize("fill", [-math.inf, math.nan])
def test_pooling_never_chooses_the_padding(fill, backend):
    """The first entry of the image where all are -∞; the first NaN, else."""
    z = np.full((1, 3, 3, 1), fill, "float32")
    module = bp.MaxPool2d(3, 1, 1)
    u, B = bp.evaluate(module, bp.initialize(module, 0, backend.backend, "float32"), backend.asarray(z))
    dz = backend.to_host(B(backend.asarray(np.ones_like(z)))[0])
    np.testing.assert_array_equal(backend.to_host(u), z)
    np.testing.assert_array_equal(dz[0, :, :, 0], [[4, 2, 0], [2, 1, 0], [0, 0, 0]])


AGREE = {  # twin's result, definition's, whether verify takes it
    "equal": (np.array([1.0, math.nan, math.inf]), np.array([1.0, math.nan, math.inf]), True),
    "signs of zero": (np.array([0.0]), np.array([-0.0]), True),
    "NaN for a number": (np.array([1.0, math.nan]), np.array([1.0, 2.0]), False),
    "a number for NaN": (np.array([1.0, 2.0]), np.array([1.0, math.nan]), False),
    "signs of infinity": (np.array([math.inf]), np.array([-math.inf]), False),
    "integers": (np.array([1, 2]), np.array([1, 3]), False),
    "booleans": (np.array([True]), np.array([False]), False),
    "shapes": (np.ones((2, 1)), np.ones((1, 2)), False),
}


@pytest.mark.parametrize(("got", "expected", "same"), AGREE.values(), ids=AGREE)
def test_what_verify_compares(got, expected, same):
    checked = verified(lambda z: got, "kernels.numpy", lambda z: expected)
    if same:
        assert checked(np.array([math.nan])) is got
    else:
        with pytest.raises(ArithmeticError, match="differs from its definition in result 0 by"):
            checked(np.array([math.nan]))


def test_verify_takes_rounding_of_terms_that_cancel():
    """The sum of a gradient after BatchNorm is nothing but rounding; a wrong factor is seen all the same."""
    v = np.random.default_rng(0).standard_normal((1000, 5)).astype("float32")
    v -= v.mean(axis=0)

    def definition(v):
        return np.sum(v, axis=0)

    verified(lambda v: np.sum(v[::-1], axis=0), "kernels.numpy", definition)(v)
    with pytest.raises(ArithmeticError):
        verified(lambda v: 1.01 * np.sum(v, axis=0), "kernels.numpy", definition)(v + 1)
    with pytest.raises(ArithmeticError):
        verified(lambda v: np.sum(v[1:], axis=0), "kernels.numpy", definition)(v)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("at", [1e4, 1e8, 1e20])
def test_logits_far_from_zero(at, dtype, backend):
    """log softmax(t) depends on differences of logits alone, however large they are."""
    t = backend.asarray(np.full((2, 3), at), dtype)
    v = backend.asarray([[1.0, 0.0, 0.0]] * 2, dtype)
    u = f.log_softmax(t, -1)
    J, _ = f.cross_entropy(t, backend.asarray([0, 1]), None, 0.0)
    dt = f.log_softmax_backward(u, v, -1)
    np.testing.assert_allclose(backend.to_host(u), np.full((2, 3), -np.log(3)), rtol=1e-6)
    assert float(backend.to_host(J)) == pytest.approx(np.log(3), rel=1e-6)
    np.testing.assert_allclose(backend.to_host(dt), [[2 / 3, -1 / 3, -1 / 3]] * 2, rtol=1e-6)


def test_groups_of_huge_deviation(backend):
    z, v = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 8)).astype("float32")
    arrays = [backend.asarray(x) for x in (np.float32(1e30) * z, v, np.ones(8, "float32"), np.zeros(8, "float32"))]
    (_, mean, scale), out = f.group_norm(arrays[0], arrays[2], arrays[3], 1, 1e-5), (arrays[2] * 0, arrays[3] * 0)
    dz = f.group_norm_backward(arrays[0], mean, scale, arrays[2], arrays[1], *out, True)
    (_, mean, scale), out = f.group_norm(z.astype("f8"), np.ones(8), np.zeros(8), 1, 0.0), (np.zeros(8), np.zeros(8))
    right = f.group_norm_backward(z.astype("f8"), mean, scale, np.ones(8), v.astype("f8"), *out, True) / 1e30
    np.testing.assert_allclose(backend.to_host(dz), right, rtol=1e-3, atol=1e-4 * np.max(np.abs(right)))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_large_group_whose_first_entry_is_far_from_the_others(groups, backend):
    """A black corner: the mean is measured from it, and rounding of a sum of many equal numbers must not be left in it."""
    generator = np.random.default_rng(0)
    z = (0.9 + 0.001 * generator.standard_normal((1, 300, 300, 2))).astype("float32")
    z[0, 0, 0] = 0
    v = generator.standard_normal(z.shape).astype("float32")
    results = []
    for take in (lambda x: backend.asarray(x, "float32"), lambda x: np.asarray(x, "float64")):
        u, mean, scale = f.group_norm(take(z), take(np.ones(2)), take(np.zeros(2)), groups, 1e-5)
        dgamma, dbeta = backend.writable(np.zeros(2), "float32"), backend.writable(np.zeros(2), "float32")
        if len(results):
            dgamma, dbeta = np.zeros(2), np.zeros(2)
        dz = f.group_norm_backward(take(z), mean, scale, take(np.ones(2)), take(v), dgamma, dbeta, True)
        results.append([x if len(results) else backend.to_host(x) for x in (u, dz, dgamma)])
    for got, right in zip(*results, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-3, atol=2e-4 * np.max(np.abs(right)))
