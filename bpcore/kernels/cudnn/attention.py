"""Attention by cuDNN, in float16. The matrix of scores is never stored, and both directions repeat their bits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy

from bpcore.functional.attention import attention, attention_backward
from bpcore.functional.convolution import chunks
from bpcore.kernels.cudnn.engine.plans import CUDNN, FLOAT, HALVES, TYPES, aligned, plan, read, run, written
from bpcore.primitive import twin

QUERIES, KEYS, VALUES, MIXED, SUMS, D_MIXED, D_QUERIES, D_KEYS, D_VALUES, BIAS = range(1, 11)  # uids
PACKED, D_PACKED = (QUERIES, KEYS, VALUES), (D_QUERIES, D_KEYS, D_VALUES)
LARGEST = 256  # features of a head
WORKSPACE, PART = 2 << 30, 1 << 30  # bytes, at most; the bytes that a part of the examples should need
SMALL = 1 << 24  # multiplications of scores: below, a plan saves less than it takes to build, and lengths may vary


class Attention(NamedTuple):
    """Attention, forward or backward. masked: whether there is padding."""

    backward: bool
    n: int
    tokens: int
    heads: int
    d: int
    causal: bool
    masked: bool
    char: str
    without: tuple[Any, ...] = ()  # the algorithm of the backward function is deterministic by itself
    workspace: int = WORKSPACE
    sizes: dict[int, int] | None = None

    def describe(self, graph: Any) -> None:
        """Add the tensors and the operation to the graph."""
        n, t, h, d, kind = self.n, self.tokens, self.heads, self.d, TYPES[self.char]
        packed = [n, h, t, d], [t * 3 * h * d, d, 3 * h * d, 1]
        mixed = [n, h, t, d], [t * h * d, d, h * d, 1]
        sums = [n, h, t, 1], [h * t, t, 1, 1]
        how: dict[str, Any] = {"attn_scale": 1 / math.sqrt(d), "use_causal_mask": self.causal}
        how |= {name: read(graph, uid, packed, kind) for name, uid in zip("qkv", PACKED, strict=True)}
        if self.masked:  # the stride over queries is 0; with a size of 1 gradients are wrong, without an error
            how["bias"] = read(graph, BIAS, ([n, 1, t, t], [t, t, 0, 1]), kind)
        if not self.backward:
            u, statistics = graph.sdpa(name="attention", generate_stats=True, **how)
            written(u, MIXED, mixed, kind)
            written(statistics, SUMS, sums, FLOAT)
            return
        how |= {
            "o": read(graph, MIXED, mixed, kind),
            "dO": read(graph, D_MIXED, mixed, kind),
            "stats": read(graph, SUMS, sums, FLOAT),
        }
        results = graph.sdpa_backward(name="attention_backward", use_deterministic_algorithm=True, **how)
        for tensor, uid in zip(results, D_PACKED, strict=True):
            written(tensor, uid, packed, kind)


def described(backward: bool, qkv: Any, heads: int, causal: bool, padding: Any) -> Attention:
    """The Attention of these arguments."""
    n, tokens, width = qkv.shape
    return Attention(backward, n, tokens, heads, width // (3 * heads), causal, padding is not None, qkv.dtype.char)


def thirds(uids: tuple[int, ...], qkv: Any) -> dict[int, int]:
    """The addresses of the three parts of qkv, by uid."""
    step = qkv.shape[2] // 3 * qkv.dtype.itemsize
    return {uid: qkv.data.ptr + i * step for i, uid in enumerate(uids)}


def without_hidden(qkv: Any, padding: Any) -> Any:
    """qkv with zeros for the keys and values that padding hides: cuDNN would multiply them by 0, and 0 times infinity is NaN."""
    copy = qkv.copy()
    later = copy.reshape(*qkv.shape[:2], 3, qkv.shape[2] // 3)[:, :, 1:, :]
    later[...] = cupy.where(padding[:, :, None, None], later, cupy.zeros((), qkv.dtype))
    return copy


def attend(what: Attention, qkv: Any, padding: Any, addresses: dict[int, int]) -> None:
    """Run a plan of attention, with padding as a bias: 0 where a key is seen, -∞ where it is not."""
    if padding is not None:
        qkv = without_hidden(qkv, padding)
    addresses |= thirds(PACKED, qkv)
    if padding is not None:
        bias = cupy.where(padding, cupy.float32(0), cupy.float32(-math.inf)).astype(qkv.dtype)
        addresses[BIAS] = bias.data.ptr
    run(what, addresses)


def large_heads(qkv: Any, heads: int, causal: bool, padding: Any, keep: Any, p: float) -> bool:
    """Whether there is no dropout, qkv is of a size and dtype that cuDNN is good for, and cuDNN has a plan.

    Of tokens that come later than a query, with `causal`, cuDNN wants finite numbers: 0 times infinity is NaN.
    """
    fits = of_a_kind(qkv, heads, padding, keep)
    return fits and plan(described(False, qkv, heads, causal, padding)) is not None


def of_a_kind(qkv: Any, heads: int, padding: Any, keep: Any) -> bool:
    """Whether there is no dropout, and the arrays are of a size and dtype that cuDNN is good for."""
    n, tokens, width = qkv.shape
    if keep is not None or tokens < 2 or n * tokens * tokens * width < 3 * SMALL or qkv.dtype.char not in HALVES:
        return False
    d = width // (3 * heads)
    fits = d % 8 == 0 and d <= LARGEST and CUDNN.nonempty(qkv) and aligned(qkv)
    return fits and CUDNN.mask(padding) and (padding is None or padding.shape == (n, tokens))


@twin(attention, serves=large_heads)
def _(qkv, heads, causal, padding, keep, p):
    n, tokens, width = qkv.shape
    u, sums = cupy.empty((n, tokens, width // 3), qkv.dtype), cupy.empty((n, heads, tokens), cupy.float32)
    attend(described(False, qkv, heads, causal, padding), qkv, padding, {MIXED: u.data.ptr, SUMS: sums.data.ptr})
    if padding is not None:  # a query that sees nothing has -∞ by cuDNN, and 0 here
        sums = cupy.where(sums == -math.inf, cupy.float32(0), sums)
    return u, sums


def parts(qkv: Any, heads: int) -> list[slice]:
    """The examples, in parts. cuDNN 9.19 needs 2 n · heads · tokens² bytes for gradients that repeat their bits."""
    n, tokens, _ = qkv.shape
    return [*chunks(n, 2 * heads * tokens * tokens, PART)]


def large_heads_backward(qkv: Any, padding: Any, keep: Any, u: Any, L: Any, v: Any, heads: int, causal: bool, p: float) -> bool:
    """As `large_heads`, for u, L and v too."""
    computed = L.dtype.char == "f" and L.flags.c_contiguous and CUDNN.dense(qkv, u, v) and aligned(u, v)
    if not (computed and v.shape == u.shape and of_a_kind(qkv, heads, padding, keep)):
        return False
    whats = ((described(True, qkv[part], heads, causal, padding), L[part]) for part in parts(qkv, heads))
    return all(aligned(sums) and plan(what) is not None for what, sums in whats)


@twin(attention_backward, serves=large_heads_backward)
def _(qkv, padding, keep, u, L, v, heads, causal, p):
    dqkv = cupy.empty_like(qkv)
    for part in parts(qkv, heads):
        saved = {MIXED: u[part].data.ptr, SUMS: L[part].data.ptr, D_MIXED: v[part].data.ptr}
        what = described(True, qkv[part], heads, causal, padding)
        seen = None if padding is None else padding[part]
        attend(what, qkv[part], seen, saved | thirds(D_PACKED, dqkv[part]))
    return dqkv
