"""Attention between the tokens of sequences (n, tokens, features)."""

from __future__ import annotations

from typing import Any

from bpcore.arguments import flag, whole
from bpcore.array import Array, kind, namespace
from bpcore.expect import expect_entries, expect_features
from bpcore.functional.attention import attention, attention_backward
from bpcore.functional.linear import linear, linear_backward
from bpcore.functional.positions import rotate_heads
from bpcore.initializers import GlorotUniform, Zeros
from bpcore.module import Mode, Module, Parameter, Windows
from bpcore.modules.dropout import Dropout
from bpcore.modules.linear import linear_plus
from bpcore.modules.positions import even

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(Module):
    """u = concat(A_h v_h) W_o + b_o, A_h = softmax(q_h k_hᵀ / √(d / heads)): self-attention.

    z (n, tokens, d). mask, an optional second input (n, tokens) of booleans, is False at keys to ignore (padding); a query
    whose keys are all ignored gets A = 0. What a padded token holds, also NaN, has no influence on u of the others. Its own row
    of u is that of a query which sees the others; and dW = Σ zᵀ dqkv sums over all tokens, so that a NaN there reaches the
    gradients: in training, fill padding with finite numbers. causal: no token attends to later tokens. dropout: the p of dropout
    on A. rotary: queries and keys are rotated by their positions, see RotaryPositions. Parameters: W (d, 3 d) and b (3 d,) of
    queries, keys and values; W_o (d, d) and b_o (d,).

    Vaswani et al., 2017
    """

    further = ("mask",)

    def __init__(self, d: int, heads: int, causal: bool = False, dropout: float = 0, rotary: bool = False):
        self.d = whole("d", d, of=self)
        self.heads = whole("heads", heads, of=self)
        self.causal = flag("causal", causal, of=self)
        self.dropout = Dropout(dropout).p
        self.rotary = flag("rotary", rotary, of=self)
        self.rows_independent = not dropout  # one dropout mask is drawn for the whole batch
        if d % heads:
            raise ValueError(f"MultiHeadAttention's heads must divide d, got {heads} for {d}")
        if rotary:
            even("d / heads", d // heads, of=self)
        self.parameters = {
            "W": Parameter((self.d, 3 * self.d), GlorotUniform()),
            "b": Parameter((3 * self.d,), Zeros(), decay=False),
            "W_o": Parameter((self.d, self.d), GlorotUniform()),
            "b_o": Parameter((self.d,), Zeros(), decay=False),
        }

    def _adds(self, mode: Mode | None) -> bool:
        return mode is not None

    def forward(
        self, theta: Windows, z: Array, mask: Array | None = None, *, mode: Mode, plus: Array | None = None
    ) -> tuple[Array, Any]:
        z = expect_features(self, theta, z, self.d, theta.W, "d")
        if z.ndim != 3:
            raise ValueError(f"{self.name(theta)} expected (n, tokens, d), got z of shape {tuple(z.shape)}; reshape the data")
        expect_entries(self, theta, z, (1,))
        if mask is not None and (kind(mask) != "bool" or tuple(mask.shape) != tuple(z.shape[:2])):
            got = f"{tuple(mask.shape)} of {mask.dtype}"
            raise ValueError(
                f"{self.name(theta)} expected a mask of booleans {tuple(z.shape[:2])}, got {got}; "
                f"True marks a token, as in np.ones({tuple(z.shape[:2])}, bool)"
            )
        qkv = linear(z, theta.W, theta.b)
        if self.rotary:
            qkv = rotate_heads(qkv, self.heads, 1.0)
        keep = mode.keep(theta, self.weights_like(z), self.dropout) if mode.training and self.dropout else None
        mixed, L = attention(qkv, self.heads, self.causal, mask, keep, self.dropout)
        return linear_plus(mixed, theta.W_o, theta.b_o, plus), (z, qkv, mask, keep, mixed, L)

    def backward(self, theta: Windows, saved: Any, v: Array, gradient: Windows, need_dz: bool = True) -> Any:
        z, qkv, mask, keep, mixed, L = saved
        d = linear_backward(mixed, theta.W_o, v, gradient.W_o, gradient.b_o, True)
        assert d is not None  # since need_dz is True
        dqkv = attention_backward(qkv, mask, keep, mixed, L, d, self.heads, self.causal, self.dropout)
        if self.rotary:
            dqkv = rotate_heads(dqkv, self.heads, -1.0)
        dz = linear_backward(z, theta.W, dqkv, gradient.W, gradient.b, need_dz)
        return dz if mask is None else (dz, None)

    def weights_like(self, z: Array) -> Array:
        """An array in the shape of A, (n, heads, tokens, tokens)."""
        n, tokens, _ = z.shape
        return namespace(z).broadcast_to(z[:, :1, :1, None], (n, self.heads, tokens, tokens))
