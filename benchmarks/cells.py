"""The cells of the benchmark: networks, their initial values, their batches, and the products of matrices in a step.

This file imports NumPy only, so that the memory of a worker is that of its engine. On every engine parameters have bpcore's paths
and shapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

RING = 1 << 28  # bytes of X: as many different batches as they hold
LABELINGS, NOISE = 17, 0.2  # vectors of labels for an X; the fraction of labels that is random
Theta = dict[str, np.ndarray]


class Transformer(NamedTuple):
    """The sizes of a transformer."""

    vocabulary: int
    tokens: int
    d: int
    heads: int
    blocks: int


CHARACTERS = Transformer(65, 64, 128, 4, 4)  # examples/char_transformer.py
GPT = Transformer(8192, 512, 768, 12, 12)
REAL: dict[str, Any] = {"lr": 3e-4, "decay": 0.1, "clip": 1.0, "gpu": True, "block": 4}  # of cells at real sizes


@dataclass(frozen=True)
class Cell:
    """A network of a kind (mlp, cnn, resnet, transformer), its batch size, and its optimiser: Adam, or AdamW if decay > 0."""

    kind: str
    batch: int
    sizes: tuple[int, ...] = ()  # of an mlp; the channels of a resnet's stages
    dims: Transformer = CHARACTERS
    image: tuple[int, int, int] = (28, 28, 1)  # of a cnn or resnet
    lr: float = 1e-3
    decay: float = 0.0
    clip: float | None = None  # the largest norm of a gradient
    dropout: float = 0.0  # of a cnn
    gpu: bool = False  # too large for a CPU
    block: int = 20  # calls between two waits for a GPU


CELLS = {
    "tiny": Cell("mlp", 32, (64, 64, 10)),
    "small": Cell("mlp", 64, (784, 128, 10)),
    "medium": Cell("mlp", 256, (784, 512, 512, 10)),
    "wide32": Cell("mlp", 32, (784, 2048, 2048, 10)),
    "large": Cell("mlp", 1024, (784, 2048, 2048, 10)),
    "deep": Cell("mlp", 128, (256,) * 16 + (10,)),
    "cnn": Cell("cnn", 128, decay=0.02, dropout=0.4),  # the network of examples/train_mnist.py
    "transformer": Cell("transformer", 32, lr=2e-3, decay=0.1, clip=1.0),  # the network of examples/char_transformer.py
    "gpu-large": Cell("mlp", 8192, (784, 4096, 4096, 10), gpu=True),
    "gpt": Cell("transformer", 16, dims=GPT, **REAL),  # 92 million parameters
    "gpt-2048": Cell("transformer", 4, dims=GPT._replace(tokens=2048), **REAL),
    "resnet": Cell("resnet", 256, (64, 128, 256, 512), image=(32, 32, 3), **REAL),  # 14 million
}


class Convolution(NamedTuple):
    """A 3x3 convolution of a resnet with padding 1, and the normalisation after it. side: of the images that it returns."""

    path: str
    norm: str
    c_in: int
    c_out: int
    stride: int
    side: int


def convolutions(cell: Cell) -> list[Convolution]:
    """Those of a resnet. A stage has one, then two residual modules of two each; from the second stage on it halves the image."""
    found: list[Convolution] = []
    side, before = cell.image[0], cell.image[2]
    for stage, c in enumerate(cell.sizes):
        stride, i = (2, 7 * stage) if stage else (1, 0)
        side //= stride
        found.append(Convolution(f"{i}", f"{i + 1}", before, c, stride, side))
        for body in (f"{i + 3}.body", f"{i + 5}.body"):
            found += [Convolution(f"{body}.{k}", f"{body}.{k + 1}", c, c, 1, side) for k in (0, 3)]
        before = c
    return found


def shapes(cell: Cell) -> dict[str, tuple[int, ...]]:
    """Path to shape of each trained parameter."""
    if cell.kind == "mlp":
        layers = list(enumerate(pairwise(cell.sizes)))
        return {f"{2 * i}.{name}": shape for i, (n, m) in layers for name, shape in (("W", (n, m)), ("b", (m,)))}
    if cell.kind in ("cnn", "resnet"):
        weights: dict[str, tuple[int, ...]] = {"0": (5, 5, 1, 24), "3": (3, 3, 24, 48), "7": (3, 3, 48, 96)}
        norms, last, features = {path: str(int(path) + 1) for path in weights}, "12", 4 * 4 * 96
        if cell.kind == "resnet":
            weights = {c.path: (3, 3, c.c_in, c.c_out) for c in convolutions(cell)}
            norms = {c.path: c.norm for c in convolutions(cell)}
            last, features = str(7 * len(cell.sizes) + 1), cell.sizes[-1]
        of_images: dict[str, tuple[int, ...]] = {}
        for path, shape in weights.items():
            of_images |= {f"{path}.W": shape, f"{norms[path]}.gamma": shape[-1:], f"{norms[path]}.beta": shape[-1:]}
        return of_images | {f"{last}.W": (features, 10), f"{last}.b": (10,)}
    d, blocks = cell.dims.d, cell.dims.blocks
    of_transformer = {"0.W": (cell.dims.vocabulary, d), "1.W": (cell.dims.tokens, d)}
    for i in range(2, blocks + 2):
        of_transformer |= {f"{i}.{norm}.{name}": (d,) for norm in ("norm", "feed.body.0") for name in ("gamma", "beta")}
        of_transformer |= {f"{i}.attention.W": (d, 3 * d), f"{i}.attention.b": (3 * d,)}
        of_transformer |= {f"{i}.attention.W_o": (d, d), f"{i}.attention.b_o": (d,)}
        of_transformer |= {f"{i}.feed.body.1.W": (d, 4 * d), f"{i}.feed.body.1.b": (4 * d,)}
        of_transformer |= {f"{i}.feed.body.3.W": (4 * d, d), f"{i}.feed.body.3.b": (d,)}
    return of_transformer | {f"{blocks + 2}.gamma": (d,), f"{blocks + 2}.beta": (d,)}


def theta(cell: Cell, seed: int = 0) -> Theta:
    """Initial values, float32: weights He's normal (embeddings with deviation 0.02), gamma ones, the rest zeros."""
    generator = np.random.default_rng(seed)
    drawn: Theta = {}
    for path, shape in shapes(cell).items():
        if len(shape) > 1:
            deviation = 0.02 if cell.kind == "transformer" and path in ("0.W", "1.W") else math.sqrt(2 / math.prod(shape[:-1]))
            drawn[path] = generator.standard_normal(shape, "float32") * np.float32(deviation)
        else:
            drawn[path] = np.full(shape, path.endswith("gamma"), "float32")
    return drawn


