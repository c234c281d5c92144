"""Guesses why a gradient is wrong, for `check_module`: what B is instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Host = np.ndarray[tuple[int, ...], np.dtype[Any]]


def cause(B: Host, G: Host, counts: Mapping[str, int], others: Iterable[tuple[str, Host]] = ()) -> str:
    """A sentence that says what B probably is, or "" if nothing fits. G: the gradient by differences.

    counts: numbers that B may have been multiplied or divided by, by what they count. others: (sentence, array): what B may be.
    """
    scale = float(np.max(np.abs(G), initial=0.0))
    if not np.all(np.isfinite(B)) or not scale:
        return ""
    if not np.any(B):
        return "B is zero: it was never computed, or it was written to another array"
    c = float(np.sum(B * G) / np.sum(G * G))
    if c and near(B, c * G) and (B.size > 1 or telling(c)):
        return factor(c, counts)
    if B.ndim == 2 and B.shape[0] == B.shape[1] and near(B, G.T):
        return "B is the transpose of what it should be"
    for sentence, other in others:
        if other.shape == B.shape and near(B, other):
            return sentence
    wrong = int(np.sum(np.abs(B - G) > 1e-4 * scale))
    return f"Wrong entries: {wrong} of {B.size}" if 0 < wrong < B.size else ""


def near(a: Host, b: Host) -> bool:
    """Whether a and b agree up to the error of differences."""
    return bool(np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b)))


def telling(c: float) -> bool:
    """Whether c is a factor that a mistake makes, as a wrong sign or a count does: one entry is c times another for any c."""
    size = max(abs(c), 1 / abs(c))
    return abs(size - round(size)) < 1e-4 * size and (round(size) > 1 or c < 0)


def factor(c: float, counts: Mapping[str, int]) -> str:
    """The sentence for B = c G."""
    sign = " and has the wrong sign" if c < 0 else ""
    size = abs(c)
    if abs(size - 1) < 1e-4:
        return "B has the wrong sign"
    for what, n in counts.items():
        if n > 1 and abs(size / n - 1) < 1e-4:
            return f"B is {n} times too large{sign}, and {n} is {what}: a sum where a mean is meant, or a division is missing"
        if n > 1 and abs(size * n - 1) < 1e-4:
            return f"B is {n} times too small{sign}, and {n} is {what}: a mean where a sum is meant, or a division too many"
    return f"B is {size:.4g} times what it should be{sign}"


def unwritten(name: str, first: Host, again: Host, fill: float) -> str:
    """The sentence for the window `name` that held `first` if it was zero before, and `again` if it held `fill` before."""
    if again.size and np.all(again == fill) and not np.any(first):
        return f"it was never written; set the window: gradient.{name}[...] = B[M, {name}](v)"
    if again.size and np.allclose(again - first, fill, rtol=0, atol=1e-9 * (1 + np.max(np.abs(first)))):
        return f"it was added to instead of overwritten; write gradient.{name}[...] = B[M, {name}](v)"
    return ""


def misshapen(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The sentence for a gradient of another shape than its input, or ""."""
    if got == expected[::-1]:
        return "; it is transposed"
    if got == expected[1:]:
        return "; it was summed over the rows"
    return ""
