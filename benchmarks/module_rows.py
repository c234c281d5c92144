"""The rows of modules.py: every module and loss at the sizes of a layer, what PyTorch computes instead, and the optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from cells import CELLS, Transformer
from primitive_draw import Draw, Sizes, flat, logits, stage, values, wide
from primitive_rows import zeros_and_ones
from torch_engine import transformer

# Modules without a row: they compute nothing, or nothing of their own.
WITHOUT = ("Circuit", "Flatten", "Identity", "MLP", "Recompute", "Reshape", "Residual", "Sequential", "Weight")


class Row(NamedTuple):
    """A module, and its inputs.

    module: makes it, with bpcore or torch.nn as the argument. torch: with PyTorch as the argument, makes what it has instead, if
    it is made or called in another way. first: whether channels come first in PyTorch. An optimiser is a row too: its inputs are
    θ and the gradient, and `torch` makes a function of the list of parameters, None if PyTorch has none.
    """

    module: Callable[[Any], Any]
    draw: Callable[[Draw], tuple[Any, ...]]
    torch: Callable[[Any], Any] | None = None
    first: bool = False


def one(draw: Callable[[Draw], Any]) -> Callable[[Draw], tuple[Any, ...]]:
    """A single input."""
    return lambda d: (draw(d),)


def two(draw: Callable[[Draw], Any]) -> Callable[[Draw], tuple[Any, ...]]:
    return lambda d: (draw(d), draw(d))


def activation(name: str, *arguments: Any) -> Row:
    return Row(lambda m: getattr(m, name)(*arguments), one(wide))


def arithmetic(name: str, call: Callable[..., Any], draw: Callable[[Draw], tuple[Any, ...]], *arguments: Any) -> Row:
    """call: on tensors, the same."""
    return Row(lambda bp: getattr(bp, name)(*arguments), draw, lambda torch: call)


def image(d: Draw) -> Any:
    return d.z(*stage(d, 0))


def of_image(module: Callable[[Any], Any], torch: Callable[[Any], Any] | None = None) -> Row:
    return Row(module, one(image), torch, True)


def sequences(d: Draw) -> Any:
    return d.z(d.sizes.n, d.sizes.tokens, d.sizes.d)


def positive(d: Draw) -> Any:
    return d.positive(d.sizes.rows, d.sizes.hidden)


def of_rows(name: str) -> Callable[[Any], Any]:
    """A loss of PyTorch's, as bpcore takes it: the sum over outputs, the mean over rows."""

    def make(torch: Any) -> Callable[[Any, Any], Any]:
        function, factor = getattr(torch.nn.functional, name), 0.5 if name == "mse_loss" else 1.0
        return lambda z, y: function(z, y, reduction="sum") * (factor / z.shape[0])

    return make


def part(sizes: Sizes, i: int, name: str = "") -> Callable[[Any], Any]:
    """Layer i of the transformer that run.py measures, or the part of it that goes by this name."""
    cell = replace(CELLS["gpt"], dims=Transformer(1, sizes.tokens, sizes.d, sizes.heads, 1))
    return lambda torch: transformer(cell)[i].get_submodule(name)


def angles(torch: Any, sizes: Sizes) -> Any:
    rates = 10000.0 ** (-torch.arange(0, sizes.d, 2, dtype=torch.float64) / sizes.d)
    return torch.outer(torch.arange(sizes.tokens, dtype=torch.float64), rates)


def sinusoidal(sizes: Sizes) -> Callable[[Any], Any]:
    def make(torch: Any) -> Any:
        angle = angles(torch, sizes)
        table = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2).float()
        return lambda z: z + table

    return make


def rotary(sizes: Sizes) -> Callable[[Any], Any]:
    def make(torch: Any) -> Any:
        angle = angles(torch, sizes)
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        return lambda z: torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    return make


def recurrent(name: str, sizes: Sizes) -> Row:
    n, tokens, m, k = sizes.recurrent

    def make(torch: Any) -> Any:
        return getattr(torch.nn, name)(m, k, batch_first=True)

    return Row(lambda bp: getattr(bp, name)(m, k), lambda d: (d.z(n, tokens, m),), make)


def optimizer(ours: str, theirs: str | None, **options: Any) -> Row:
    def make(torch: Any) -> Callable[[Any], Any]:
        fused = {"fused": True} if theirs not in ("NAdam", "RMSprop") else {}  # one pass on a CPU
        return lambda parameters: getattr(torch.optim, theirs)(parameters, 1e-3, weight_decay=0.1, **options, **fused)

    def draw(d: Draw) -> tuple[Any, ...]:
        return d.z(d.sizes.parameters), d.z(d.sizes.parameters)

    return Row(lambda bp: getattr(bp, ours)(1e-3, weight_decay=0.1, **options), draw, make if theirs else None)


