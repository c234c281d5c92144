"""What modules of sequences refuse: arguments, shapes."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp

MAKE = {
    "heads that do not divide d": (lambda: bp.MultiHeadAttention(6, 4), "MultiHeadAttention's heads must divide d, got 4 for 6"),
    "heads of a block": (lambda: bp.TransformerBlock(6, 4), "MultiHeadAttention's heads must divide d, got 4 for 6"),
    "rotary heads of odd size": (
        lambda: bp.MultiHeadAttention(6, 2, rotary=True),
        r"MultiHeadAttention's d / heads must be even, got 3",
    ),
    "an odd number of features to turn": (lambda: bp.RotaryPositions(3), "RotaryPositions's d must be even, got 3"),
    "an odd number of waves": (lambda: bp.SinusoidalPositions(5), "SinusoidalPositions's d must be even, got 5"),
    "no ids": (lambda: bp.Embedding(0, 3), "Embedding's n must be a whole number from 1 up, got 0"),
    "no heads": (lambda: bp.MultiHeadAttention(4, 0), "MultiHeadAttention's heads must be a whole number from 1 up, got 0"),
    "dropout of all": (lambda: bp.TransformerBlock(4, 2, dropout=1.0), "p must be a number, 0 <= p < 1, got 1.0"),
    "no positions": (lambda: bp.PositionalEmbedding(0, 3), "PositionalEmbedding's tokens must be a whole number from 1 up"),
    "no state": (lambda: bp.LSTM(3, 0), "LSTM's n_out must be a whole number from 1 up, got 0"),
    "half a feature": (lambda: bp.GRU(1.5, 2), "GRU's n_in must be a whole number from 1 up, got 1.5"),
}


@pytest.mark.parametrize("name", MAKE)
def test_arguments(name):
    make, message = MAKE[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [bp.Unembed, bp.Recompute], ids=lambda make: make.__name__)
def test_what_is_no_module(make):
    with pytest.raises(TypeError, match=f"{make.__name__} expected .* got 3"):
        make(3)


SEQUENCES = {
    "longer than the positions": (
        bp.PositionalEmbedding(4, 6),
        (12, 5, 6),
        r"0: PositionalEmbedding has 4 positions, got .*cut the",
    ),
    "positions of rows": (bp.PositionalEmbedding(4, 6), (6,), "0: PositionalEmbedding has 4 positions, got"),
    "features of positions": (bp.PositionalEmbedding(4, 6), (12, 3, 5), "0: PositionalEmbedding expected features 6 .* pass d=5"),
    "features of waves": (
        bp.SinusoidalPositions(4),
        (12, 3, 6),
        r"0: SinusoidalPositions expected \(..., tokens, 4\), got .*d=6",
    ),
    "features turned": (bp.RotaryPositions(4), (4,), r"0: RotaryPositions expected \(..., tokens, 4\), got z of shape \(4,\)"),
    "features of attention": (bp.MultiHeadAttention(4, 2), (12, 3, 6), "0: MultiHeadAttention expected features 4 .* pass d=6"),
    "attention of rows": (
        bp.MultiHeadAttention(4, 2),
        (12, 4),
        r"0: MultiHeadAttention expected \(n, tokens, d\), got .*reshape",
    ),
    "a block of images": (
        bp.TransformerBlock(4, 2),
        (2, 3, 3, 4),
        r"0.attention: MultiHeadAttention expected \(n, tokens, d\), got",
    ),
    "features of a block": (bp.TransformerBlock(4, 2), (12, 3, 6), "0.norm: LayerNorm expected features 4 in the last axis"),
    "rows through time": (bp.LSTM(3, 2), (12, 3), r"0: LSTM expected \(n, tokens, 3\), got z of shape \(12, 3\); reshape"),
    "no token": (bp.GRU(3, 2), (12, 0, 3), r"0: GRU expected at least one entry along axis 1, got z of shape \(12, 0, 3\)"),
    "features through time": (bp.GRU(3, 2), (12, 5, 4), "0: GRU expected features 3 in the last axis, .* pass n_in=4"),
    "features to ids": (
        bp.Unembed(bp.Embedding(5, 3)),
        (12, 5, 4),
        "0: Unembed expected features 3 in the last axis, .* pass d=4",
    ),
    "recomputed": (bp.Recompute(bp.LSTM(3, 2)), (12, 5, 4), "0.body: LSTM expected features 3 in the last axis"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_shapes(name):
    module, shape, message = SEQUENCES[name]
    with pytest.raises(ValueError, match=message):
        bp.Network(bp.Sequential(module), dtype="float64")(np.zeros(shape))


class Pool(bp.Module):
    """The mean over tokens."""

    def forward(self, theta, z, mask=None, *, mode):
        return bp.namespace(z).mean(z, axis=1), z.shape[1]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return bp.namespace(v).stack([v / saved] * saved, axis=1), None


class Required(Pool):
    def forward(self, theta, z, mask, mode):
        return super().forward(theta, z, mask, mode=mode)


@pytest.mark.parametrize("wrap", [lambda pool: pool, bp.Recompute], ids=["child", "grandchild"])
def test_a_mask_that_a_users_module_would_not_get(wrap):
    block = bp.TransformerBlock(4, 2)
    with pytest.raises(
        TypeError, match=r"Pool\(\) would not get mask, which its forward takes; write further = \('mask',\) in the class"
    ):
        bp.Sequential(block, wrap(Pool()))
    bp.Sequential(bp.Linear(4, 4), Pool())  # no mask comes by

    class Declared(Pool):
        further = ("mask",)

    bp.Sequential(block, Declared())


def test_an_input_that_a_chain_does_not_hand_on():
    net = bp.Network(bp.Sequential(bp.Linear(4, 4), Required()), "numpy")
    with pytest.raises(TypeError, match=r"takes inputs \(z, mask\), got 1; .* modules with further = \('mask',\) in the class"):
        net(np.ones((2, 3, 4)))
