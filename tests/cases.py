"""The one table of cases: every module and loss in several configurations, a row each. All that tests know of it comes from here.

A row has the module, its inputs, what PyTorch computes for it and, for counting, the module of size n; see `Case`. PyTorch's
function is said in the first row of a class, for all of them, and not at all where it is called like the class: mish(z) for Mish.
An activation that maps each entry is counted at (n, n). A test asserts that every name of bpcore.modules is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import compositions as own
import numpy as np
import references as ref
from harness import Case

import bpcore as bp
from bpcore.module import Module
from bpcore.modules.activations import Elementwise
from bpcore.modules.mlp import snake_case


def case(id: str, make: Callable[[], Module], *inputs: Any, **more: Any) -> Case:
    return Case(id, make, inputs, **more)


def loss(id: str, make: Callable[[], Module], *inputs: Any, **more: Any) -> Case:
    """Labels, and weights where there are any, have no gradient."""
    return Case(id, make, inputs, tuple(range(1, len(inputs))), **more)


def with_mask(id: str, make: Callable[[], Module], *inputs: Any, **more: Any) -> Case:
    """A key-padding mask, or ids, come last and have no gradient."""
    return Case(id, make, inputs, (len(inputs) - 1,), **more)


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


def attending(kind: Callable[..., Module], *options: Any) -> Callable[[int], tuple[Any, ...]]:
    """An attention of 8 features, counted as its tokens grow, all of them seen."""
    return lambda n: (kind(8, 4, *options), (2, 4 * n, 8), np.ones((2, 4 * n), bool))


def weighted(kind: Callable[[], Module]) -> Callable[[int], tuple[Any, ...]]:
    """A loss of n outputs for n examples of weight 1."""
    return lambda n: (kind(), (n, n), (n, n), np.ones(n, "float32"))


def complete(rows: Iterable[Case]) -> Iterator[Case]:
    """The rows with what PyTorch computes from the first row of the class, or by its name; and the sizes of activations."""
    firsts: dict[str, Any] = {}
    for row in rows:
        name = snake_case(row.name)
        by_name = lambda F, m, theta, z, name=name: getattr(F, name)(z)  # noqa: E731
        torch = row.torch or firsts.get(name, by_name)
        firsts.setdefault(name, torch)
        sized = row.sized
        if sized is None and isinstance(row.make(), Elementwise):
            sized = lambda n, make=row.make: (make(), (n, n))  # noqa: E731
        yield replace(row, torch=torch, sized=sized)


SHAPE = (3, 2, 5)
BOTH = ("forward", "backward")
# fmt: off
ROWS = [  # a line or two each
    case("Linear", lambda: bp.Linear(4, 3), (5, 4), torch=ref.linear, sized=lambda n: (bp.Linear(n, n), (n, n))),
    case("Linear, no bias, leading axes", lambda: bp.Linear(4, 3, bias=False), (2, 3, 4),
         sized=lambda n: (bp.Linear(n, 1, bias=False), (1, n))),
    case("Linear, leading axes", lambda: bp.Linear(4, 3), (2, 2, 3, 4), sized=lambda n: (bp.Linear(1, n), (n, n, 1))),
    case("Linear, one example without a batch axis", lambda: bp.Linear(4, 3), (4,)),
    case("Linear, sizes of one", lambda: bp.Linear(1, 1), (1, 1)),
    case("Weight", lambda: bp.Weight((3, 2)), torch=lambda F, m, theta: theta["W"] * 1, sized=lambda n: (bp.Weight((n, n)),),
         free=BOTH),
    # activations
    case("ReLU", bp.ReLU, SHAPE, flushes=False),
    case("ReLU, a vector", bp.ReLU, (7,), flushes=False),
    case("LeakyReLU", bp.LeakyReLU, SHAPE, torch=lambda F, m, theta, z: F.leaky_relu(z, m.slope), flushes=False),
    case("LeakyReLU, slope 0.3", lambda: bp.LeakyReLU(0.3), SHAPE, flushes=False),
    case("ELU", bp.ELU, SHAPE, torch=lambda F, m, theta, z: F.elu(z, m.alpha)),
    case("ELU, alpha 1.7", lambda: bp.ELU(1.7), SHAPE),
    case("GELU", bp.GELU, SHAPE, torch=lambda F, m, theta, z: F.gelu(z, approximate=m.approximate)),
    case("GELU, far from zero", bp.GELU, 4 * floats(*SHAPE)),
    case("GELU, tanh", lambda: bp.GELU("tanh"), SHAPE),
    case("SiLU", bp.SiLU, SHAPE),
    case("Mish", bp.Mish, SHAPE),
    case("Sigmoid", bp.Sigmoid, SHAPE),
    case("Sigmoid, far from zero", bp.Sigmoid, 10 * floats(*SHAPE)),
    case("Tanh", bp.Tanh, SHAPE),
    case("Softplus", bp.Softplus, SHAPE),
    case("Identity", bp.Identity, SHAPE, torch=lambda F, m, theta, z: z * 1, free=BOTH, flushes=False),
    case("Softmax", bp.Softmax, SHAPE, torch=lambda F, m, theta, z: F.softmax(z, m.axis), sized=lambda n: (bp.Softmax(), (n, n))),
    case("Softmax, axis 1", lambda: bp.Softmax(axis=1), SHAPE, sized=lambda n: (bp.Softmax(0), (n, n))),
    case("Softmax, one class", bp.Softmax, (1, 1)),
    case("LogSoftmax", bp.LogSoftmax, SHAPE, torch=lambda F, m, theta, z: F.log_softmax(z, m.axis),
         sized=lambda n: (bp.LogSoftmax(), (n, n))),
    case("LogSoftmax, axis 0", lambda: bp.LogSoftmax(axis=0), SHAPE),
    # arithmetic
    case("Add", bp.Add, (3, 4), (3, 4), torch=lambda F, m, theta, a, b: a + b, sized=lambda n: (bp.Add(), (n, n), (n, n))),
    case("Add, a row", bp.Add, (2, 3, 4), (4,)),
    case("Add, both broadcast", bp.Add, (3, 1), (1, 4), sized=lambda n: (bp.Add(), (n, 1), (1, n))),
    case("Add, a scalar", bp.Add, (3, 4), ()),
    case("Subtract", bp.Subtract, (3, 4), (3, 4), torch=lambda F, m, theta, a, b: a - b,
         sized=lambda n: (bp.Subtract(), (n, n), (n,))),
    case("Subtract, broadcast", bp.Subtract, (4,), (2, 3, 4)),
    case("Multiply", bp.Multiply, (3, 4), (3, 4), torch=lambda F, m, theta, a, b: a * b,
         sized=lambda n: (bp.Multiply(), (n, n), (n, n))),
    case("Multiply, both broadcast", bp.Multiply, (2, 1, 4), (3, 1), sized=lambda n: (bp.Multiply(), (n, 1), (1, n))),
    case("Divide", bp.Divide, (3, 4), positive(3, 4), torch=lambda F, m, theta, a, b: a / b,
         sized=lambda n: (bp.Divide(), (n, n), (n,))),
    case("Divide, broadcast", bp.Divide, (3, 1), positive(2, 1, 4)),
    case("MatMul", bp.MatMul, (2, 3), (3, 4), torch=lambda F, m, theta, a, b: a @ b,
         sized=lambda n: (bp.MatMul(), (n, n), (n, n))),
    case("MatMul, leading axes against a matrix", bp.MatMul, (5, 2, 3), (3, 4), sized=lambda n: (bp.MatMul(), (n, 2, 3), (3, n))),
    case("MatMul, both broadcast", bp.MatMul, (2, 1, 2, 3), (4, 3, 2)),
    case("Exp", bp.Exp, SHAPE, sized=lambda n: (bp.Exp(), (n, n))),
    case("Log", bp.Log, positive(*SHAPE), sized=lambda n: (bp.Log(), (n, n))),
    case("Power, 3", lambda: bp.Power(3), SHAPE, torch=lambda F, m, theta, a, b=None: a ** (m.exponent if b is None else b),
         sized=lambda n: (bp.Power(3), (n, n))),
    case("Power, -1/2", lambda: bp.Power(-0.5), positive(*SHAPE)),
    case("Power, -1", lambda: bp.Power(-1), positive(4, 3)),
    case("Power, 0", lambda: bp.Power(0), SHAPE),
    case("Power, 0, of zeros", lambda: bp.Power(0), np.zeros((2, 3))),
    case("Power, two inputs", bp.Power, positive(3, 4), (3, 4), sized=lambda n: (bp.Power(), (n, n), (n, n))),
    case("Power, two inputs, broadcast", bp.Power, positive(3, 1), (2, 1, 4)),
    case("Sum", bp.Sum, SHAPE, torch=lambda F, m, theta, z: F.sum(z, m.axis, keepdim=m.keepdims),
         sized=lambda n: (bp.Sum(), (n, n))),
    case("Sum, axis 1", lambda: bp.Sum(axis=1), SHAPE, sized=lambda n: (bp.Sum(0), (n, n))),
    case("Sum, two axes kept", lambda: bp.Sum(axis=(0, -1), keepdims=True), SHAPE),
    case("Mean", bp.Mean, SHAPE, torch=lambda F, m, theta, z: F.mean(z, m.axis, keepdim=m.keepdims),
         sized=lambda n: (bp.Mean(-1), (n, n))),
    case("Mean, two axes", lambda: bp.Mean(axis=(0, -1)), SHAPE),
    case("Mean, axis kept", lambda: bp.Mean(axis=-1, keepdims=True), SHAPE),
    case("Concatenate", bp.Concatenate, (2, 3), (2, 1), (2, 2), torch=lambda F, m, theta, *z: F.cat(z, m.axis),
         sized=lambda n: (bp.Concatenate(), (n, n), (n, n)), free=BOTH),
    case("Concatenate, axis 0", lambda: bp.Concatenate(axis=0), (2, 3, 1), (4, 3, 1)),
    case("Concatenate, one input", bp.Concatenate, (2, 3)),
    case("Reshape", lambda: bp.Reshape((2, 3)), (4, 6), torch=lambda F, m, theta, z: z.reshape(4, *m.shape),
         sized=lambda n: (bp.Reshape((n, 2)), (n, 2 * n)), free=BOTH),
    case("Reshape, a size left open", lambda: bp.Reshape((-1, 2)), (4, 3, 4)),
    case("Flatten", bp.Flatten, SHAPE, torch=lambda F, m, theta, z: F.flatten(z, 1), sized=lambda n: (bp.Flatten(), (n, n, 2)),
         free=BOTH),
    # norms and dropout
    case("LayerNorm", lambda: bp.LayerNorm(5), (4, 5), torch=ref.layer_norm, sized=lambda n: (bp.LayerNorm(n), (n, n))),
    case("LayerNorm, leading axes, eps", lambda: bp.LayerNorm(5, eps=0.1), SHAPE),
    case("RMSNorm", lambda: bp.RMSNorm(5), (4, 5), torch=ref.rms_norm, sized=lambda n: (bp.RMSNorm(n), (n, n))),
    case("RMSNorm, leading axes, eps", lambda: bp.RMSNorm(5, eps=0.1), SHAPE),
    case("Dropout", lambda: bp.Dropout(0.4), SHAPE, torch=ref.dropout, sized=lambda n: (bp.Dropout(0.5), (n, n))),
    case("Dropout, none", lambda: bp.Dropout(0), SHAPE),
    # containers
    case("Sequential", lambda: bp.Sequential(bp.Linear(4, 3), bp.Tanh(), bp.Linear(3, 2)), (5, 4), torch=own.torch_sequential,
         sized=lambda n: (bp.Sequential(bp.Linear(n, n), bp.Tanh(), bp.Linear(n, 1)), (n, n))),
    case("Sequential, empty", bp.Sequential, (5, 4), torch=lambda F, m, theta, z: z * 1),
    case("Sequential, one module twice", own.twice, (5, 4), torch=own.torch_twice),
    case("Sequential, nested", own.nested, (3, 8), torch=own.torch_nested),
    case("Sequential, two in a container whose saved values are a tuple", own.side_by_side, (5, 4), torch=own.torch_side_by_side),
    Case("Sequential, ids and a mask", own.masked_stack, (labels(7, 3, 5), keys(5, 3, 1)), (0, 1), torch=own.torch_masked_stack),
    case("Residual", lambda: bp.Residual(bp.Linear(4, 4)), (5, 4),
         torch=lambda F, m, theta, z: z + ref.affine(theta, "body.", z), sized=lambda n: (bp.Residual(bp.Linear(n, n)), (n, n))),
    with_mask("Residual, attention with a mask",
         lambda: bp.Residual(bp.Sequential(bp.LayerNorm(4), bp.MultiHeadAttention(4, 2))), (3, 5, 4), keys(5, 3, 1),
         torch=own.torch_residual_attention),
    case("Circuit, fan-out", own.fan_out, (5, 4), torch=own.torch_fan_out, sized=lambda n: (own.circuit(n), (n, n), (n, n))),
    case("Circuit, two inputs", own.two_inputs, (4, 3), (4, 2),
         torch=lambda F, m, theta, a, b: ref.affine(theta, "ha.", a) * (b @ theta["hb.W"])),
    case("Circuit, several outputs", own.two_outputs, (5, 4), torch=own.torch_two_outputs),
    case("Circuit, operands", own.atomic_linear, (5, 4), torch=lambda F, m, theta, z: z @ theta["W.W"] + theta["b.W"]),
    loss("Circuit, a loss in it", own.with_loss, (5, 4), labels(3, 5),
         torch=lambda F, m, theta, x, y: F.cross_entropy(ref.affine(theta, "t.", x), y)),
    case("Tied, one parameter in two modules", lambda: own.Tied(4, 3), (5, 4),
         torch=lambda F, m, theta, z: z @ theta["encode.W"] @ theta["encode.W"].T),
    case("MLP", lambda: bp.MLP([4, 6, 5, 3]), (5, 4), torch=own.torch_mlp, sized=lambda n: (bp.MLP([4] * n), (n, 4))),
    case("MLP, one layer, batch 1", lambda: bp.MLP([4, 3]), (1, 4), torch=lambda F, m, theta, z: ref.affine(theta, "0.", z)),
    case("MLP, gelu, LayerNorm, dropout", lambda: bp.MLP([4, 6, 5, 3], "gelu", 0.2, "layer_norm"), (5, 4),
         torch=own.torch_gelu_network, sized=lambda n: (bp.MLP([n, n, n], "gelu", 0.1, "layer_norm"), (n, n))),
    case("MLP, tanh, RMSNorm, leading axes", lambda: bp.MLP([4, 6, 3], "tanh", normalization="rms_norm"), (2, 3, 4),
         torch=own.torch_tanh_network),
    case("MLP, a module for activation", lambda: bp.MLP([4, 6, 5, 3], bp.LeakyReLU(0.2)), (5, 4), torch=own.torch_leaky_network),
    # images
    case("Conv2d", lambda: bp.Conv2d(3, 4, 3), (2, 5, 6, 3), torch=ref.conv2d,
         sized=lambda n: (bp.Conv2d(3, 5, 3, padding=1), (2, n, n, 3))),
    case("Conv2d, same, stride, dilation, groups", lambda: bp.Conv2d(4, 6, (3, 2), 2, "same", (1, 2), 2), (2, 5, 7, 4),
         sized=lambda n: (bp.Conv2d(n, n, (3, 2), 2, "same"), (2, 6, 6, n))),
    case("Conv2d, depthwise, padding, no bias", lambda: bp.Conv2d(3, 6, 3, 1, (1, 2), groups=3, bias=False), (2, 4, 3, 3),
         sized=lambda n: (bp.Conv2d(n, n, 3, dilation=2, groups=n), (n, 8, 8, n))),
    case("Conv2d, one entry, valid", lambda: bp.Conv2d(3, 2, 1, padding="valid"), (2, 3, 4, 3)),
    case("Conv2d, one image of one entry", lambda: bp.Conv2d(1, 1, 3, padding=1), (1, 1, 1, 1)),
    case("Conv1d", lambda: bp.Conv1d(3, 4, 3), (2, 6, 3), torch=ref.conv1d,
         sized=lambda n: (bp.Conv1d(n, 3, 5, padding="same"), (2, n, n))),
    case("Conv1d, same, stride, dilation, groups", lambda: bp.Conv1d(4, 2, 3, 2, "same", 2, 2), (2, 7, 4)),
    case("Conv1d, padding, no bias", lambda: bp.Conv1d(2, 3, 2, padding=1, bias=False), (3, 4, 2)),
    case("ConvTranspose2d", lambda: bp.ConvTranspose2d(3, 2, 3), (2, 3, 4, 3), torch=ref.conv_transpose2d,
         sized=lambda n: (bp.ConvTranspose2d(3, 4, 3, 2), (2, n, n, 3))),
    case("ConvTranspose2d, all", lambda: bp.ConvTranspose2d(3, 2, (3, 2), 2, 1, (1, 2), 1, bias=False), (2, 3, 4, 3),
         sized=lambda n: (bp.ConvTranspose2d(n, n, 2, 2), (2, 3, 3, n))),
    case("MaxPool2d", lambda: bp.MaxPool2d(2), (2, 4, 6, 3), torch=ref.max_pool2d,
         sized=lambda n: (bp.MaxPool2d(2), (2, n, n, 3))),
    case("MaxPool2d, stride, padding, odd", lambda: bp.MaxPool2d((3, 2), 2, (1, 0)), (2, 5, 7, 3),
         sized=lambda n: (bp.MaxPool2d(3, 2, 1), (2, n, n, 3))),
    case("MaxPool2d, same", lambda: bp.MaxPool2d(3, 2, "same"), (2, 5, 4, 3)),
    case("AvgPool2d", lambda: bp.AvgPool2d(2), (2, 4, 6, 3), torch=ref.avg_pool2d,
         sized=lambda n: (bp.AvgPool2d(2), (2, n, n, 3))),
    case("AvgPool2d, stride, padding, odd", lambda: bp.AvgPool2d(3, (1, 2), 1), (2, 5, 7, 3)),
    case("GlobalAvgPool", bp.GlobalAvgPool, (2, 3, 4, 3), torch=ref.global_avg_pool,
         sized=lambda n: (bp.GlobalAvgPool(), (2, n, n, 3))),
    case("GlobalAvgPool, sequences", bp.GlobalAvgPool, (2, 5, 3)),
    case("Upsample", lambda: bp.Upsample(3), (2, 2, 3, 4), torch=ref.upsample, sized=lambda n: (bp.Upsample(2), (2, n, n, 3)),
         free=("forward",)),
    case("BatchNorm", lambda: bp.BatchNorm(3), (5, 3), torch=ref.batch_norm, sized=lambda n: (bp.BatchNorm(n), (4, n, n))),
    case("BatchNorm, images, momentum, eps", lambda: bp.BatchNorm(3, 0.3, 0.1), (2, 3, 4, 3)),
    case("BatchNorm, sequences", lambda: bp.BatchNorm(4), (2, 3, 4)),
    case("GroupNorm", lambda: bp.GroupNorm(2, 4), (3, 2, 3, 4), torch=ref.group_norm,
         sized=lambda n: (bp.GroupNorm(n // 2, n), (4, n, n))),
    case("GroupNorm, one group, eps", lambda: bp.GroupNorm(1, 4, 0.1), (3, 2, 4)),
    case("GroupNorm, rows alone", lambda: bp.GroupNorm(2, 6), (3, 6)),
    case("Dropout2d", lambda: bp.Dropout2d(0.4), (3, 2, 3, 4), torch=ref.dropout2d,
         sized=lambda n: (bp.Dropout2d(0.5), (2, n, n, 3))),
    case("Dropout2d, rows alone", lambda: bp.Dropout2d(0.4), (3, 4)),
    # sequences
    with_mask("Embedding", lambda: bp.Embedding(5, 3), labels(5, 4, 6), torch=ref.embedding,
         sized=lambda n: (bp.Embedding(100, n), np.zeros((2, n), "int64")), free=("forward",)),
    with_mask("Embedding, one id again and again", lambda: bp.Embedding(300, 2), np.full((3, 2), 200, "uint8")),
    with_mask("Embedding, a vector of ids", lambda: bp.Embedding(4, 3, bp.initializers.HeNormal()), labels(4, 5).astype("int32")),
    case("Unembed", lambda: bp.Unembed(bp.Embedding(5, 3)), (2, 4, 3), torch=ref.unembed,
         sized=lambda n: (bp.Unembed(bp.Embedding(n, n)), (2, 3, n))),
    with_mask("Unembed, sharing an embedding", own.unembedded, labels(7, 3, 4),
         torch=lambda F, m, theta, ids: F.tanh(theta["0.W"][ids]) @ theta["0.W"].T),
    case("PositionalEmbedding", lambda: bp.PositionalEmbedding(4, 3), (2, 4, 3), torch=ref.positional_embedding,
         sized=lambda n: (bp.PositionalEmbedding(n, n), (2, n, n))),
    case("PositionalEmbedding, fewer tokens", lambda: bp.PositionalEmbedding(9, 3), (2, 4, 3)),
    case("SinusoidalPositions", lambda: bp.SinusoidalPositions(6), (2, 5, 6), torch=ref.sinusoidal_positions,
         sized=lambda n: (bp.SinusoidalPositions(n), (2, n, n))),
    case("RotaryPositions", lambda: bp.RotaryPositions(6), (2, 5, 6), torch=ref.rotary_positions,
         sized=lambda n: (bp.RotaryPositions(n), (2, n, n))),
    case("RotaryPositions, heads", lambda: bp.RotaryPositions(4), (2, 3, 5, 4)),
    case("MultiHeadAttention", lambda: bp.MultiHeadAttention(6, 3), (2, 4, 6), torch=ref.attention,
         sized=lambda n: (bp.MultiHeadAttention(n, 4), (2, 6, n))),
    case("MultiHeadAttention, causal", lambda: bp.MultiHeadAttention(4, 2, causal=True), (2, 5, 4)),
    with_mask("MultiHeadAttention, mask", lambda: bp.MultiHeadAttention(4, 2), (3, 5, 4), keys(5, 3, 1)),
    with_mask("MultiHeadAttention, mask of all", lambda: bp.MultiHeadAttention(4, 2), (3, 5, 4), keys(5, 0, 2)),
    with_mask("MultiHeadAttention, all", lambda: bp.MultiHeadAttention(4, 2, True, 0.3, True), (3, 5, 4), keys(5, 3, 1),
         sized=attending(bp.MultiHeadAttention, True, 0.1, True)),
    case("MultiHeadAttention, dropout", lambda: bp.MultiHeadAttention(4, 1, dropout=0.3), (2, 4, 4)),
    case("MultiHeadAttention, rotary", lambda: bp.MultiHeadAttention(8, 2, rotary=True), (2, 4, 8)),
    case("MultiHeadAttention, one token", lambda: bp.MultiHeadAttention(3, 1), (1, 1, 3)),
    case("TransformerBlock", lambda: bp.TransformerBlock(4, 2), (2, 3, 4), torch=ref.transformer_block,
         sized=lambda n: (bp.TransformerBlock(n, 2, True, 0.1), (2, n, n))),
    case("TransformerBlock, causal, hidden", lambda: bp.TransformerBlock(4, 2, True, hidden=5), (2, 3, 4)),
    with_mask("TransformerBlock, all", lambda: bp.TransformerBlock(4, 2, True, 0.3, None, True), (3, 5, 4), keys(5, 3, 1),
         sized=attending(bp.TransformerBlock)),
    case("LSTM", lambda: bp.LSTM(3, 4), (2, 5, 3), torch=ref.lstm, sized=lambda n: (bp.LSTM(n, n), (2, 5, n))),
    case("LSTM, sizes of one", lambda: bp.LSTM(1, 1), (1, 1, 1), sized=lambda n: (bp.LSTM(3, 4), (n, n, 3))),
    case("GRU", lambda: bp.GRU(3, 4), (2, 5, 3), torch=ref.gru, sized=lambda n: (bp.GRU(n, n), (2, 5, n))),
    case("GRU, sizes of one", lambda: bp.GRU(1, 1), (1, 1, 1), sized=lambda n: (bp.GRU(3, 4), (n, n, 3))),
    case("Recompute", lambda: bp.Recompute(bp.MLP([4, 6, 3], "gelu", 0.3, "layer_norm")), (5, 4), torch=own.torch_recomputed,
         sized=lambda n: (bp.Recompute(bp.TransformerBlock(n, 2)), (2, n, n))),
    case("Recompute, buffers", lambda: bp.Recompute(bp.BatchNorm(3)), (5, 3),
         torch=lambda F, m, theta, z: F.batch_norm(z, None, None, theta["body.gamma"], theta["body.beta"], True)),
    with_mask("Recompute, a mask in a stack",
         lambda: bp.Recompute(bp.Sequential(bp.TransformerBlock(4, 2, dropout=0.2), bp.RMSNorm(4), bp.TransformerBlock(4, 2))),
         (3, 5, 4), keys(5, 3, 1), torch=own.torch_recomputed_stack),
    with_mask("Recompute, two inputs", lambda: bp.Recompute(bp.TransformerBlock(4, 2, dropout=0.2)), (3, 5, 4), keys(5, 3, 1),
         torch=own.torch_recomputed_block),
    # losses
    loss("SquaredError", bp.SquaredError, (5, 3), floats(5, 3), torch=ref.squared_error,
         sized=lambda n: (bp.SquaredError(), (n, n), (n, n))),
    loss("SquaredError, one output", bp.SquaredError, (5,), floats(5)),
    loss("SquaredError, leading axes, weights", bp.SquaredError, (2, 4, 3), floats(2, 4, 3), positive(2, 4)),
    loss("Huber", bp.Huber, 2 * floats(6, 3), floats(6, 3) / 3, torch=ref.huber, sized=weighted(bp.Huber)),
    loss("Huber, delta, weights", lambda: bp.Huber(0.3), (5, 3), floats(5, 3), positive(5)),
    loss("LogisticLoss", bp.LogisticLoss, (5,), labels(2, 5), torch=ref.logistic_loss,
         sized=lambda n: (bp.LogisticLoss(), (n, n), (n, n))),
    loss("LogisticLoss, probabilities", bp.LogisticLoss, (5, 3), rows(5, 3)),
    loss("LogisticLoss, weights", bp.LogisticLoss, (5, 3), labels(2, 5, 3) > 0, positive(5)),
    loss("CrossEntropy", bp.CrossEntropy, (5, 4), labels(4, 5), torch=ref.cross_entropy,
         sized=lambda n: (bp.CrossEntropy(), (n, n), np.zeros(n, "int64"))),
    loss("CrossEntropy, one example", bp.CrossEntropy, (1, 4), labels(4, 1)),
    loss("CrossEntropy, more classes than uint8 counts", bp.CrossEntropy, (3, 300), np.asarray([0, 44, 255], "uint8")),
    loss("CrossEntropy, leading axes, weights", bp.CrossEntropy, (2, 3, 4), labels(4, 2, 3), positive(2, 3)),
    loss("CrossEntropy, rows", bp.CrossEntropy, (5, 4), rows(5, 4)),
    loss("CrossEntropy, smoothing", lambda: bp.CrossEntropy(0.1), (5, 4), labels(4, 5).astype(np.uint8)),
    loss("CrossEntropy, rows, smoothing, weights", lambda: bp.CrossEntropy(0.2), (5, 4), rows(5, 4), positive(5),
         sized=weighted(lambda: bp.CrossEntropy(0.1))),
]
# fmt: on
CASES = list(complete(ROWS))
ORACLES = {one.name: one.torch for one in reversed(CASES)}  # what PyTorch computes, by class
