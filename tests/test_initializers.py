"""Initial values: their spread, their bounds, and which module starts with which."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp
from bpcore.initializers import (
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LeCunNormal,
    Orthogonal,
    Zeros,
)

SIZE = (300, 200)
DRAWN = [  # initialiser, standard deviation, bound (None: normal)
    (HeNormal(), np.sqrt(2 / 300), None),
    (HeUniform(), np.sqrt(2 / 300), np.sqrt(6 / 300)),
    (GlorotNormal(), np.sqrt(2 / 500), None),
    (GlorotUniform(), np.sqrt(2 / 500), np.sqrt(6 / 500)),
    (LeCunNormal(), np.sqrt(1 / 300), None),
    (Orthogonal(2.0), 2.0 / np.sqrt(300), None),
    (Constant(0.5), 0.0, None),
    (Zeros(), 0.0, None),
]


@pytest.mark.parametrize(("initializer", "deviation", "bound"), DRAWN, ids=lambda x: type(x).__name__)
def test_initializers(initializer, deviation, bound):
    W = initializer(np.random.default_rng(0), SIZE)
    assert W.shape == SIZE
    assert np.std(W) == pytest.approx(deviation, rel=0.02, abs=1e-15)
    assert np.mean(W) == pytest.approx(getattr(initializer, "value", 0.0), abs=0.02 * deviation)
    assert bound is None or bound * 0.99 < np.max(np.abs(W)) <= bound
    assert np.array_equal(W, initializer(np.random.default_rng(0), SIZE))


def test_orthogonal():
    for shape in ((5, 3), (3, 5), (2, 3, 4)):
        W = Orthogonal()(np.random.default_rng(0), shape).reshape(-1, shape[-1])
        gram = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)
    generator = np.random.default_rng(0)
    corner = np.mean([Orthogonal()(generator, (3, 3))[0, 0] for _ in range(2000)])  # 0 where all rotations are as likely
    assert abs(corner) < 5 / np.sqrt(3 * 2000)
    with pytest.raises(ValueError, match=r"Orthogonal expected a weight of at least two axes, got shape \(3,\)"):
        bp.initialize(bp.Weight((3,), Orthogonal()))


def test_every_parameter_has_a_stream_of_its_own():
    """Layers of one shape differ, and a layer added at the end changes none before it."""
    short, long = (bp.initialize(bp.Sequential(*(bp.Linear(4, 4) for _ in range(n)))) for n in (2, 3))
    assert not np.any(long["0.W"] == long["1.W"])
    assert np.array_equal(short["1.W"], long["1.W"])


@pytest.mark.parametrize(
    ("activation", "first"), [("relu", HeNormal()), ("gelu", HeNormal()), ("tanh", GlorotNormal()), ("sigmoid", GlorotNormal())]
)
def test_mlp_initializers(activation, first):
    layers = [m for m in bp.MLP([4, 5, 6, 2], activation).modules if isinstance(m, bp.Linear)]
    assert [layer.initializer for layer in layers] == [first, first, LeCunNormal()]
