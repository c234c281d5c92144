"""Attention: what its masks hide."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp
from bpcore import functional as f


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


BAD = [1e12, 3e38, np.inf, -np.inf, np.nan]  # 3e38: its products overflow in float32


def passes(backend, causal, padding, qkv, v):
    """u and dqkv of the primitive, on the host; without dropout, two heads."""
    qkv, v = (backend.asarray(x) for x in (qkv, v))
    padding = None if padding is None else backend.asarray(padding)
    u, L = f.attention(qkv, 2, causal, padding, None, 0.0)
    return backend.to_host(u), backend.to_host(f.attention_backward(qkv, padding, None, u, L, v, 2, causal, 0.0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of products that overflow
@pytest.mark.parametrize("bad", BAD)
def test_a_key_that_is_padding_has_no_influence(bad, backend):
    """On any u, nor on any gradient; its own gradients are 0."""
    generator, size = np.random.default_rng(0), 8
    qkv, v = (generator.standard_normal((2, 7, width)).astype("float32") for width in (3 * size, size))
    padding = np.arange(7) < np.asarray([[6], [4]])
    for causal in (False, True):
        expected = passes(backend, causal, padding, qkv, v)
        changed = qkv.copy()
        changed[~padding, size:] = bad
        got = passes(backend, causal, padding, changed, v)
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        assert not np.any(got[1][~padding][:, size:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", BAD)
def test_later_tokens_have_no_influence(bad, backend):
    """On u and dq of the tokens before them; nor has a query on dk and dvalues of later keys. A NaN that is seen gives NaN."""
    generator, size, at = np.random.default_rng(0), 8, 4
    qkv, v = (generator.standard_normal((2, 7, width)).astype("float32") for width in (3 * size, size))
    u, dqkv = passes(backend, True, None, qkv, v)
    changed, changed_v = qkv.copy(), v.copy()
    changed[0, at], changed_v[0, at] = bad, bad
    got, got_dqkv = passes(backend, True, None, changed, changed_v)
    np.testing.assert_allclose(got[0, :at], u[0, :at], rtol=1e-5)
    np.testing.assert_allclose(got_dqkv[0, :at, :size], dqkv[0, :at, :size], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1], u[1], rtol=1e-5)
    np.testing.assert_allclose(got_dqkv[1], dqkv[1], rtol=1e-4, atol=1e-6)
    if np.isnan(bad):
        assert np.isnan(got[0, at:]).all()
    changed, changed_v = qkv.copy(), v.copy()
    changed[0, at, :size], changed_v[0, at] = bad, bad
    _, got_dqkv = passes(backend, True, None, changed, changed_v)
    np.testing.assert_allclose(got_dqkv[0, at + 1 :], dqkv[0, at + 1 :], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_huge_scores_have_finite_gradients(causal, backend):
    """Of scores of 1e12, L is rounded by thousands. A token without a gradient, as padding has, then has no influence."""
    generator, size, at = np.random.default_rng(0), 6, 5  # 1 / √3 is rounded
    qkv, v = (generator.standard_normal((2, 7, width)).astype("float32") for width in (3 * size, size))
    changed = qkv.copy()
    changed[:, at, :size] *= 1e12
    assert np.isfinite(passes(backend, causal, None, changed, v)[1]).all()
    v[:, at] = 0
    (_, dqkv), (_, got) = passes(backend, causal, None, qkv, v), passes(backend, causal, None, changed, v)
    np.testing.assert_allclose(got, dqkv, rtol=1e-4, atol=1e-6)
