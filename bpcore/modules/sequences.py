"""Sequences (n, tokens, features): embeddings, positions, attention, and the transformer's block."""

from __future__ import annotations

from typing import Any

from bpcore.backend import kind, namespace
from bpcore.functional import sequences as f
from bpcore.functional.arithmetic import sum_over
from bpcore.functional.linear import linear, linear_backward
from bpcore.initializers import GlorotUniform, Normal, Zeros
from bpcore.module import Module, Parameter
from bpcore.modules.activations import GELU
from bpcore.modules.containers import Residual, Sequential
from bpcore.modules.linear import Linear
from bpcore.modules.normalization import Dropout, LayerNorm


class Embedding(Module):
    """u = the rows of W that ids name: ids (...), integers from 0 to n - 1, u (..., d).

    Parameter: W (n, d), normal with standard deviation 0.02 unless `initializer` is given. Ids out of range are an error
    where values may be looked at: at the door of `fit`, when a network is called, in `evaluate`; on a CPU in every step.
    """

    rows_independent = True

    def __init__(self, n: int, d: int, initializer: Any = None):
        self.n, self.d, self.initializer = self.whole("n", n), self.whole("d", d), initializer
        self.parameters = {"W": Parameter((self.n, self.d), initializer or Normal(0.02))}

    def forward(self, theta, ids, mode):
        if kind(ids) != "integral":
            raise TypeError(f"{self.name(theta)} expected ids of an integer dtype, got {ids.dtype}; convert: ids.astype('int64')")
        mode.expect_range(self.name(theta), ids, self.n)
        return f.embedding(ids, theta.W), ids

    def backward(self, theta, saved, v, gradient, need_dz=True):
        f.embedding_backward(saved, v, gradient.W)


class Unembed(Module):
    """The output layer that shares an embedding's parameter: t = z Wᵀ, (..., d) to (..., n). Its gradient adds to W's."""

    rows_independent = True

    def __init__(self, embedding: Embedding):
        if not isinstance(embedding, Embedding):
            raise TypeError(f"Unembed expected the Embedding whose parameter it shares, got {embedding!r}")
        self.embedding = embedding
        self.parameters = {"W": embedding.parameters["W"]}

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.embedding.d, theta.W, "d")
        return linear(z, theta.W.T, None), z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return linear_backward(saved, theta.W.T, v, gradient.W.T, None, need_dz)


class PositionalEmbedding(Module):
    """u = z + W[:tokens]: a learned row for each of up to `tokens` positions. z (n, tokens, d).

    Parameter: W (tokens, d), normal with standard deviation 0.02.
    """

    rows_independent = True

    def __init__(self, tokens: int, d: int, initializer: Any = None):
        self.tokens, self.d, self.initializer = self.whole("tokens", tokens), self.whole("d", d), initializer
        self.parameters = {"W": Parameter((self.tokens, self.d), initializer or Normal(0.02))}

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.d, theta.W, "d")
        if z.ndim < 2 or z.shape[-2] > self.tokens:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(
                f"{self.name(theta)} has {self.tokens} positions, got {got}; make tokens larger or cut the sequences"
            )
        return z + theta.W[: z.shape[-2], :], z.shape

    def backward(self, theta, saved, v, gradient, need_dz=True):
        tokens = saved[-2]
        gradient.W[:tokens, :] = sum_over(namespace(v).reshape(v, (-1, tokens, self.d)), 0)
        gradient.W[tokens:, :] = 0.0
        return v


class FixedPositions(Module):
    """What positions without parameters share: d features, an even number, in the last axis, tokens in the one before."""

    rows_independent = True

    def __init__(self, d: int):
        self.d = even(self, "d", d)

    def expect_tokens(self, theta, z):
        """z, or an error unless it is (..., tokens, d) of floats."""
        if z.ndim < 2 or z.shape[-1] != self.d:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected (..., tokens, {self.d}), got {got}; pass d={z.shape[-1]} or reshape")
        return self.expect_floats(theta, z)


class SinusoidalPositions(FixedPositions):
    """u = z + sines and cosines of the position, of d / 2 wavelengths; nothing learned, d even.        Vaswani et al., 2017"""

    def forward(self, theta, z, mode):
        return self.expect_tokens(theta, z) + f.sinusoids(z.shape[-2], self.d, z), None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v


class RotaryPositions(FixedPositions):
    """u = each pair of features turned by an angle that grows with the position; d even.        Su et al., 2021"""

    def forward(self, theta, z, mode):
        return f.rotate(self.expect_tokens(theta, z), 1.0), None

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return f.rotate(v, -1.0)


def even(module: Module, name: str, value: Any) -> int:
    """value, or a ValueError unless it is an even whole number from 2 up."""
    if module.whole(name, value) % 2:
        raise ValueError(f"{type(module).__name__}'s {name} must be even, got {value!r}")
    return int(value)


