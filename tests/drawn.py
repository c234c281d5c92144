"""Random configurations of each module: how many, and what each is held to.

BPCORE_EXAMPLES=200 is a full run, each of them through bp.check_module too; otherwise 20 are drawn, and a part is checked.
"""

from __future__ import annotations

import math
import os
import zlib
from typing import Any

import numpy as np
from cases import ORACLES
from conftest import BackendUnderTest
from harness import Case, assert_close, autograd, run
from hypothesis import settings
from hypothesis import strategies as st
from references import PyTorch

import bpcore as bp

TOLERANCE = 1e-9
COUNT = int(os.environ.get("BPCORE_EXAMPLES", "20"))
examples = settings(max_examples=COUNT, deadline=None, derandomize=True, database=None, print_blob=True)
small = st.integers(1, 3)
check = st.just(True) if COUNT >= 200 else st.integers(0, 4).map(lambda n: n == 4)  # whether bp.check_module too


def one_or_two(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """A number, or a pair of them."""
    return numbers | st.tuples(numbers, numbers)


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def agrees(torch: Any, module: bp.Module, *inputs: Any, check: bool = False) -> None:
    """Forward, dz and every dθ are PyTorch's, in float64; `check`: and the module keeps its contract."""
    without = tuple(i for i, x in enumerate(inputs) if not isinstance(x, tuple) and x.dtype.kind in "biu")
    id = f"{module!r} at {[x if isinstance(x, tuple) else x.shape for x in inputs]}"
    one = Case(id, lambda: module, inputs, without, torch=ORACLES[type(module).__name__])
    got = run(one, BackendUnderTest("numpy", bp.get_backend("numpy")), "float64")
    assert_close(got, autograd(PyTorch(torch), one), TOLERANCE, "float64")
    if check:
        bp.check_module(module, *inputs, seed=zlib.crc32(one.id.encode()))


def spans(kernel, dilation=1):
    return [d * (k - 1) + 1 for k, d in zip(both(kernel), both(dilation), strict=True)]


@st.composite
def images(draw, channels, kernel=1, dilation=1, padding=0):
    """The shape of images that the kernel fits, from those of one entry up; batches of 1 to 3."""
    around = (0, 0) if padding == "valid" else both(padding)
    least = [1, 1] if padding == "same" else [max(1, s - 2 * p) for s, p in zip(spans(kernel, dilation), around, strict=True)]
    return draw(small), *(n + draw(st.integers(0, 5)) for n in least), channels


@st.composite
def convolutions(draw):
    """Conv2d and the shape of its images; depthwise where a group has one channel."""
    groups, kernel, dilation = draw(small), draw(one_or_two(small)), draw(one_or_two(st.integers(1, 2)))
    padding = draw(one_or_two(st.integers(0, 2)) | st.sampled_from(["same", "valid"]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = bp.Conv2d(c_in, c_out, kernel, draw(one_or_two(small)), padding, dilation, groups, draw(st.booleans()))
    return module, draw(images(c_in, kernel, dilation, padding))


@st.composite
def convolutions_along_one_axis(draw):
    groups, kernel, dilation = draw(small), draw(st.integers(1, 4)), draw(small)
    padding = draw(st.integers(0, 3) | st.sampled_from(["same", "valid"]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = bp.Conv1d(c_in, c_out, kernel, draw(small), padding, dilation, groups, draw(st.booleans()))
    around = padding if isinstance(padding, int) else 0
    least = 1 if padding == "same" else max(1, dilation * (kernel - 1) + 1 - 2 * around)
    return module, (draw(small), least + draw(st.integers(0, 6)), c_in)


@st.composite
def transposed_convolutions(draw):
    kernel, stride, dilation = draw(one_or_two(small)), draw(one_or_two(small)), draw(one_or_two(st.integers(1, 2)))
    padding, extra = draw(one_or_two(st.integers(0, 2))), draw(st.integers(0, min(both(stride)) - 1))
    c_in, c_out = draw(small), draw(small)
    module = bp.ConvTranspose2d(c_in, c_out, kernel, stride, padding, dilation, extra, draw(st.booleans()))
    sizes = []
    for s, span, p in zip(both(stride), spans(kernel, dilation), both(padding), strict=True):
        least = next(n for n in range(1, 9) if (n - 1) * s + span + extra - 2 * p >= 1)
        sizes.append(least + draw(st.integers(0, 3)))
    return module, (draw(small), *sizes, c_in)


@st.composite
def pools(draw, kind):
    kernel = draw(one_or_two(small))
    padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(*(st.integers(0, k - 1) for k in both(kernel))))
    stride = draw(st.none() | one_or_two(small))
    return kind(kernel, stride, padding), draw(images(draw(small), kernel, 1, padding))


@st.composite
def rows_of(draw, channels, axes):
    """A shape (n, ..., channels) with so many axes between at most."""
    return draw(st.integers(1, 4)), *(draw(small) for _ in range(draw(st.integers(0, axes)))), channels


@st.composite
def norms(draw, kind):
    groups, eps = draw(small), draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    c = groups * draw(small)
    shape = draw(rows_of(c, 3))
    if math.prod(shape[1:]) // groups < 2:  # one number is its own mean: 0 / √ε amplifies rounding alone
        shape = (shape[0], 2, *shape[1:])
    if kind is bp.GroupNorm:
        return bp.GroupNorm(groups, c, eps), shape
    return bp.BatchNorm(c, draw(st.sampled_from([0.1, 0.3, 1.0])), eps), (shape[0] + 1, *shape[1:])


@st.composite
def others(draw, kind):
    c = draw(small)
    if kind is bp.Upsample:
        return bp.Upsample(draw(st.integers(1, 4))), draw(images(c))
    if kind is bp.GlobalAvgPool:
        return bp.GlobalAvgPool(), (*draw(images(c))[: draw(st.integers(2, 3))], c)
    return bp.Dropout2d(draw(st.sampled_from([0, 0.2, 0.7]))), draw(rows_of(c, 3))


tokens = st.integers(1, 6)


even = st.integers(1, 3).map(lambda n: 2 * n)


def ids_of(draw, n, shape):
    """Ids in range of some integer dtype, most of them twice."""
    dtype = draw(st.sampled_from(["int64", "int32", "uint8", "int16"]))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, n, shape).astype(dtype)


@st.composite
def embeddings(draw, kind):
    n, d = draw(st.integers(1, 8)), draw(small)
    shape = (draw(small), *(draw(tokens) for _ in range(draw(st.integers(0, 2)))))
    if kind is bp.Embedding:
        return bp.Embedding(n, d), ids_of(draw, n, shape)
    return bp.Unembed(bp.Embedding(n, d)), (*shape, d)


@st.composite
def positions(draw, kind):
    d, shape = draw(even), (draw(small), *([draw(small)] if draw(st.booleans()) else []), draw(tokens))
    if kind is bp.PositionalEmbedding:
        return bp.PositionalEmbedding(shape[-1] + draw(st.integers(0, 3)), d), (*shape, d)
    return kind(d), (*shape, d)


@st.composite
def attentions(draw, kind):
    """An attention or a transformer block, its input, and sometimes a mask: of padding, of holes, of whole rows."""
    heads, rotary = draw(small), draw(st.booleans())
    d = heads * draw(even if rotary else small)
    options = {"causal": draw(st.booleans()), "dropout": draw(st.sampled_from([0, 0, 0.3])), "rotary": rotary}
    if kind is bp.TransformerBlock:
        options["hidden"] = draw(st.none() | st.integers(1, 5))
        d = max(d, 2)  # LayerNorm of one feature is zero
    shape = draw(small), draw(tokens), d + d % heads
    if rotary and (shape[2] // heads) % 2:
        shape = (*shape[:2], 2 * shape[2])
    module = kind(shape[2], heads, **options)
    masks = draw(st.sampled_from(["none", "padding", "holes", "causal holes"]))
    if masks == "none":
        return module, shape
    keep = np.random.default_rng(draw(st.integers(0, 99))).random(shape[:2]) < 0.6
    if masks == "padding":
        keep = np.arange(shape[1]) < np.asarray([draw(st.integers(0, shape[1])) for _ in range(shape[0])])[:, None]
    elif masks == "causal holes":
        keep[:, 0] = True  # so that every query sees a key, and PyTorch's own layer is the oracle
    return module, shape, keep


@st.composite
def recurrences(draw, kind):
    n_in, n_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return kind(n_in, n_out), (draw(small), draw(st.integers(1, 8)), n_in)


DRAWN = {
    bp.Conv2d: convolutions(),
    bp.Conv1d: convolutions_along_one_axis(),
    bp.ConvTranspose2d: transposed_convolutions(),
    **{kind: pools(kind) for kind in (bp.MaxPool2d, bp.AvgPool2d)},
    **{kind: norms(kind) for kind in (bp.BatchNorm, bp.GroupNorm)},
    **{kind: others(kind) for kind in (bp.Upsample, bp.GlobalAvgPool, bp.Dropout2d)},
    **{kind: embeddings(kind) for kind in (bp.Embedding, bp.Unembed)},
    **{kind: positions(kind) for kind in (bp.PositionalEmbedding, bp.SinusoidalPositions, bp.RotaryPositions)},
    **{kind: attentions(kind) for kind in (bp.MultiHeadAttention, bp.TransformerBlock)},
    **{kind: recurrences(kind) for kind in (bp.LSTM, bp.GRU)},
}
