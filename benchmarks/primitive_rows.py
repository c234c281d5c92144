"""Arguments for every primitive at real sizes: those of a GPT and of a ResNet. `rows()` has them by the primitive's name.

An activation and an optimiser's update need no row: their parameters say what they take. A row says what must move: by default
each array that is read once, each that is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from primitive_draw import REAL, Draw, Sizes, flat, logits, scores, stage, values, wide

from bpcore import counting
from bpcore import functional as f
from bpcore.array import Array
from bpcore.functional.convolution import Placement
from bpcore.library import is_array
from bpcore.primitive import PRIMITIVES, Primitive

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """A primitive's arguments of one size.

    moves: how often an argument must move, by its name, where that is not once; "result" is what is returned. part: the part of
    the products' operations that must be done, half of them under a causal mask.
    """

    label: str
    draw: Callable[[Draw], Arguments]
    moves: dict[str, float] = field(default_factory=dict)
    part: float = 1.0


def linear(d: Draw) -> Arguments:
    return flat(d), d.z(d.sizes.d, d.sizes.hidden), d.z(d.sizes.hidden)


def linear_backward(d: Draw) -> Arguments:
    z, W, b = linear(d)
    return z, W, wide(d), d.out(*W.shape), d.out(*b.shape), True


def linear_relu_backward(d: Draw) -> Arguments:
    z, W, *rest = linear_backward(d)
    return z, W, f.relu(wide(d)), *rest


def attention(d: Draw) -> Arguments:
    return d.z(d.sizes.n, d.sizes.tokens, 3 * d.sizes.d), d.sizes.heads, True, None, None, 0.0


def attention_backward(d: Draw) -> Arguments:
    qkv, heads, causal, padding, keep, p = attention(d)
    saved = f.attention(qkv, heads, causal, padding, keep, p)
    return qkv, padding, keep, *saved, d.z(d.sizes.n, d.sizes.tokens, d.sizes.d), heads, causal, p


def layer_norm_backward(d: Draw) -> Arguments:
    n = d.sizes.d
    z, gamma = flat(d), d.z(n)
    _, mean, scale = f.layer_norm(z, gamma, d.z(n), 1e-5)
    return z, mean, scale, gamma, flat(d), d.out(n), d.out(n), True, flat(d)


def rms_norm_backward(d: Draw) -> Arguments:
    z, gamma = flat(d), d.z(d.sizes.d)
    return z, f.rms_norm(z, gamma, 1e-6)[1], gamma, flat(d), d.out(d.sizes.d), True, flat(d)


def group_norm(d: Draw) -> Arguments:
    shape = stage(d, 0)
    return d.z(*shape), d.z(shape[-1]), d.z(shape[-1]), 8, 1e-5


def group_norm_backward(d: Draw) -> Arguments:
    z, gamma, beta, groups, eps = group_norm(d)
    _, mean, scale = f.group_norm(z, gamma, beta, groups, eps)
    return z, mean, scale, gamma, d.z(*z.shape), d.out(*gamma.shape), d.out(*gamma.shape), True


def batch_norm(i: int) -> Callable[[Draw], Arguments]:
    def draw(d: Draw) -> Arguments:
        shape = stage(d, i)
        z, c = d.z(*shape), shape[-1]
        return z, *f.batch_statistics(z), d.z(c), d.z(c), 1e-5

    return draw


def batch_norm_backward(i: int) -> Callable[[Draw], Arguments]:
    def draw(d: Draw) -> Arguments:
        z, mean, variance, gamma, _, eps = batch_norm(i)(d)
        return z, mean, variance, gamma, d.z(*z.shape), eps, True, d.out(*gamma.shape), d.out(*gamma.shape), True

    return draw


class Convolution(NamedTuple):
    """A convolution of a ResNet: its kernel from stage i to stage `to`; depthwise: a group for each channel."""

    label: str
    i: int
    to: int
    kernel: int = 3
    depthwise: bool = False

    @property
    def placement(self) -> Placement:
        stride, padding = 1 + self.to - self.i, self.kernel // 2
        return Placement((self.kernel, self.kernel), (stride, stride), ((padding, padding), (padding, padding)))

    def weights(self, d: Draw) -> Array:
        c, out = d.sizes.channels[self.i], d.sizes.channels[self.to]
        return d.z(self.kernel, self.kernel, 1 if self.depthwise else c, out)

    def forward(self, d: Draw) -> Arguments:
        return d.z(*stage(d, self.i)), self.weights(d), None, self.placement, d.sizes.channels[self.i] if self.depthwise else 1

    def backward(self, d: Draw) -> Arguments:
        z, W, _, placement, groups = self.forward(d)
        return z, W, d.z(*stage(d, self.to)), placement, groups, d.out(*W.shape), None, True


def convolutions(sizes: Sizes) -> list[Convolution]:
    stages = range(len(sizes.channels))
    return [
        *(Convolution(f"3x3, stage {i + 1}", i, i) for i in stages),
        *(Convolution(f"3x3 stride 2, stage {i} to {i + 1}", i - 1, i) for i in stages[1:]),
        Convolution("1x1, stage 1", 0, 0, 1),
        Convolution("depthwise, stage 1", 0, 0, 3, True),
    ]


DOUBLE = Placement((2, 2), (2, 2))  # halves an image, or doubles it


def conv_transpose2d(d: Draw) -> Arguments:
    """From stage 2 to stage 1."""
    _, h, w, out = stage(d, 0)
    z = d.z(*stage(d, 1))
    return z, d.z(2, 2, out, z.shape[-1]), d.z(out), DOUBLE, h, w


def conv_transpose2d_backward(d: Draw) -> Arguments:
    z, W, b, placement, h, w = conv_transpose2d(d)
    return z, W, d.z(len(z), h, w, len(b)), placement, d.out(*W.shape), d.out(*b.shape), True


def avg_pool2d_backward(d: Draw) -> Arguments:
    n, h, w, c = stage(d, 0)
    return d.z(n, h // 2, w // 2, c), DOUBLE, h, w


def max_pool2d_backward(d: Draw) -> Arguments:
    return f.max_pool2d(d.z(*stage(d, 0)), DOUBLE)[1], *avg_pool2d_backward(d)


def recurrent(d: Draw, gates: int) -> tuple[Array, ...]:
    n, tokens, m, k = d.sizes.recurrent
    return d.z(n, tokens, m), d.z(m, gates * k), d.z(k, gates * k), d.z(gates * k)


def lstm_backward(d: Draw) -> Arguments:
    z, W, U, b = recurrent(d, 4)
    h, gates, c = f.lstm(z, W, U, b)
    return z, W, U, h, gates, c, d.z(*h.shape), *(d.out(*x.shape) for x in (W, U, b)), True


def gru_backward(d: Draw) -> Arguments:
    z, W, U, b = recurrent(d, 3)
    h, gates = f.gru(z, W, U, b, b)
    return z, W, U, h, gates, d.z(*h.shape), *(d.out(*x.shape) for x in (W, U, b, b)), True


def cross_entropy_backward(d: Draw) -> Arguments:
    y = d.whole(d.sizes.vocabulary, d.sizes.rows)
    return f.cross_entropy(logits(d), y, None, 0.0)[1], y, None, 1.0, 0.0


def clip_factor(d: Draw) -> Arguments:
    g = d.z(d.sizes.parameters, dtype="float32")
    return g, f.squared_norm(g), 1.0


def gathered(d: Draw) -> Arguments:
    return d.z(d.sizes.parameters), 2.0, d.out(d.sizes.parameters, dtype="float32")


def zeros_and_ones(d: Draw) -> Array:
    return d.place(d.generator.integers(0, 2, (d.sizes.rows, d.sizes.d)), d.dtype)


# Of activations and updates, by the parameter's name.
CONSTANTS: dict[str, Any] = {
    "slope": 0.01,
    "alpha": 1.0,
    "step": 3,
    "factor": 0.5,
    "lr": 1e-3,
    "momentum": 0.9,
    "nesterov": False,
    "decay": 0.1,
    "rho": 0.99,
    "eps": 1e-8,
    "beta1": 0.9,
    "beta2": 0.999,
    "decoupled": True,
    "momentum_decay": 4e-3,
}


def elementwise(known: Primitive) -> Row:
    """The row of an activation, (z), or of its backward function, (z or u, v); a constant may follow."""

    def draw(d: Draw) -> Arguments:
        return tuple(wide(d) if name in ("z", "u", "v") else CONSTANTS[name] for name in known.signature.parameters)

    return Row("rows x hidden", draw)


def update(known: Primitive, label: str = "parameters", **constants: Any) -> Row:
    """The row of an optimiser's update: all arrays are vectors of float32."""

    def draw(d: Draw) -> Arguments:
        n, its = d.sizes.parameters, CONSTANTS | constants
        vector = {"g": d.z, "theta": d.z, "m": d.z, "v": d.positive, "c": d.positive}
        return tuple(vector[name](n, dtype="float32") if name in vector else its[name] for name in known.signature.parameters)

    return Row(label, draw)


