"""The one table of cases: every module and loss in several configurations, and how a case is run on a backend.

A case's inputs are shapes, for which normal numbers off the kinks at zero are drawn, or arrays: floating ones take the
dtype of the run, integers stay. A test asserts that every name of bpcore.modules is here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import bpcore as bp
from bpcore.layout import Layout
from bpcore.module import Module, Parameter

MODE = {"training": True, "seed": 3, "step": 5, "micro": 1}  # of every run: dropout's masks are a function of it


@dataclass(frozen=True, eq=False)
class Case:
    """A module, its inputs, and which inputs have no gradient."""

    id: str
    make: Callable[[], Module]
    inputs: tuple[Any, ...]
    without_gradient: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return self.id

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.id.encode()))


def case(id: str, make: Callable[[], Module], *inputs: Any) -> Case:
    return Case(id, make, inputs)


def loss(id: str, make: Callable[[], Module], *inputs: Any) -> Case:
    """Labels, and weights where there are any, have no gradient."""
    return Case(id, make, inputs, tuple(range(1, len(inputs))))


def with_mask(id: str, make: Callable[[], Module], *inputs: Any) -> Case:
    """A key-padding mask, or ids, come last and have no gradient."""
    return Case(id, make, inputs, (len(inputs) - 1,))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + 0.5


def rows(*shape: int) -> np.ndarray:
    """Probabilities along the last axis."""
    p = positive(*shape)
    return p / np.sum(p, axis=-1, keepdims=True)


def labels(k: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, k, shape)


def keys(*lengths: int) -> np.ndarray:
    """The mask of sequences of these lengths, padded to the longest: True is kept."""
    return np.arange(max(lengths)) < np.asarray(lengths)[:, None]


class Tied(Module):
    """A module of a user's own, u = (z W) Wᵀ: two children hold the same Parameter, one of them transposed."""

    def __init__(self, n: int, m: int):
        self.children = {"encode": bp.Linear(n, m, bias=False), "decode": TransposedLinear(n, m)}
        self.children["decode"].parameters = {"W": self.children["encode"].parameters["W"]}

    def forward(self, theta, z, mode):
        h, first = self.children["encode"].forward(theta["encode"], z, mode=mode)
        u, second = self.children["decode"].forward(theta["decode"], h, mode=mode)
        return u, [first, second]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        second, first = saved.pop(), saved.pop()
        v = self.children["decode"].backward(theta["decode"], second, v, gradient["decode"])
        return self.children["encode"].backward(theta["encode"], first, v, gradient["encode"], need_dz)


class TransposedLinear(Module):
    """u = z Wᵀ."""

    def __init__(self, n: int, m: int):
        self.parameters = {"W": Parameter((n, m), bp.initializers.HeNormal())}

    def forward(self, theta, z, mode):
        return z @ theta.W.T, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = v.T @ saved
        return v @ theta.W if need_dz else None


class SideBySide(Module):
    """A container of a user's own, u = a(z) + b(z): what its children saved comes back as a tuple of their lists."""

    def __init__(self, a: Module, b: Module):
        self.a, self.b = a, b
        self.children = {"a": a, "b": b}

    def forward(self, theta, z, mode):
        u, s = self.children["a"].forward(theta["a"], z, mode=mode)
        w, t = self.children["b"].forward(theta["b"], z, mode=mode)
        return u + w, (s, t)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        s, t = saved
        dz = self.children["a"].backward(theta["a"], s, v, gradient["a"], need_dz)
        dw = self.children["b"].backward(theta["b"], t, v, gradient["b"], need_dz)
        return dz + dw if need_dz else None


def side_by_side() -> Module:
    return SideBySide(bp.MLP([4, 5, 3]), bp.Sequential(bp.Linear(4, 3), bp.Tanh()))


def twice() -> Module:
    """One Linear, used twice."""
    linear = bp.Linear(4, 4)
    return bp.Sequential(linear, bp.Tanh(), linear)


