"""Attention: what its masks hide."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp


@pytest.mark.parametrize("rotary", [False, True])
def test_causal_means_no_token_sees_later_ones(rotary):
    net = bp.Network(bp.TransformerBlock(4, 2, causal=True, rotary=rotary), dtype="float64")
    X = np.random.default_rng(0).standard_normal((2, 6, 4))
    changed = X.copy()
    changed[:, 4:] += 1
    np.testing.assert_allclose(net(X)[:, :4], net(changed)[:, :4], rtol=1e-13)
    assert not np.allclose(net(X)[:, 4:], net(changed)[:, 4:])


def test_padding_is_not_seen():
    """Whatever stands there, and however much of it."""
    net = bp.Network(bp.MultiHeadAttention(4, 2), dtype="float64")
    X, keep = np.random.default_rng(0).standard_normal((2, 6, 4)), np.arange(6) < 4
    long = net((X, np.stack((keep, keep))))
    np.testing.assert_allclose(long[:, :4], net(X[:, :4]), rtol=1e-12)
    changed = np.where(keep[:, None], X, 1e3)
    np.testing.assert_allclose(net((changed, np.stack((keep, keep))))[:, :4], long[:, :4], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_keys_masked(dtype, backend):
    """A = 0: u is the output's bias, and nothing comes back but to that."""
    module = bp.MultiHeadAttention(4, 2)
    theta = bp.initialize(module, 3, backend.backend, dtype)
    theta.b_o[...] = backend.asarray([1, 2, 3, 4], dtype)
    z = backend.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), dtype)
    u, B = bp.evaluate(module, theta, z, backend.asarray(np.zeros((2, 3), bool)))
    np.testing.assert_array_equal(backend.to_host(u), np.broadcast_to([1, 2, 3, 4], (2, 3, 4)))
    (dz, _), dtheta = B(u)
    for array in (dz, dtheta.W, dtheta.b, dtheta.W_o):
        assert not np.any(backend.to_host(array))
    np.testing.assert_array_equal(backend.to_host(dtheta.b_o), [6, 12, 18, 24])


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (np.ones((2, 3)), r"\(2, 3\) of float"),
        (np.ones((2, 4), bool), r"\(2, 4\) of bool"),
        (np.ones((2, 3), int), r"\(2, 3\) of int"),
        (np.ones((3, 3), bool), r"\(3, 3\) of bool"),
    ],
    ids=["floats", "a key too many", "integers", "queries by keys"],
)
def test_masks(mask, got):
    net = bp.Network(bp.TransformerBlock(4, 2), dtype="float64")
    with pytest.raises(ValueError, match=rf"attention: MultiHeadAttention expected a mask of booleans \(2, 3\), got {got}"):
        net((np.zeros((2, 3, 4)), mask))