class MultiHeadAttention(Module):
    """u = concat(A_h v_h) W_o + b_o, A_h = softmax(q_h k_hᵀ / √(d / heads)): self-attention.        Vaswani et al., 2017

    z (n, tokens, d); a second input (n, tokens), booleans, is False at keys to be ignored (padding); a query whose keys
    are all masked gets A = 0. causal: no token sees later ones. dropout: on A. rotary: queries and keys are turned by
    their positions. Parameters: W (d, 3 d) and b (3 d,) of queries, keys and values; W_o (d, d) and b_o (d,).
    """

    def __init__(self, d: int, heads: int, causal: bool = False, dropout: float = 0, rotary: bool = False):
        self.d, self.heads = self.whole("d", d), self.whole("heads", heads)
        self.causal, self.dropout, self.rotary = causal, Dropout(dropout).p, rotary
        self.rows_independent = not dropout  # a mask is drawn for the batch
        if d % heads:
            raise ValueError(f"MultiHeadAttention's heads must divide d, got {heads} for {d}")
        if rotary:
            even(self, "d / heads", d // heads)
        self.parameters = {
            "W": Parameter((self.d, 3 * self.d), GlorotUniform()),
            "b": Parameter((3 * self.d,), Zeros(), decay=False),
            "W_o": Parameter((self.d, self.d), GlorotUniform()),
            "b_o": Parameter((self.d,), Zeros(), decay=False),
        }

    def forward(self, theta, z, *padding, mode):
        self.expect_features(theta, z, self.d, theta.W, "d")
        if z.ndim != 3:
            raise ValueError(f"{self.name(theta)} expected (n, tokens, d), got z of shape {tuple(z.shape)}; reshape the data")
        if len(padding) > 1:
            raise ValueError(f"{self.name(theta)} expected z and at most one mask, got {1 + len(padding)} inputs")
        for mask in padding:
            if kind(mask) != "bool" or tuple(mask.shape) != tuple(z.shape[:2]):
                got = f"{tuple(mask.shape)} of {mask.dtype}"
                raise ValueError(f"{self.name(theta)} expected a mask of booleans {tuple(z.shape[:2])}, got {got}; True is kept")
        qkv = linear(z, theta.W, theta.b)
        if self.rotary:
            qkv = f.rotate_heads(qkv, self.heads, 1.0)
        keep = mode.keep(theta, self.weights_like(z), self.dropout) if mode.training and self.dropout else None
        mask = padding[0] if padding else None
        mixed, L = f.attention(qkv, self.heads, self.causal, mask, keep, self.dropout)
        return linear(mixed, theta.W_o, theta.b_o), (z, qkv, mask, keep, mixed, L)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, qkv, mask, keep, mixed, L = saved
        v = linear_backward(mixed, theta.W_o, v, gradient.W_o, gradient.b_o, True)
        dqkv = f.attention_backward(qkv, self.heads, self.causal, mask, keep, self.dropout, mixed, L, v)
        if self.rotary:
            dqkv = f.rotate_heads(dqkv, self.heads, -1.0)
        dz = linear_backward(z, theta.W, dqkv, gradient.W, gradient.b, need_dz)
        return dz if mask is None else (dz, None)

    def weights_like(self, z):
        """Something in the shape of A, (n, heads, tokens, tokens)."""
        n, tokens, _ = z.shape
        return namespace(z).broadcast_to(z[:, :1, :1, None], (n, self.heads, tokens, tokens))


class TransformerBlock(Module):
    """u = y + F(LN(y)) with y = z + Attention(LN(z)), F = Linear, GELU, Linear: the pre-norm block.        Xiong et al., 2020

    z (n, tokens, d); a second input is attention's key-padding mask. hidden: 4 d unless given. dropout: on A, and on what
    attention and F add.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        causal: bool = False,
        dropout: float = 0,
        hidden: int | None = None,
        rotary: bool = False,
    ):
        self.d, self.heads, self.causal, self.dropout, self.hidden, self.rotary = d, heads, causal, dropout, hidden, rotary
        self.rows_independent = not dropout
        width = 4 * d if hidden is None else hidden
        feed = Sequential(LayerNorm(d), Linear(d, width), GELU(), Linear(width, d), Dropout(dropout))
        self.children = {
            "norm": LayerNorm(d),
            "attention": MultiHeadAttention(d, heads, causal, dropout, rotary),
            "dropout": Dropout(dropout),
            "feed": Residual(feed),
        }

    def forward(self, theta, z, *padding, mode):
        norm, attention, dropout, feed = self.children.values()
        h, of_norm = norm.forward(theta["norm"], z, mode=mode)
        h, of_attention = attention.forward(theta["attention"], h, *padding, mode=mode)
        h, of_dropout = dropout.forward(theta["dropout"], h, mode=mode)
        u, of_feed = feed.forward(theta["feed"], z + h, mode=mode)
        return u, [of_norm, of_attention, of_dropout, of_feed]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        norm, attention, dropout, feed = self.children.values()
        v = feed.backward(theta["feed"], saved.pop(), v, gradient["feed"], True)
        d = dropout.backward(theta["dropout"], saved.pop(), v, gradient["dropout"], True)
        d = attention.backward(theta["attention"], saved.pop(), d, gradient["attention"], True)
        masked = isinstance(d, tuple)
        d = norm.backward(theta["norm"], saved.pop(), d[0] if masked else d, gradient["norm"], need_dz)
        dz = v + d if need_dz else None
        return (dz, None) if masked else dz