def batches(cell: Cell, seed: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """Different X, each with a list of LABELINGS vectors of labels; `in_turn` makes batches of steps from them.

    The data can be learned, but a fraction of the labels is random in each vector, so that no network fits them all: J and its
    gradient stay away from zero, where subnormal numbers would slow some engines down.
    """
    generator = np.random.default_rng(seed)
    tokens = cell.dims.tokens
    shape = {"mlp": cell.sizes[:1], "transformer": (tokens,)}.get(cell.kind, cell.image)
    classes = {"mlp": cell.sizes[-1:], "transformer": cell.dims[:1]}.get(cell.kind, (10,))[0]
    centres = None if cell.kind == "transformer" else generator.standard_normal((classes, *shape), "float32")
    for _ in range(min(16, max(4, RING // (4 * cell.batch * math.prod(shape))))):
        if centres is None:  # through the alphabet in steps of one, two or three characters
            start = generator.integers(0, classes, (cell.batch, 1))
            stride = generator.integers(1, 4, (cell.batch, 1))
            ids = (start + stride * np.arange(tokens + 1)) % classes
            X, y = np.ascontiguousarray(ids[:, :-1]), ids[:, 1:]
        else:
            y = generator.integers(0, classes, cell.batch)
            X = centres[y] + generator.standard_normal((cell.batch, *shape), "float32")
        random = generator.random((LABELINGS, *y.shape)) < NOISE
        yield X, list(np.where(random, generator.integers(0, classes, random.shape), y))


def in_turn(placed: list[tuple[Any, list[Any]]]) -> Iterator[tuple[Any, Any]]:
    """(X, y), without end: every X with its first labels, then every X with its second labels, and so on."""
    return itertools.cycle([(X, labels[k]) for k in range(LABELINGS) for X, labels in placed])


class Product(NamedTuple):
    """`stack` products (n, k) @ (k, m). Backward has one for the right operand, and, if need_left, one for the left."""

    stack: int
    n: int
    k: int
    m: int
    need_left: bool = True


def products(cell: Cell) -> list[Product]:
    """The products of a forward pass; a convolution is the product of its patches, in rows, and its weights."""
    n = cell.batch
    if cell.kind == "mlp":
        return [Product(1, n, k, m, i > 0) for i, (k, m) in enumerate(pairwise(cell.sizes))]
    if cell.kind == "cnn":
        first = Product(1, n * 14 * 14, 5 * 5 * 1, 24, False)
        return [first, Product(1, n * 12 * 12, 9 * 24, 48), Product(1, n * 4 * 4, 9 * 48, 96), Product(1, n, 4 * 4 * 96, 10)]
    if cell.kind == "resnet":
        of = [Product(1, n * c.side**2, 9 * c.c_in, c.c_out, i > 0) for i, c in enumerate(convolutions(cell))]
        return [*of, Product(1, n, cell.sizes[-1], 10)]
    vocabulary, tokens, d, heads, blocks = cell.dims
    rows, stack = n * tokens, n * heads
    attention = [Product(stack, tokens, d // heads, tokens), Product(stack, tokens, tokens, d // heads)]
    feed = [Product(1, rows, d, 4 * d), Product(1, rows, 4 * d, d)]
    block = [Product(1, rows, d, 3 * d), *attention, Product(1, rows, d, d), *feed]
    return block * blocks + [Product(1, rows, d, vocabulary)]
