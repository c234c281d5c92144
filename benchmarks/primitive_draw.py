"""Arrays for primitives.py and modules.py: the sizes of a GPT and of a ResNet, and what draws arrays of them on a backend."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bpcore.array import Array
from bpcore.library import Backend


class Sizes(NamedTuple):
    """A GPT's: `n` sequences. A ResNet's: `images` with `side` pixels a side in the first stage, half as many in the next."""

    n: int = 16
    tokens: int = 512
    d: int = 768
    heads: int = 12
    vocabulary: int = 8192
    images: int = 256
    side: int = 32
    channels: tuple[int, ...] = (64, 128, 256, 512)
    parameters: int = 92_000_000
    recurrent: tuple[int, int, int, int] = (64, 100, 128, 256)  # sequences, tokens, features, state

    @property
    def rows(self) -> int:
        return self.n * self.tokens

    @property
    def hidden(self) -> int:
        return 4 * self.d


REAL = Sizes()
SIZES = {
    "real": REAL,
    "small": Sizes(2, 8, 16, 2, 32, 2, 8, (8, 16), 1000, (2, 3, 8, 8)),
    # of modules.py
    "usual": Sizes(16, 128, 256, 4, 8192, 32, 28, (32, 64), 5_800_000, (32, 64, 128, 128)),
    "large": Sizes(8, 512, 768, 12, 8192, 64, 32, (64, 128), 25_000_000),
}


class Draw:
    """Arrays on a backend, in a dtype: inputs with values, outputs with zeros."""

    def __init__(self, backend: Backend, dtype: str, sizes: Sizes):
        self.backend, self.dtype, self.sizes = backend, dtype, sizes
        self.generator = np.random.default_rng(0)

    def z(self, *shape: int, dtype: str | None = None) -> Array:
        """Standard normal numbers; a million different ones, because drawing takes longer than what is measured."""
        drawn = self.generator.standard_normal(min(math.prod(shape), 1 << 20), "float32")
        return self.place(np.resize(drawn, shape), dtype or self.dtype)

    def place(self, host: np.ndarray, dtype: str) -> Array:
        x = self.backend.asarray(host)
        return self.backend.xp.astype(x, self.backend.dtype(dtype))

    def positive(self, *shape: int, dtype: str | None = None) -> Array:
        return abs(self.z(*shape, dtype=dtype)) + 0.1

    def whole(self, limit: int, *shape: int) -> Array:
        return self.backend.asarray(self.generator.integers(0, limit, shape))

    def mask(self, *shape: int) -> Array:
        return self.backend.asarray(self.generator.random(shape) < 0.9)

    def out(self, *shape: int, dtype: str | None = None) -> Array:
        return self.backend.zeros(shape, self.backend.dtype(dtype or self.dtype))


def flat(d: Draw) -> Array:
    return d.z(d.sizes.rows, d.sizes.d)


def wide(d: Draw) -> Array:
    return d.z(d.sizes.rows, d.sizes.hidden)


def logits(d: Draw) -> Array:
    return d.z(d.sizes.rows, d.sizes.vocabulary)


def stage(d: Draw, i: int) -> tuple[int, int, int, int]:
    """The shape of images after stage i."""
    side = d.sizes.side >> i
    return d.sizes.images, side, side, d.sizes.channels[i]


def scores(d: Draw) -> Array:
    return d.z(d.sizes.n * d.sizes.heads, d.sizes.tokens, d.sizes.tokens)


def values(d: Draw) -> Array:
    return d.z(d.sizes.n * d.sizes.heads, d.sizes.tokens, d.sizes.d // d.sizes.heads)