def rows(sizes: Sizes = REAL) -> dict[str, list[Row]]:
    """The rows of each primitive, by its name."""
    norms = (("stage 1", 0), (f"stage {len(sizes.channels)}", len(sizes.channels) - 1))
    table = {
        "matmul": [
            Row("queries, keys", lambda d: (values(d), d.backend.xp.matrix_transpose(values(d)))),
            Row("rows, vocabulary", lambda d: (flat(d), d.z(d.sizes.vocabulary, d.sizes.d).T)),
        ],
        "sparse_product": [Row("scores, values", lambda d: (scores(d), values(d)))],
        "summation": [
            Row("all", lambda d: (flat(d), None, False)),
            Row("over rows", lambda d: (flat(d), 0, False)),
            Row("over features", lambda d: (flat(d), -1, False)),
            Row("over pixels", lambda d: (d.z(*stage(d, 0)), (1, 2), False)),
        ],
        "keep_mask": [Row("rows x hidden", lambda d: (wide(d), 0.1, (7, 3, 1, 0)), {"like": 0})],
        "dropout": [Row("rows x hidden", lambda d: (wide(d), d.mask(d.sizes.rows, d.sizes.hidden), 0.1))],
        "attention": [Row("causal", attention, part=0.5)],
        "attention_backward": [Row("causal", attention_backward, part=0.5)],
        **{name: [Row("rows x d", lambda d: (flat(d), flat(d)))] for name in ("add", "subtract", "multiply")},
        "divide": [Row("rows x d", lambda d: (flat(d), d.positive(d.sizes.rows, d.sizes.d)))],
        "negative": [Row("rows x d", lambda d: (flat(d),))],
        "exp": [Row("rows x d", lambda d: (flat(d),))],
        "log": [Row("rows x d", lambda d: (d.positive(d.sizes.rows, d.sizes.d),))],
        "joined": [Row("rows x d", lambda d: (flat(d), flat(d), 1))],
        "power": [Row("rows x hidden", lambda d: (wide(d), 3))],
        "linear": [Row("d to hidden", linear)],
        "linear_add": [Row("d to hidden", lambda d: (*linear(d), wide(d)))],
        "linear_backward": [Row("d to hidden", linear_backward)],
        "linear_relu": [Row("d to hidden", linear)],
        "linear_gelu_backward": [Row("d to hidden", lambda d: (*linear_backward(d)[:2], wide(d), *linear_backward(d)[2:]))],
        "linear_relu_backward": [Row("d to hidden", linear_relu_backward)],
        "batch_statistics": [Row(label, lambda d, i=i: batch_norm(i)(d)[:1]) for label, i in norms],
        "batch_norm": [Row(label, batch_norm(i)) for label, i in norms],
        # z and v are read for the sums, and again for dz
        "batch_norm_backward": [Row(label, batch_norm_backward(i), {"z": 2, "v": 2}) for label, i in norms],
        "conv2d": [Row(of.label, of.forward) for of in convolutions(sizes)],
        "conv2d_backward": [Row(of.label, of.backward) for of in convolutions(sizes)],
        "conv_transpose2d": [Row("2x2, stage 2 to 1", conv_transpose2d)],
        "conv_transpose2d_backward": [Row("2x2, stage 2 to 1", conv_transpose2d_backward)],
        # only the rows of W that are asked for are read, as many bytes as are returned
        "embedding": [
            Row(
                "rows of vocabulary",
                lambda d: (d.whole(d.sizes.vocabulary, d.sizes.n, d.sizes.tokens), d.z(d.sizes.vocabulary, d.sizes.d)),
                {"W": 0, "result": 2},
            )
        ],
        "embedding_backward": [
            Row(
                "rows of vocabulary",
                lambda d: (d.whole(d.sizes.vocabulary, d.sizes.rows), flat(d), d.out(d.sizes.vocabulary, d.sizes.d)),
            )
        ],
        "scatter_add": [
            Row(
                "rows of vocabulary",
                lambda d: (flat(d), d.whole(d.sizes.vocabulary, d.sizes.rows), d.out(d.sizes.vocabulary, d.sizes.d)),
            )
        ],
        "squared_error": [Row("rows x d", lambda d: (flat(d), flat(d), None))],
        "squared_error_backward": [Row("rows x d", lambda d: (flat(d), flat(d), None, 1.0))],
        "huber": [Row("rows x d", lambda d: (flat(d), flat(d), None, 1.0))],
        "huber_backward": [Row("rows x d", lambda d: (flat(d), flat(d), None, 1.0, 1.0))],
        "logistic": [Row("rows x d", lambda d: (flat(d), zeros_and_ones(d), None))],
        "logistic_backward": [Row("rows x d", lambda d: (flat(d), zeros_and_ones(d), None, 1.0))],
        "cross_entropy": [
            Row("rows x vocabulary", lambda d: (logits(d), d.whole(d.sizes.vocabulary, d.sizes.rows), None, 0.0)),
        ],
        "cross_entropy_backward": [Row("rows x vocabulary", cross_entropy_backward)],
        "layer_norm": [Row("rows x d", lambda d: (flat(d), d.z(d.sizes.d), d.z(d.sizes.d), 1e-5))],
        "layer_norm_backward": [Row("rows x d", layer_norm_backward)],
        "rms_norm": [Row("rows x d", lambda d: (flat(d), d.z(d.sizes.d), 1e-6))],
        "rms_norm_backward": [Row("rows x d", rms_norm_backward)],
        "group_norm": [Row("stage 1, 8 groups", group_norm)],
        "group_norm_backward": [Row("stage 1, 8 groups", group_norm_backward)],
        "max_pool2d": [Row("2x2, stage 1", lambda d: (d.z(*stage(d, 0)), DOUBLE))],
        "max_pool2d_backward": [Row("2x2, stage 1", max_pool2d_backward)],
        "avg_pool2d": [Row("2x2, stage 1", lambda d: (d.z(*stage(d, 0)), DOUBLE))],
        "avg_pool2d_backward": [Row("2x2, stage 1", avg_pool2d_backward)],
        "upsample": [Row("2x2, stage 2 to 1", lambda d: (avg_pool2d_backward(d)[0], 2))],
        "upsample_backward": [Row("2x2, stage 2 to 1", lambda d: (d.z(*stage(d, 0)), 2))],
        "add_sinusoids": [Row("sequences", lambda d: (d.z(d.sizes.n, d.sizes.tokens, d.sizes.d),))],
        "rotate": [Row("sequences", lambda d: (d.z(d.sizes.n, d.sizes.tokens, d.sizes.d), 1.0))],
        "rotate_heads": [Row("queries, keys, values", lambda d: (*attention(d)[:2], 1.0))],
        "lstm": [Row("sequences", lambda d: recurrent(d, 4))],
        "lstm_backward": [Row("sequences", lstm_backward)],
        "gru": [Row("sequences", lambda d: (*recurrent(d, 3), recurrent(d, 3)[-1]))],
        "gru_backward": [Row("sequences", gru_backward)],
        "adam": [update(PRIMITIVES["adam"], "AdamW"), update(PRIMITIVES["adam"], "Adam", decoupled=False)],
        "clip_factor": [Row("a scalar", clip_factor, {"g": 0})],
        "gathered": [Row("parameters", gathered)],
        "rescale": [Row("a scalar", lambda d: (f.squared_norm(d.z(2, dtype="float32")), 1.0, 9, 0.5, 8.0, d.positive(2)))],
        "softmax": [Row("rows x vocabulary", lambda d: (logits(d), -1))],
        "softmax_backward": [Row("rows x vocabulary", lambda d: (f.softmax(logits(d), -1), logits(d), -1))],
        "log_softmax": [Row("rows x vocabulary", lambda d: (logits(d), -1))],
        "log_softmax_backward": [Row("rows x vocabulary", lambda d: (f.log_softmax(logits(d), -1), logits(d), -1))],
    }
    for name, known in PRIMITIVES.items():
        make = {"activations": elementwise, "updates": update}.get(family(known))
        if name not in table and make is not None:
            table[name] = [make(known)]
    return table