def rows(sizes: Sizes) -> dict[str, Row]:
    """Row by name, which begins with the module's."""
    d, hidden, tokens, vocabulary = sizes.d, sizes.hidden, sizes.tokens, sizes.vocabulary
    c, wider = sizes.channels[:2]
    names = ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softplus")
    return {name: activation(name) for name in names} | {
        "GELU tanh": activation("GELU", "tanh"),
        "Softmax": activation("Softmax", -1),
        "LogSoftmax": activation("LogSoftmax", -1),
        "Add": arithmetic("Add", lambda a, b: a + b, two(wide)),
        "Subtract": arithmetic("Subtract", lambda a, b: a - b, two(wide)),
        "Multiply": arithmetic("Multiply", lambda a, b: a * b, two(wide)),
        "Divide": arithmetic("Divide", lambda a, b: a / b, two(positive)),
        "MatMul": arithmetic("MatMul", lambda a, b: a @ b, lambda d: (values(d), values(d).swapaxes(-1, -2).copy())),
        "Exp": arithmetic("Exp", lambda z: z.exp(), one(wide)),
        "Log": arithmetic("Log", lambda z: z.log(), one(positive)),
        "Power": arithmetic("Power", lambda z: z**3, one(wide), 3),
        "Sum": arithmetic("Sum", lambda z: z.sum(-1), one(wide), -1),
        "Mean": arithmetic("Mean", lambda z: z.mean(-1), one(wide), -1),
        "Concatenate": Row(lambda bp: bp.Concatenate(), two(wide), lambda torch: lambda *z: torch.cat(z, -1)),
        "Linear": Row(lambda m: m.Linear(d, hidden), one(flat)),
        "Unembed": Row(
            lambda bp: bp.Unembed(bp.Embedding(vocabulary, d)),
            one(flat),
            lambda torch: torch.nn.Linear(d, vocabulary, bias=False),
        ),
        "LayerNorm": Row(lambda m: m.LayerNorm(d), one(flat)),
        "RMSNorm": Row(lambda m: m.RMSNorm(d), one(flat)),
        "Dropout": Row(lambda m: m.Dropout(0.1), one(wide)),
        "Embedding": Row(lambda m: m.Embedding(vocabulary, d), lambda d: (d.whole(vocabulary, d.sizes.n, tokens),)),
        "PositionalEmbedding": Row(lambda bp: bp.PositionalEmbedding(tokens, d), one(sequences), part(sizes, 1)),
        "SinusoidalPositions": Row(lambda bp: bp.SinusoidalPositions(d), one(sequences), sinusoidal(sizes)),
        "RotaryPositions": Row(lambda bp: bp.RotaryPositions(d), one(sequences), rotary(sizes)),
        "MultiHeadAttention": Row(
            lambda bp: bp.MultiHeadAttention(d, sizes.heads, True), one(sequences), part(sizes, 2, "attention")
        ),
        "TransformerBlock": Row(lambda bp: bp.TransformerBlock(d, sizes.heads, True), one(sequences), part(sizes, 2)),
        "LSTM": recurrent("LSTM", sizes),
        "GRU": recurrent("GRU", sizes),
        "Conv2d 3x3": of_image(lambda m: m.Conv2d(c, c, 3, padding=1)),
        "Conv2d 3x3 stride 2": of_image(lambda m: m.Conv2d(c, wider, 3, 2, 1)),
        "Conv2d 1x1": of_image(lambda m: m.Conv2d(c, c, 1)),
        "Conv2d depthwise": of_image(lambda m: m.Conv2d(c, c, 3, padding=1, groups=c)),
        "Conv1d": Row(lambda m: m.Conv1d(d, d, 3, padding=1), one(sequences), first=True),
        "ConvTranspose2d": of_image(lambda m: m.ConvTranspose2d(c, c // 2, 2, 2)),
        "MaxPool2d": of_image(lambda m: m.MaxPool2d(2)),
        "AvgPool2d": of_image(lambda m: m.AvgPool2d(2)),
        "GlobalAvgPool": of_image(lambda bp: bp.GlobalAvgPool(), lambda torch: lambda z: z.mean((2, 3))),
        "Upsample": of_image(lambda bp: bp.Upsample(2), lambda torch: torch.nn.Upsample(scale_factor=2)),
        "BatchNorm": of_image(lambda bp: bp.BatchNorm(c), lambda torch: torch.nn.BatchNorm2d(c)),
        "GroupNorm": of_image(lambda m: m.GroupNorm(8, c)),
        "Dropout2d": of_image(lambda m: m.Dropout2d(0.1)),
        "SquaredError": Row(lambda bp: bp.SquaredError(), two(flat), of_rows("mse_loss")),
        "Huber": Row(lambda bp: bp.Huber(), two(flat), of_rows("huber_loss")),
        "LogisticLoss": Row(
            lambda bp: bp.LogisticLoss(),
            lambda d: (flat(d), zeros_and_ones(d)),
            of_rows("binary_cross_entropy_with_logits"),
        ),
        "CrossEntropy": Row(
            lambda bp: bp.CrossEntropy(),
            lambda d: (logits(d), d.whole(vocabulary, d.sizes.rows)),
            lambda torch: torch.nn.functional.cross_entropy,
        ),
        "SGD": optimizer("SGD", "SGD", momentum=0.9),
        "Adagrad": optimizer("Adagrad", "Adagrad"),
        "RMSProp": optimizer("RMSProp", "RMSprop"),
        "Adam": optimizer("Adam", "Adam"),
        "AdamW": optimizer("AdamW", "AdamW"),
        "NAdam": optimizer("NAdam", "NAdam"),
        "Lion": optimizer("Lion", None),
    }
