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

CHARACTERS, TOKENS, D, HEADS, BLOCKS = 65, 64, 128, 4, 4  # of the transformer
RING = 1 << 28  # bytes of X: as many different batches as they hold
LABELINGS, NOISE = 17, 0.2  # vectors of labels for an X; the fraction of labels that is random
Theta = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """A network of a kind (mlp, cnn, transformer), its batch size, and its optimiser: Adam, or AdamW if decay > 0."""

    kind: str
    batch: int
    sizes: tuple[int, ...] = ()  # of an mlp
    lr: float = 1e-3
    decay: float = 0.0
    clip: float | None = None  # the largest norm of a gradient
    dropout: float = 0.0  # of a cnn
    gpu: bool = False  # too large for a CPU


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
}


def shapes(cell: Cell) -> dict[str, tuple[int, ...]]:
    """Path to shape of each trained parameter."""
    if cell.kind == "mlp":
        layers = list(enumerate(pairwise(cell.sizes)))
        return {f"{2 * i}.{name}": shape for i, (n, m) in layers for name, shape in (("W", (n, m)), ("b", (m,)))}
    if cell.kind == "cnn":
        of_cnn: dict[str, tuple[int, ...]] = {}
        for i, shape in ((0, (5, 5, 1, 24)), (3, (3, 3, 24, 48)), (7, (3, 3, 48, 96))):
            of_cnn |= {f"{i}.W": shape, f"{i + 1}.gamma": shape[-1:], f"{i + 1}.beta": shape[-1:]}
        return of_cnn | {"12.W": (4 * 4 * 96, 10), "12.b": (10,)}
    of_transformer = {"0.W": (CHARACTERS, D), "1.W": (TOKENS, D)}
    for i in range(2, BLOCKS + 2):
        of_transformer |= {f"{i}.{norm}.{name}": (D,) for norm in ("norm", "feed.body.0") for name in ("gamma", "beta")}
        of_transformer |= {f"{i}.attention.W": (D, 3 * D), f"{i}.attention.b": (3 * D,)}
        of_transformer |= {f"{i}.attention.W_o": (D, D), f"{i}.attention.b_o": (D,)}
        of_transformer |= {f"{i}.feed.body.1.W": (D, 4 * D), f"{i}.feed.body.1.b": (4 * D,)}
        of_transformer |= {f"{i}.feed.body.3.W": (4 * D, D), f"{i}.feed.body.3.b": (D,)}
    return of_transformer | {f"{BLOCKS + 2}.gamma": (D,), f"{BLOCKS + 2}.beta": (D,)}


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
    shape = {"mlp": cell.sizes[:1], "cnn": (28, 28, 1), "transformer": (TOKENS,)}[cell.kind]
    classes = {"mlp": cell.sizes[-1:], "cnn": (10,), "transformer": (CHARACTERS,)}[cell.kind][0]
    centres = generator.standard_normal((classes, *shape), "float32")
    for _ in range(min(16, max(4, RING // (4 * cell.batch * math.prod(shape))))):
        if cell.kind == "transformer":  # through the alphabet in steps of one, two or three characters
            start = generator.integers(0, classes, (cell.batch, 1))
            stride = generator.integers(1, 4, (cell.batch, 1))
            ids = (start + stride * np.arange(TOKENS + 1)) % classes
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
    rows, heads = n * TOKENS, n * HEADS
    attention = [Product(heads, TOKENS, D // HEADS, TOKENS), Product(heads, TOKENS, TOKENS, D // HEADS)]
    feed = [Product(1, rows, D, 4 * D), Product(1, rows, 4 * D, D)]
    block = [Product(1, rows, D, 3 * D), *attention, Product(1, rows, D, D), *feed]
    return block * BLOCKS + [Product(1, rows, D, CHARACTERS)]
