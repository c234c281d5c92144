"""The random numbers of dropout: NumPy's counter-based generator, whose bits are the same on every backend."""

from __future__ import annotations

from math import prod

import numpy as np


def philox_mask(shape: tuple[int, ...], p: float, key: tuple[int, ...]) -> np.ndarray:
    """Booleans of this shape on the host, each False with probability p. They depend on `key`, four whole numbers, alone.

    Philox4x64-10 as in NumPy, at key (key[0], 0) and counter (0, key[1], key[2], key[3]). Element i takes the i-th 32-bit
    word, low half first, and is True if that word is at least `smallest_kept(p)`.

    Salmon et al., 2011
    """
    size = prod(shape)
    stream = np.random.Philox(key=key[0], counter=np.asarray([0, *key[1:]], dtype=np.uint64))
    words = stream.random_raw((size + 1) // 2).astype("<u8", copy=False).view("<u4")[:size]
    return np.reshape(words >= np.uint32(smallest_kept(p)), shape)


def smallest_kept(p: float) -> int:
    """The smallest 32-bit word that keeps its element where words are drawn uniformly: p 2³²."""
    return min(round(p * 2**32), 2**32 - 1)