def fan_out() -> Module:
    return bp.Circuit(
        "x",
        {
            "h": (bp.Linear(4, 4), "x"),
            "s": (bp.Tanh(), "h"),
            "p": (bp.Multiply(), "h", "s"),
            "u": (bp.Add(), "p", "x"),
        },
        "u",
    )


def two_inputs() -> Module:
    return bp.Circuit(
        ["a", "b"],
        {"ha": (bp.Linear(3, 5), "a"), "hb": (bp.Linear(2, 5, bias=False), "b"), "u": (bp.Multiply(), "ha", "hb")},
        "u",
    )


def two_outputs() -> Module:
    return bp.Circuit("x", {"h": (bp.Linear(4, 3), "x"), "e": (bp.Exp(), "h")}, ["h", "e", "x"])


def atomic_linear() -> Module:
    """z W + b of atomic modules, W and b being operands."""
    return bp.Circuit(
        "z",
        {
            "W": (bp.Weight((4, 3)),),
            "b": (bp.Weight((3,), decay=False),),
            "zW": (bp.MatMul(), "z", "W"),
            "u": (bp.Add(), "zW", "b"),
        },
        "u",
    )


def with_loss() -> Module:
    """A network and its loss in one circuit; the labels are an input that has no gradient."""
    return bp.Circuit(["x", "y"], {"t": (bp.Linear(4, 3), "x"), "J": (bp.CrossEntropy(), "t", "y")}, "J")


def nested() -> Module:
    inner = bp.Sequential(bp.Residual(bp.Sequential(bp.RMSNorm(4), bp.Linear(4, 4))), bp.SiLU())
    return bp.Sequential(bp.Reshape((2, 4)), inner, fan_out(), bp.Flatten(), bp.Dropout(0.3), bp.Linear(8, 2))


def unembedded() -> Module:
    """Ids to logits, the embedding's parameter used at both ends: its gradients add."""
    embedding = bp.Embedding(7, 4)
    return bp.Sequential(embedding, bp.Tanh(), bp.Unembed(embedding))


def masked_stack() -> Module:
    """Ids and a mask to features: the mask passes the modules that do not take it, one of them between the blocks."""
    blocks = bp.TransformerBlock(4, 2, dropout=0.2), bp.LayerNorm(4), bp.Recompute(bp.TransformerBlock(4, 2, True))
    return bp.Sequential(bp.Embedding(7, 4), bp.PositionalEmbedding(5, 4), bp.Sequential(*blocks), bp.Linear(4, 3), bp.ReLU())