PRODUCTS = ("arithmetic", "attention", "convolution", "linear", "recurrent")  # families whose operations are counted
VECTORS = ("theta", "m", "v", "c")  # which updates read and write


def family(known: Primitive) -> str:
    """The file of functional/ that defines a primitive."""
    return known.definition.__module__.rpartition(".")[2]


def arrays(results: Any) -> list[Any]:
    """The arrays among a primitive's results, or its arguments."""
    return [x for x in (results if isinstance(results, tuple) else (results,)) if is_array(x)]


def size(x: Any) -> int:
    """The bytes of an array."""
    return math.prod(x.shape) * int(x.dtype.itemsize)


def moved(known: Primitive, row: Row, arguments: Arguments, results: Any) -> float:
    """The bytes that must move at least."""
    total = row.moves.get("result", 1) * sum(map(size, arrays(results)))
    for name, x in zip(known.signature.parameters, arguments, strict=True):
        if is_array(x):
            total += row.moves.get(name, 2 if family(known) == "updates" and name in VECTORS else 1) * size(x)
    return total


def operations(known: Primitive, row: Row, arguments: Arguments) -> float:
    """The operations that must be done in families with products, counted from the definition. Others are bound by bytes."""
    if family(known) not in PRODUCTS:
        return 0
    before = counting.operations
    known.call(*(counting.CountingArray(x.shape, "float32") if is_array(x) else x for x in arguments))
    return row.part * (counting.operations - before)
