"""The block of a transformer."""

from __future__ import annotations

from typing import Any

from bpcore.arguments import flag, whole
from bpcore.array import Array
from bpcore.functional.arithmetic import add
from bpcore.module import Mode, Module, Windows, run, run_backward, run_backward_plus, run_plus
from bpcore.modules.activations import GELU
from bpcore.modules.attention import MultiHeadAttention
from bpcore.modules.containers import Residual, Sequential
from bpcore.modules.dropout import Dropout
from bpcore.modules.linear import Linear
from bpcore.modules.normalization import LayerNorm

__all__ = ["TransformerBlock"]


class TransformerBlock(Module):
    """u = y + F(LN(y)) with y = z + Attention(LN(z)), F = Linear, GELU, Linear: the pre-norm block.

    z (n, tokens, d). mask: an optional second input, see MultiHeadAttention, as for heads, causal and rotary. hidden: the width
    of F, by default 4 d. dropout: the p of dropout on A, and on the outputs of Attention and of F.

    Xiong et al., 2020
    """

    further = ("mask",)

    def __init__(
        self,
        d: int,
        heads: int,
        causal: bool = False,
        dropout: float = 0,
        hidden: int | None = None,
        rotary: bool = False,
    ):
        self.d = whole("d", d, of=self)
        self.heads = whole("heads", heads, of=self)
        self.hidden = None if hidden is None else whole("hidden", hidden, of=self)
        self.dropout = Dropout(dropout).p
        self.causal = flag("causal", causal, of=self)
        self.rotary = flag("rotary", rotary, of=self)
        self.rows_independent = not dropout
        width = 4 * self.d if self.hidden is None else self.hidden
        feed = Sequential(LayerNorm(d), Linear(d, width), GELU(), Linear(width, d), Dropout(dropout))
        self.children = {
            "norm": LayerNorm(d),
            "attention": MultiHeadAttention(d, heads, causal, dropout, rotary),
            "dropout": Dropout(dropout),
            "feed": Residual(feed),
        }

    def forward(self, theta: Windows, z: Array, mask: Array | None = None, *, mode: Mode) -> tuple[Array, list[Any]]:
        norm, attention, dropout, feed = self.children.values()
        h, of_norm = run(norm, theta["norm"], (z,), mode)
        added = isinstance(dropout, Dropout) and dropout._own and dropout.idle(mode)
        if added:
            h, of_attention = run_plus(attention, theta["attention"], (h, mask), mode, z)
        else:
            h, of_attention = run(attention, theta["attention"], (h, mask), mode)
        h, of_dropout = run(dropout, theta["dropout"], (h,), mode)
        u, of_feed = run(feed, theta["feed"], (h if added else add(z, h),), mode)
        return u, [of_norm, of_attention, of_dropout, of_feed]

    def backward(self, theta: Windows, saved: list[Any], v: Array, gradient: Windows, need_dz: bool = True) -> Any:
        norm, attention, dropout, feed = self.children.values()
        v = run_backward(feed, theta["feed"], saved.pop(), v, gradient["feed"])
        d = run_backward(dropout, theta["dropout"], saved.pop(), v, gradient["dropout"])
        d = run_backward(attention, theta["attention"], saved.pop(), d, gradient["attention"])
        masked = isinstance(d, tuple)
        dz = run_backward_plus(norm, theta["norm"], saved, d[0] if masked else d, gradient["norm"], need_dz, v)
        return (dz, None) if masked else dz