SHAPE = (3, 2, 5)
CASES = [
    case("Linear", lambda: bp.Linear(4, 3), (5, 4)),
    case("Linear, no bias, leading axes", lambda: bp.Linear(4, 3, bias=False), (2, 3, 4)),
    case("Linear, leading axes", lambda: bp.Linear(4, 3), (2, 2, 3, 4)),
    case("Linear, one example without a batch axis", lambda: bp.Linear(4, 3), (4,)),
    case("Linear, sizes of one", lambda: bp.Linear(1, 1), (1, 1)),
    case("Weight", lambda: bp.Weight((3, 2))),
    case("ReLU", lambda: bp.ReLU(), SHAPE),
    case("ReLU, a vector", lambda: bp.ReLU(), (7,)),
    case("LeakyReLU", lambda: bp.LeakyReLU(), SHAPE),
    case("LeakyReLU, slope 0.3", lambda: bp.LeakyReLU(0.3), SHAPE),
    case("ELU", lambda: bp.ELU(), SHAPE),
    case("ELU, alpha 1.7", lambda: bp.ELU(1.7), SHAPE),
    case("GELU", lambda: bp.GELU(), SHAPE),
    case("GELU, far from zero", lambda: bp.GELU(), 4 * floats(*SHAPE)),
    case("GELU, tanh", lambda: bp.GELU("tanh"), SHAPE),
    case("SiLU", lambda: bp.SiLU(), SHAPE),
    case("Sigmoid", lambda: bp.Sigmoid(), SHAPE),
    case("Sigmoid, far from zero", lambda: bp.Sigmoid(), 10 * floats(*SHAPE)),
    case("Tanh", lambda: bp.Tanh(), SHAPE),
    case("Softplus", lambda: bp.Softplus(), SHAPE),
    case("Identity", lambda: bp.Identity(), SHAPE),
    case("Softmax", lambda: bp.Softmax(), SHAPE),
    case("Softmax, axis 1", lambda: bp.Softmax(axis=1), SHAPE),
    case("Softmax, one class", lambda: bp.Softmax(), (1, 1)),
    case("LogSoftmax", lambda: bp.LogSoftmax(), SHAPE),
    case("LogSoftmax, axis 0", lambda: bp.LogSoftmax(axis=0), SHAPE),
    case("Add", lambda: bp.Add(), (3, 4), (3, 4)),
    case("Add, a row", lambda: bp.Add(), (2, 3, 4), (4,)),
    case("Add, both broadcast", lambda: bp.Add(), (3, 1), (1, 4)),
    case("Add, a scalar", lambda: bp.Add(), (3, 4), ()),
    case("Subtract", lambda: bp.Subtract(), (3, 4), (3, 4)),
    case("Subtract, broadcast", lambda: bp.Subtract(), (4,), (2, 3, 4)),
    case("Multiply", lambda: bp.Multiply(), (3, 4), (3, 4)),
    case("Multiply, both broadcast", lambda: bp.Multiply(), (2, 1, 4), (3, 1)),
    case("Divide", lambda: bp.Divide(), (3, 4), positive(3, 4)),
    case("Divide, broadcast", lambda: bp.Divide(), (3, 1), positive(2, 1, 4)),
    case("MatMul", lambda: bp.MatMul(), (2, 3), (3, 4)),
    case("MatMul, leading axes against a matrix", lambda: bp.MatMul(), (5, 2, 3), (3, 4)),
    case("MatMul, both broadcast", lambda: bp.MatMul(), (2, 1, 2, 3), (4, 3, 2)),
    case("Exp", lambda: bp.Exp(), SHAPE),
    case("Log", lambda: bp.Log(), positive(*SHAPE)),
    case("Power, 3", lambda: bp.Power(3), SHAPE),
    case("Power, -1/2", lambda: bp.Power(-0.5), positive(*SHAPE)),
    case("Power, 0", lambda: bp.Power(0), SHAPE),
    case("Power, 0, of zeros", lambda: bp.Power(0), np.zeros((2, 3))),
    case("Power, two inputs", lambda: bp.Power(), positive(3, 4), (3, 4)),
    case("Power, two inputs, broadcast", lambda: bp.Power(), positive(3, 1), (2, 1, 4)),
    case("Sum", lambda: bp.Sum(), SHAPE),
    case("Sum, axis 1", lambda: bp.Sum(axis=1), SHAPE),
    case("Sum, two axes kept", lambda: bp.Sum(axis=(0, -1), keepdims=True), SHAPE),
    case("Mean", lambda: bp.Mean(), SHAPE),
    case("Mean, two axes", lambda: bp.Mean(axis=(0, -1)), SHAPE),
    case("Mean, axis kept", lambda: bp.Mean(axis=-1, keepdims=True), SHAPE),
    case("Concatenate", lambda: bp.Concatenate(), (2, 3), (2, 1), (2, 2)),
    case("Concatenate, axis 0", lambda: bp.Concatenate(axis=0), (2, 3, 1), (4, 3, 1)),
    case("Concatenate, one input", lambda: bp.Concatenate(), (2, 3)),
    case("Reshape", lambda: bp.Reshape((2, 3)), (4, 6)),
    case("Reshape, a size left open", lambda: bp.Reshape((-1, 2)), (4, 3, 4)),
    case("Flatten", lambda: bp.Flatten(), SHAPE),
    case("LayerNorm", lambda: bp.LayerNorm(5), (4, 5)),
    case("LayerNorm, leading axes, eps", lambda: bp.LayerNorm(5, eps=0.1), SHAPE),
    case("RMSNorm", lambda: bp.RMSNorm(5), (4, 5)),
    case("RMSNorm, leading axes, eps", lambda: bp.RMSNorm(5, eps=0.1), SHAPE),
    case("Dropout", lambda: bp.Dropout(0.4), SHAPE),
    case("Dropout, none", lambda: bp.Dropout(0), SHAPE),
    case("Sequential", lambda: bp.Sequential(bp.Linear(4, 3), bp.Tanh(), bp.Linear(3, 2)), (5, 4)),
    case("Sequential, empty", lambda: bp.Sequential(), (5, 4)),
    case("Sequential, one module twice", twice, (5, 4)),
    case("Sequential, nested", nested, (3, 8)),
    case("Sequential, two in a container whose saved values are a tuple", side_by_side, (5, 4)),
    Case("Sequential, ids and a mask", masked_stack, (labels(7, 3, 5), keys(5, 3, 1)), (0, 1)),
    case("Residual", lambda: bp.Residual(bp.Linear(4, 4)), (5, 4)),
    with_mask(
        "Residual, attention with a mask",
        lambda: bp.Residual(bp.Sequential(bp.LayerNorm(4), bp.MultiHeadAttention(4, 2))),
        (3, 5, 4),
        keys(5, 3, 1),
    ),
    case("Circuit, fan-out", fan_out, (5, 4)),
    case("Circuit, two inputs", two_inputs, (4, 3), (4, 2)),
    case("Circuit, several outputs", two_outputs, (5, 4)),
    case("Circuit, operands", atomic_linear, (5, 4)),
    loss("Circuit, a loss in it", with_loss, (5, 4), labels(3, 5)),
    case("Tied, one parameter in two modules", lambda: Tied(4, 3), (5, 4)),
    case("MLP", lambda: bp.MLP([4, 6, 5, 3]), (5, 4)),
    case("MLP, one layer, batch 1", lambda: bp.MLP([4, 3]), (1, 4)),
    case("MLP, gelu, LayerNorm, dropout", lambda: bp.MLP([4, 6, 5, 3], "gelu", 0.2, "layer_norm"), (5, 4)),
    case("MLP, tanh, RMSNorm, leading axes", lambda: bp.MLP([4, 6, 3], "tanh", normalization="rms_norm"), (2, 3, 4)),
    case("MLP, a module for activation", lambda: bp.MLP([4, 6, 5, 3], bp.LeakyReLU(0.2)), (5, 4)),
    case("Conv2d", lambda: bp.Conv2d(3, 4, 3), (2, 5, 6, 3)),
    case("Conv2d, same, stride, dilation, groups", lambda: bp.Conv2d(4, 6, (3, 2), 2, "same", (1, 2), 2), (2, 5, 7, 4)),
    case("Conv2d, depthwise, padding, no bias", lambda: bp.Conv2d(3, 6, 3, 1, (1, 2), groups=3, bias=False), (2, 4, 3, 3)),
    case("Conv2d, one entry, valid", lambda: bp.Conv2d(3, 2, 1, padding="valid"), (2, 3, 4, 3)),
    case("Conv2d, one image of one entry", lambda: bp.Conv2d(1, 1, 3, padding=1), (1, 1, 1, 1)),
    case("Conv1d", lambda: bp.Conv1d(3, 4, 3), (2, 6, 3)),
    case("Conv1d, same, stride, dilation, groups", lambda: bp.Conv1d(4, 2, 3, 2, "same", 2, 2), (2, 7, 4)),
    case("Conv1d, padding, no bias", lambda: bp.Conv1d(2, 3, 2, padding=1, bias=False), (3, 4, 2)),
    case("ConvTranspose2d", lambda: bp.ConvTranspose2d(3, 2, 3), (2, 3, 4, 3)),
    case("ConvTranspose2d, all", lambda: bp.ConvTranspose2d(3, 2, (3, 2), 2, 1, (1, 2), 1, bias=False), (2, 3, 4, 3)),
    case("MaxPool2d", lambda: bp.MaxPool2d(2), (2, 4, 6, 3)),
    case("MaxPool2d, stride, padding, odd", lambda: bp.MaxPool2d((3, 2), 2, (1, 0)), (2, 5, 7, 3)),
    case("MaxPool2d, same", lambda: bp.MaxPool2d(3, 2, "same"), (2, 5, 4, 3)),
    case("AvgPool2d", lambda: bp.AvgPool2d(2), (2, 4, 6, 3)),
    case("AvgPool2d, stride, padding, odd", lambda: bp.AvgPool2d(3, (1, 2), 1), (2, 5, 7, 3)),
    case("GlobalAvgPool", lambda: bp.GlobalAvgPool(), (2, 3, 4, 3)),
    case("GlobalAvgPool, sequences", lambda: bp.GlobalAvgPool(), (2, 5, 3)),
    case("Upsample", lambda: bp.Upsample(3), (2, 2, 3, 4)),
    case("BatchNorm", lambda: bp.BatchNorm(3), (5, 3)),
    case("BatchNorm, images, momentum, eps", lambda: bp.BatchNorm(3, 0.3, 0.1), (2, 3, 4, 3)),
    case("BatchNorm, sequences", lambda: bp.BatchNorm(4), (2, 3, 4)),
    case("GroupNorm", lambda: bp.GroupNorm(2, 4), (3, 2, 3, 4)),
    case("GroupNorm, one group, eps", lambda: bp.GroupNorm(1, 4, 0.1), (3, 2, 4)),
    case("GroupNorm, rows alone", lambda: bp.GroupNorm(2, 6), (3, 6)),
    case("Dropout2d", lambda: bp.Dropout2d(0.4), (3, 2, 3, 4)),
    case("Dropout2d, rows alone", lambda: bp.Dropout2d(0.4), (3, 4)),
    with_mask("Embedding", lambda: bp.Embedding(5, 3), labels(5, 4, 6)),
    with_mask("Embedding, one id again and again", lambda: bp.Embedding(300, 2), np.full((3, 2), 200, "uint8")),
    with_mask("Embedding, a vector of ids", lambda: bp.Embedding(4, 3, bp.initializers.HeNormal()), labels(4, 5).astype("int32")),
    case("Unembed", lambda: bp.Unembed(bp.Embedding(5, 3)), (2, 4, 3)),
    with_mask("Unembed, sharing an embedding", unembedded, labels(7, 3, 4)),
    case("PositionalEmbedding", lambda: bp.PositionalEmbedding(4, 3), (2, 4, 3)),
    case("PositionalEmbedding, fewer tokens", lambda: bp.PositionalEmbedding(9, 3), (2, 4, 3)),
    case("SinusoidalPositions", lambda: bp.SinusoidalPositions(6), (2, 5, 6)),
    case("RotaryPositions", lambda: bp.RotaryPositions(6), (2, 5, 6)),
    case("RotaryPositions, heads", lambda: bp.RotaryPositions(4), (2, 3, 5, 4)),
    case("MultiHeadAttention", lambda: bp.MultiHeadAttention(6, 3), (2, 4, 6)),
    case("MultiHeadAttention, causal", lambda: bp.MultiHeadAttention(4, 2, causal=True), (2, 5, 4)),
    with_mask("MultiHeadAttention, mask", lambda: bp.MultiHeadAttention(4, 2), (3, 5, 4), keys(5, 3, 1)),
    with_mask("MultiHeadAttention, mask of all", lambda: bp.MultiHeadAttention(4, 2), (3, 5, 4), keys(5, 0, 2)),
    with_mask("MultiHeadAttention, all", lambda: bp.MultiHeadAttention(4, 2, True, 0.3, True), (3, 5, 4), keys(5, 3, 1)),
    case("MultiHeadAttention, dropout", lambda: bp.MultiHeadAttention(4, 1, dropout=0.3), (2, 4, 4)),
    case("MultiHeadAttention, rotary", lambda: bp.MultiHeadAttention(8, 2, rotary=True), (2, 4, 8)),
    case("MultiHeadAttention, one token", lambda: bp.MultiHeadAttention(3, 1), (1, 1, 3)),
    case("TransformerBlock", lambda: bp.TransformerBlock(4, 2), (2, 3, 4)),
    case("TransformerBlock, causal, hidden", lambda: bp.TransformerBlock(4, 2, True, hidden=5), (2, 3, 4)),
    with_mask("TransformerBlock, all", lambda: bp.TransformerBlock(4, 2, True, 0.3, None, True), (3, 5, 4), keys(5, 3, 1)),
    case("LSTM", lambda: bp.LSTM(3, 4), (2, 5, 3)),
    case("LSTM, sizes of one", lambda: bp.LSTM(1, 1), (1, 1, 1)),
    case("GRU", lambda: bp.GRU(3, 4), (2, 5, 3)),
    case("GRU, sizes of one", lambda: bp.GRU(1, 1), (1, 1, 1)),
    case("Recompute", lambda: bp.Recompute(bp.MLP([4, 6, 3], "gelu", 0.3, "layer_norm")), (5, 4)),
    case("Recompute, buffers", lambda: bp.Recompute(bp.BatchNorm(3)), (5, 3)),
    with_mask(
        "Recompute, a mask in a stack",
        lambda: bp.Recompute(bp.Sequential(bp.TransformerBlock(4, 2, dropout=0.2), bp.RMSNorm(4), bp.TransformerBlock(4, 2))),
        (3, 5, 4),
        keys(5, 3, 1),
    ),
    with_mask("Recompute, two inputs", lambda: bp.Recompute(bp.TransformerBlock(4, 2, dropout=0.2)), (3, 5, 4), keys(5, 3, 1)),
    loss("SquaredError", lambda: bp.SquaredError(), (5, 3), floats(5, 3)),
    loss("SquaredError, one output", lambda: bp.SquaredError(), (5,), floats(5)),
    loss("SquaredError, leading axes, weights", lambda: bp.SquaredError(), (2, 4, 3), floats(2, 4, 3), positive(2, 4)),
    loss("Huber", lambda: bp.Huber(), 2 * floats(6, 3), floats(6, 3) / 3),
    loss("Huber, delta, weights", lambda: bp.Huber(0.3), (5, 3), floats(5, 3), positive(5)),
    loss("LogisticLoss", lambda: bp.LogisticLoss(), (5,), labels(2, 5)),
    loss("LogisticLoss, probabilities", lambda: bp.LogisticLoss(), (5, 3), rows(5, 3)),
    loss("LogisticLoss, weights", lambda: bp.LogisticLoss(), (5, 3), labels(2, 5, 3) > 0, positive(5)),
    loss("CrossEntropy", lambda: bp.CrossEntropy(), (5, 4), labels(4, 5)),
    loss("CrossEntropy, one example", lambda: bp.CrossEntropy(), (1, 4), labels(4, 1)),
    loss("CrossEntropy, more classes than uint8 counts", lambda: bp.CrossEntropy(), (3, 300), np.asarray([0, 44, 255], "uint8")),
    loss("CrossEntropy, leading axes, weights", lambda: bp.CrossEntropy(), (2, 3, 4), labels(4, 2, 3), positive(2, 3)),
    loss("CrossEntropy, rows", lambda: bp.CrossEntropy(), (5, 4), rows(5, 4)),
    loss("CrossEntropy, smoothing", lambda: bp.CrossEntropy(0.1), (5, 4), labels(4, 5).astype(np.uint8)),
    loss("CrossEntropy, rows, smoothing, weights", lambda: bp.CrossEntropy(0.2), (5, 4), rows(5, 4), positive(5)),
]


