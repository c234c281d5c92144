"""The one table of primitives: arguments for each, of a draw's sizes and dtype.

An elementwise activation needs no row: its parameters say that it takes (z), or (z, v), and a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from optimizer_cases import UPDATES, rows_of

from bpcore import functional
from bpcore.functional.convolution import Placement
from bpcore.primitive import PRIMITIVES, definition

TINY = 1e-30  # an upstream gradient that is flushed in float32


def family(name: str) -> str:
    """The file of functional/ that defines a primitive."""
    return PRIMITIVES[name].definition.__module__.rpartition(".")[2]


class Draw:
    """Arguments on the host, in a dtype: inputs that are views with strides where `strided`, outputs filled with NaN."""

    def __init__(self, rows: int, columns: int, dtype: str, strided: bool = False):
        self.rows, self.columns, self.dtype, self.strided = rows, columns, dtype, strided
        self.generator = np.random.default_rng([rows, columns])

    def z(self, *shape: int, scale: float = 2.0) -> np.ndarray:
        shape = shape or (self.rows, self.columns)
        return self.lay(self.generator.standard_normal(shape) * scale)

    def lay(self, x: np.ndarray) -> np.ndarray:
        """x, as every second number of a larger array turned around where `strided`."""
        x = x.astype(self.dtype) if x.dtype.kind == "f" else x
        if not self.strided or x.ndim == 0:
            return x
        wide = np.zeros((*x.shape[::-1][:-1], 2 * x.shape[0]), x.dtype)
        view = wide[..., ::2].T
        view[...] = x
        return view

    def positive(self, *shape: int) -> np.ndarray:
        return np.abs(self.z(*shape)) + 0.1

    def out(self, *shape: int) -> np.ndarray:
        return np.full(shape, np.nan, self.dtype)

    def row(self) -> np.ndarray:
        return self.z(self.columns)

    def weights(self) -> np.ndarray:
        return self.positive(self.rows)

    def classes(self) -> np.ndarray:
        return self.lay(self.generator.integers(0, self.columns, self.rows))

    def phi(self) -> np.ndarray:
        return definition(functional.softmax)(self.z(), -1)

    def keep(self, *shape: int) -> np.ndarray:
        return self.lay(self.generator.random(shape or (self.rows, self.columns)) < 0.7)

    def vector(self, scale: float = 1.0) -> np.ndarray:
        return self.lay(self.generator.standard_normal(self.rows * self.columns) * scale)

    def squares(self) -> np.ndarray:
        return np.abs(self.vector())

    def square(self) -> np.ndarray:
        return np.float64(7.0)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return self.z(self.rows, 1), self.positive(self.rows, 1)


def unary(d: Draw) -> list[tuple]:
    return [(d.z(),), (d.z(scale=50.0),), (d.z().reshape(d.rows, 1, d.columns),), (d.z()[..., 0],)]


def operands(d: Draw) -> list[tuple]:
    """Two arrays that broadcast."""
    return [(d.z(), d.z()), (d.z(), d.row()), (d.z(2, d.rows, 4), d.z(d.rows, 4)), (d.row(), d.z())]


def binary(d: Draw) -> list[tuple]:
    return [(d.z(), d.z()), (d.z(scale=1e-30), d.z()), (d.z().reshape(d.rows, 1, d.columns), d.z().reshape(d.rows, 1, d.columns))]


def regression(*more: Any) -> Callable[[Draw], list[tuple]]:
    return lambda d: [
        (d.z(), d.z(), None, *more),
        (d.z(), d.z(), d.weights(), *more),
        (d.z(d.rows), d.z(d.rows), None, *more),
        (d.z(d.rows), d.z(d.rows), d.weights(), *more),
        (d.z(d.rows, 1, d.columns), d.z(d.rows, 1, d.columns), d.positive(d.rows, 1), *more),
    ]


def logistic(*more: Any) -> Callable[[Draw], list[tuple]]:
    return lambda d: [(z, (y > 0).astype(d.dtype), w, *more) for z, y, w, *_ in regression()(d)]


def classification(first: Callable[[Draw], np.ndarray], *v: float) -> Callable[[Draw], list[tuple]]:
    return lambda d: [
        (first(d), d.classes(), None, *v, 0.0),
        (first(d), d.classes(), d.weights(), *v, 0.0),
        (first(d), d.classes().astype("uint8"), None, *v, 0.1),
        (first(d), d.phi(), None, *v, 0.0),
        (first(d), d.phi(), d.weights(), *v, 0.2),
        (first(d).reshape(d.rows, 1, d.columns), d.classes().reshape(d.rows, 1), None, *v, 0.0),
    ]


def either(*arguments: Callable[[Draw], list[tuple]]) -> Callable[[Draw], list[tuple]]:
    return lambda d: [row for one in arguments for row in one(d)]


def linear(d: Draw) -> list[tuple]:
    z, W, b = d.z(), d.z(d.columns, 3), d.z(3)
    if d.rows * d.columns < 1000:  # products that a twin leaves to NumPy, and one that it does not
        z, W, b = d.z(), d.z(d.columns, 5000), d.z(5000)
    return [(z, W, b), (z, W, None), (z.reshape(d.rows, 1, d.columns), W, b), (d.row(), W, b)]


def linear_add(d: Draw) -> list[tuple]:
    return [(z, W, b, d.z(*z.shape[:-1], W.shape[1])) for z, W, b in linear(d)]


def linear_backward(d: Draw) -> list[tuple]:
    n = 5000 if d.rows * d.columns < 1000 else 3
    z, W, v = d.z(), d.z(d.columns, n), d.z(d.rows, n)
    return [
        (z, W, v, d.out(d.columns, n), d.out(n), True),
        (z, W, v, d.out(d.columns, n), None, False),
        (z.reshape(d.rows, 1, d.columns), W, v.reshape(d.rows, 1, n), d.out(d.columns, n), d.out(n), True),
        (d.row(), W, d.z(n), d.out(d.columns, n), d.out(n), True),
    ]


def linear_relu_backward(d: Draw) -> list[tuple]:
    return [(z, W, np.maximum(d.z(*v.shape), 0), v, *rest) for z, W, v, *rest in linear_backward(d)]


def linear_gelu_backward(d: Draw) -> list[tuple]:
    return [(z, W, 3 * d.z(*v.shape), v, *rest) for z, W, v, *rest in linear_backward(d)]


def layer_norm_backward(d: Draw) -> list[tuple]:
    return [
        (d.z(), *d.statistics(), d.row(), d.z(), d.out(d.columns), d.out(d.columns), need_dz, plus)
        for need_dz, plus in ((True, None), (True, d.z()), (False, None))
    ]


def layer_norm(d: Draw) -> list[tuple]:
    return [(d.z(), d.row(), d.row(), 1e-5), (d.z().reshape(d.rows, 1, d.columns), d.row(), d.row(), 1e-5)]


def scatter_add(d: Draw) -> list[tuple]:
    """Tables of one row, of few that come often, and of many that mostly do not come."""
    return [(d.z(), d.lay(d.generator.integers(0, n, d.rows)), d.out(n, d.columns)) for n in (1, 7, 300)]


def embedding(d: Draw) -> list[tuple]:
    ids = d.generator.integers(0, 7, d.rows)
    return [(d.lay(ids), d.z(7, 3)), (d.lay(ids.astype("uint8").reshape(1, d.rows, 1)), d.z(7, 3))]


def embedding_backward(d: Draw) -> list[tuple]:
    return [(ids, d.z(*ids.shape, 3), d.out(*W.shape)) for ids, W in embedding(d)]


def attention(d: Draw) -> Iterator[tuple]:
    """All keys are seen, no later ones, no padding, some queries see none; with dropout; and of two sizes of heads.

    One row at a time: A of many examples is large. 60 of them are more than two blocks of any twin.
    """
    n, tokens, heads = min(60, max(1, d.rows // 100)), min(d.rows, 100), 2
    padding, keep = d.lay(d.generator.random((n, tokens)) < 0.7), d.lay(d.generator.random((n, heads, tokens, tokens)) < 0.7)
    for size in (3, 16) if tokens else ():
        for causal, mask in ((False, None), (True, None), (False, padding), (True, padding), (False, np.zeros_like(padding))):
            for dropped in (None, keep):
                yield d.z(n, tokens, 3 * heads * size), heads, causal, mask, dropped, 0.3


def attention_backward(d: Draw) -> Iterator[tuple]:
    forward = definition(functional.attention)
    for qkv, heads, causal, padding, keep, p in attention(d):
        saved = map(d.lay, forward(qkv, heads, causal, padding, keep, p))
        yield qkv, padding, keep, *saved, d.z(*qkv.shape[:2], qkv.shape[2] // 3), heads, causal, p


def rms_norm_backward(d: Draw) -> list[tuple]:
    return [
        (d.z(), d.statistics()[1], d.row(), d.z(), d.out(d.columns), need_dz, plus)
        for need_dz, plus in ((True, None), (True, d.z()), (False, None))
    ]


def windows(d: Draw) -> Iterator[tuple[np.ndarray, Any, int]]:
    """Images, small ones of a draw's rows and columns, a kernel's placement, and groups."""
    n, c = min(d.rows, 13), min(d.columns, 6)
    kinds = [
        Placement((3, 2)),
        Placement((3, 3), (2, 1), ((1, 1), (2, 1)), (1, 2)),
        Placement((2, 3), (1, 3), ((0, 1), (2, 0)), (3, 1)),
        Placement((1, 1)),
        Placement((2, 2), (2, 2)),
    ]
    for placement in kinds:
        for groups in {1, 2 if c % 2 == 0 else 1, c}:
            yield d.z(n, 5, 4, c), placement, groups


def conv2d(d: Draw) -> list[tuple]:
    return [
        (z, d.z(*placement.kernel, z.shape[3] // groups, out), d.z(out) if out in (1, 2) else None, placement, groups)
        for z, placement, groups in windows(d)
        for out in (2 * groups, groups)
    ]


def conv2d_backward(d: Draw) -> list[tuple]:
    return [
        (z, W, d.z(len(z), *placement.outputs(5, 4), W.shape[3]), placement, groups, d.out(*W.shape), d.out(W.shape[3]), need_dz)
        for z, W, _, placement, groups in conv2d(d)
        for need_dz in (True, False)
    ]


def conv_transpose2d(d: Draw) -> list[tuple]:
    return [
        (d.z(len(z), *placement.outputs(5, 4), 3), d.z(*placement.kernel, z.shape[3], 3), d.z(z.shape[3]), placement, 5, 4)
        for z, placement, groups in windows(d)
        if groups == 1
    ]


def conv_transpose2d_backward(d: Draw) -> list[tuple]:
    return [
        (z, W, d.z(len(z), h, w, len(b)), placement, d.out(*W.shape), d.out(len(b)), need_dz)
        for z, W, b, placement, h, w in conv_transpose2d(d)
        for need_dz in (True, False)
    ]


def pool(d: Draw) -> list[tuple]:
    """The second time of whole numbers, so that there are ties."""
    return [(x, placement) for z, placement, groups in windows(d) if groups == 1 for x in (z, d.lay(np.round(z)))]


def avg_pool2d_backward(d: Draw) -> list[tuple]:
    return [(d.z(len(z), *placement.outputs(5, 4), z.shape[3]), placement, 5, 4) for z, placement in pool(d)]


def upsample(d: Draw, backward: bool = False) -> list[tuple]:
    n, c = min(d.rows, 13), min(d.columns, 70)
    return [(d.z(n, k, 2 * k, c) if backward else d.z(n, 1, 2, c), k) for k in (1, 2, 3, 24)]


def max_pool2d_backward(d: Draw) -> list[tuple]:
    firsts = (definition(functional.max_pool2d)(z, placement)[1] for z, placement in pool(d))
    return [(d.lay(first), *row) for first, row in zip(firsts, avg_pool2d_backward(d), strict=True)]


def batch_norm(d: Draw) -> list[tuple]:
    shapes = [(d.rows, d.columns), (1, d.rows, d.columns)]
    return [(d.z(*shape), d.row(), d.positive(d.columns), d.row(), d.row(), 1e-5) for shape in shapes]


def batch_norm_backward(d: Draw) -> list[tuple]:
    return [
        (z, mean, variance, gamma, d.z(*z.shape), eps, of_batch, d.out(d.columns), d.out(d.columns), need_dz)
        for z, mean, variance, gamma, _, eps in batch_norm(d)
        for of_batch in ((True, False) if len(d.z()) else (False,))
        for need_dz in (True, False)
    ]


def group_norm(d: Draw) -> list[tuple]:
    return [
        (d.z(d.rows, *between, 2 * d.columns), d.z(2 * d.columns), d.z(2 * d.columns), groups, 1e-5)
        for between in ((), (3,), (2, 2))
        for groups in (1, 2, d.columns)
    ]


def group_norm_backward(d: Draw) -> list[tuple]:
    statistics = definition(functional.group_norm)
    c = 2 * d.columns
    return [
        (row[0], *map(d.lay, statistics(*row)[1:]), row[1], d.z(*row[0].shape), d.out(c), d.out(c), need_dz)
        for row in group_norm(d)
        for need_dz in (True, False)
    ]


def recurrent(d: Draw, gates: int) -> tuple[np.ndarray, ...]:
    """z, W, U and b of few tokens; of a long draw, more rows than a thread takes at once."""
    m = min(d.columns, 7)
    n, k = (150, 20) if d.rows > 1000 else (min(d.rows, 13), 3)
    return d.z(n, 4, m), d.z(m, gates * k), d.z(k, gates * k, scale=1.5 / k), d.z(gates * k)


def lstm_backward(d: Draw) -> list[tuple]:
    z, W, U, b = recurrent(d, 4)
    h, gates, c = definition(functional.lstm)(z, W, U, b)
    outs = d.out(*W.shape), d.out(*U.shape), d.out(*b.shape)
    return [(z, W, U, *map(d.lay, (h, gates, c)), d.z(*h.shape), *(x.copy() for x in outs), need) for need in (True, False)]


def gru_backward(d: Draw) -> list[tuple]:
    z, W, U, b = recurrent(d, 3)
    h, gates = definition(functional.gru)(z, W, U, b, b)
    outs = d.out(*W.shape), d.out(*U.shape), d.out(*b.shape), d.out(*b.shape)
    return [(z, W, U, *map(d.lay, (h, gates)), d.z(*h.shape), *(x.copy() for x in outs), need) for need in (True, False)]


CONSTANTS = {"slope": 0.01, "axis": -1}  # of activations, by the parameter's name; 0.7 else


def elementwise(name: str) -> Callable[[Draw], list[tuple]]:
    """The row of an activation that maps each entry, (z), or of its backward function, (z or u, v); a constant may follow."""
    names = list(PRIMITIVES[name].signature.parameters)
    arguments, constants = (binary, names[2:]) if name.endswith(("_backward", "_again")) else (unary, names[1:])
    return lambda d: [(*row, *(CONSTANTS.get(constant, 0.7) for constant in constants)) for row in arguments(d)]


Rows = Callable[[Draw], Iterable[tuple]]
TABLE: dict[str, Rows] = {
    **{name: elementwise(name) for name in PRIMITIVES if family(name) in ("activations", "softmax")},
    "softmax_backward": lambda d: [(d.phi(), d.z(), -1), (d.phi(), d.z(), 0)],
    "log_softmax_backward": lambda d: [(np.log(d.phi()), d.z(), -1)],
    "summation": lambda d: [
        *((d.z(), axis, keepdims) for axis in (None, 0, (0, 1), -1) for keepdims in (False, True)),
        *((d.z(2, d.rows, d.columns), axis, True) for axis in (0, (0, 1), (1, 0), (-1, 1), 1, ())),
    ],
    "add_sinusoids": lambda d: [(d.z(2, d.rows, width),) for width in (6, 16)],
    "rotate": lambda d: [(d.z(2, d.rows, width), sign) for sign in (1.0, -1.0) for width in (6, 16)],
    "rotate_heads": lambda d: [(d.z(2, d.rows, 6 * size), 2, sign) for sign in (1.0, -1.0) for size in (2, 8)],
    "dropout": lambda d: [(d.z(), d.keep(), 0.3), (d.z(2, d.rows, d.columns), d.keep(2, 1, d.columns), 0.3)],
    "keep_mask": lambda d: [(d.z(), p, (7, 3, 1, use)) for p in (0.0, 0.3, 1 - 1e-12) for use in (0, 2**33)],
    **dict.fromkeys(("add", "subtract", "multiply"), operands),
    "divide": lambda d: [(a, np.sign(b) * (np.abs(b) + 0.1)) for a, b in operands(d)],
    "negative": unary,
    "exp": lambda d: [(d.z(),), (d.z(scale=15.0),), (d.z()[..., 0],)],
    "log": lambda d: [(d.positive(),), (d.positive()[..., 0] * 100,), (1 + d.z(scale=1e-3),)],
    "joined": lambda d: [
        (d.z(2, d.rows, d.columns), d.z(2, 30, d.columns), -2),
        (d.z(2, d.rows, d.columns), d.z(2, 0, d.columns), 1),
        (d.z(), d.z(d.rows, 20), 1),
        (d.z(), d.z(), 0),
    ],
    "matmul": lambda d: [
        (d.z(), d.z(d.columns, 3)),
        (d.z(), d.z(min(d.rows, 100), d.columns).T),
        (d.z(2, 1, 4, 3), d.z(5, d.columns, 3).mT),
        (d.z(3, 130, 90), d.z(3, 90, 70)),  # products that a twin does not leave to NumPy
        (d.z(3, 1, 90, 130).mT, d.z(3, 1, 70, 90).mT),
    ],
    "power": lambda d: [*((d.z(), c) for c in (2.0, 3, 4, 13, -1)), (d.positive(), 0.5)],
    "sparse_product": lambda d: [(np.maximum(d.z(), 0), d.z(d.columns, 3))],
    "linear": linear,
    "linear_add": linear_add,
    "linear_backward": linear_backward,
    "linear_relu": linear,
    "linear_gelu_backward": linear_gelu_backward,
    "linear_relu_backward": linear_relu_backward,
    "squared_error": regression(),
    "squared_error_backward": either(regression(0.5), regression(TINY)),
    "huber": regression(1.5),
    "huber_backward": either(regression(0.5, 1.5), regression(TINY, 1.5)),
    "logistic": logistic(),
    "logistic_backward": either(logistic(0.5), logistic(TINY)),
    "cross_entropy": classification(Draw.z),
    "cross_entropy_backward": either(classification(Draw.phi, 0.5), classification(Draw.phi, TINY)),
    "layer_norm": layer_norm,
    "layer_norm_backward": layer_norm_backward,
    "rms_norm": lambda d: [(d.z(), d.row(), 1e-6)],
    "rms_norm_backward": rms_norm_backward,
    "embedding": embedding,
    "embedding_backward": embedding_backward,
    "scatter_add": scatter_add,
    "batch_statistics": lambda d: [(z,) for z, *_ in batch_norm(d) if z.size],
    "attention": attention,
    "attention_backward": attention_backward,
    "batch_norm": batch_norm,
    "batch_norm_backward": batch_norm_backward,
    "group_norm": group_norm,
    "group_norm_backward": group_norm_backward,
    "conv2d": conv2d,
    "conv2d_backward": conv2d_backward,
    "conv_transpose2d": conv_transpose2d,
    "conv_transpose2d_backward": conv_transpose2d_backward,
    "max_pool2d": pool,
    "max_pool2d_backward": max_pool2d_backward,
    "avg_pool2d": pool,
    "avg_pool2d_backward": avg_pool2d_backward,
    "upsample": upsample,
    "upsample_backward": lambda d: upsample(d, backward=True),
    "lstm": lambda d: [recurrent(d, 4)],
    "lstm_backward": lstm_backward,
    "gru": lambda d: [(*given, d.z(*given[3].shape)) for given in [recurrent(d, 3)]],
    "gru_backward": gru_backward,
    **{name: rows_of(name) for name in UPDATES.values()},
    "squared_norm": lambda d: [(d.vector(),)],
    "gathered": lambda d: [(d.vector(), S, d.vector()) for S in (1.0, 3.0)],
    "clip_factor": lambda d: [(d.vector(), d.square(), largest) for largest in (1e-3, 1e9)],
    "rescale": lambda d: [
        (np.asarray(square), factor, 3, 0.5, 64.0, np.asarray([S, good], "float32"))
        for square in (7.0, np.inf, np.nan)
        for factor in (1.0, np.asarray(0.25))
        for S, good in ((8.0, 0.0), (8.0, 2.0), (64.0, 2.0), (0.5, 1.0))
    ],
}