@dataclass
class Result:
    """What a case gave, on the host: outputs, B's dz for each input (None where there is none), dθ by path."""

    u: list[np.ndarray]
    dz: list[np.ndarray | None]
    dtheta: dict[str, np.ndarray]


def theta_of(one: Case, layout: Layout) -> np.ndarray:
    """A θ for the case, with its zeros and ones moved so that they are seen in use."""
    return layout.draw(1) + 0.1 * one.generator().standard_normal(layout.size)


def inputs_of(one: Case) -> list[np.ndarray]:
    """The case's inputs on the host."""
    generator = one.generator()
    drawn = []
    for x in one.inputs:
        if isinstance(x, tuple):
            x = generator.standard_normal(x)
            x = np.asarray(x + np.copysign(0.1, x))
        drawn.append(x)
    return drawn


def upstream(one: Case, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """v for outputs of these shapes."""
    generator = np.random.default_rng(len(one.id))
    return [np.asarray(generator.standard_normal(shape)) for shape in shapes]


def run(one: Case, on: Any, dtype: str) -> Result:
    """The case forward and backward on a backend, under its guard; what must not be written to is compared after."""
    module = one.make()
    layout = Layout(module)
    place = lambda x: on.asarray(x, dtype if x.dtype.kind == "f" else None)  # noqa: E731
    theta_vector, z = place(theta_of(one, layout)), [place(x) for x in inputs_of(one)]
    before = [on.to_host(x).copy() for x in (theta_vector, *z)]
    vector, spare = (on.writable(np.full(n, np.nan), dtype) for n in (layout.trained, layout.spare))
    with on.guard():
        u, saved = module.forward(layout.windows(theta_vector), *z, mode=bp.Mode(**MODE))
    outputs = u if isinstance(u, tuple) else (u,)
    v = tuple(on.asarray(x, dtype) for x in upstream(one, [tuple(x.shape) for x in outputs]))
    with on.guard():
        v_or_tuple = v if isinstance(u, tuple) else v[0]
        dz = module.backward(layout.windows(theta_vector), saved, v_or_tuple, layout.windows(vector, spare))
        layout.add_home(vector, spare)
    after = [on.to_host(x) for x in (theta_vector, *z)]
    for name, old, new in zip(("θ", *(f"input {i}" for i in range(len(z)))), before, after, strict=True):
        np.testing.assert_array_equal(new, old, err_msg=f"{one}: {name} was written to")
    named = layout.windows(vector)
    return Result(
        [on.to_host(x) for x in outputs],
        [None if x is None else on.to_host(x) for x in (dz if isinstance(dz, tuple) else (dz,))],
        {use.path: on.to_host(named[use.path]) for use in layout.homes if use.parameter.trained},
    )


def assert_close(got: Result, expected: Result, rtol: float, dtype: str) -> None:
    """The results agree to rtol of the largest entry of each array, in shape, dtype and where there is a gradient."""
    assert len(got.u) == len(expected.u)
    assert [x is None for x in got.dz] == [x is None for x in expected.dz]
    assert list(got.dtheta) == list(expected.dtheta)
    pairs = [(f"u {i}", a, b) for i, (a, b) in enumerate(zip(got.u, expected.u, strict=True))]
    pairs += [(f"dz {i}", a, b) for i, (a, b) in enumerate(zip(got.dz, expected.dz, strict=True)) if a is not None]
    pairs += [(f"gradient of {path}", a, expected.dtheta[path]) for path, a in got.dtheta.items()]
    for name, a, b in pairs:
        assert a.shape == b.shape, f"{name}: shape {a.shape}, expected {b.shape}"
        assert str(a.dtype) == dtype, f"{name}: dtype {a.dtype} for inputs of {dtype}"
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.max(np.abs(b), initial=0)), err_msg=name)
