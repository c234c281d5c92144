"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from bpcore.arguments import show
from bpcore.host import check_index
from bpcore.plots.canvas import FilePath, blank, expect_path, matplotlib_here, on_host, written

__all__ = ["confusion"]

MOST = 1000  # classes
SMALLEST, LARGEST = 5.5, 9.0  # points, of the text


def confusion(y: Any, predicted: Any, path: FilePath | None = None, names: Iterable[Any] | None = None) -> Any:
    """The confusion matrix: how often class i (a row) was predicted as class j (a column), coloured where i and j differ.

    y: class indices (n,) or rows of probabilities (n, k). predicted: class indices (n,). names: the classes' names; by default
    their numbers. Long names are shortened, and numbers are left out where the cells are too small for them. path: a file (.png,
    .svg, .pdf) to write. Returns matplotlib's Figure, which a notebook shows.
    """
    expect_path(path)
    y, predicted, k = indices(y, predicted)
    labels = None if names is None else as_names(names)
    k = k if labels is None else len(labels)
    low, high = min(int(y.min()), int(predicted.min())), max(int(y.max()), int(predicted.max()))
    if low < 0 or high >= k:
        raise ValueError(f"confusion expected classes from 0 to {k - 1}, got {low} to {high}; correct them, or give all names")
    if k > MOST:
        raise ValueError(f"confusion draws at most {MOST:,} classes, got {k:,}; put classes together")
    counts = np.bincount(y * k + predicted, minlength=k * k).reshape(k, k)
    diagonal = np.eye(k, dtype=bool)
    mistakes = np.where(diagonal, 0, counts)
    side = min(max(0.46 * k, 2.4), 8.0)  # inches
    ticks, size, texts = tick_labels(labels or [str(i) for i in range(k)], side / k)
    picture = matplotlib_here()
    widest = max(picture.width_of(text, size) for text in texts)
    upright = widest > 0.9 * side / k * (ticks[1] - ticks[0] if len(ticks) > 1 else 1)
    left, bottom = widest + 0.55, (widest if upright else 0.16) + 0.5
    width, height = left + side + 1.2, bottom + side + 0.5
    figure = blank(width, height, layout=None)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    image = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()) * 1.25)
    axes.imshow(np.where(diagonal, 0.1, np.nan), cmap="Greys", vmin=0, vmax=1)
    write_counts(axes, counts, side / k)
    for axis, rotation in ((axes.xaxis, 90 if upright else 0), (axes.yaxis, 0)):
        axis.set_ticks(ticks, texts, fontsize=size, rotation=rotation, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    axes.set_title(f"{mistakes.sum():,} of {len(y):,} wrong ({mistakes.sum() / len(y):.2%})", fontsize=11, pad=10)
    bar = figure.colorbar(
        image, cax=figure.add_axes(((left + side + 0.15) / width, bottom / height, 0.15 / width, side / height))
    )
    bar.ax.set_ylim(0, max(1, mistakes.max()))
    bar.ax.yaxis.get_major_locator().set_params(integer=True)
    bar.ax.yaxis.set_major_formatter(lambda n, _: rounded(round(n)))
    bar.set_label("mistakes")
    bar.outline.set_visible(False)
    return written(figure, path)


def indices(y: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """(y, predicted, k): two vectors of class indices, and the number of classes that they show. Raises an error otherwise."""
    check_index("confusion", (y, predicted))
    y, predicted = on_host("confusion's y", y), on_host("confusion's predicted", predicted)
    if not y.size and not predicted.size:
        repair = "pass scores.argmax(axis=1) of at least one"
        raise ValueError(f"confusion expected two vectors of class indices, got no example; {repair}")
    y, predicted = (x[:, 0] if x.ndim == 2 and x.shape[1] == 1 and x.dtype.kind in "biu" else x for x in (y, predicted))
    got = f"{y.dtype} {y.shape} and {predicted.dtype} {predicted.shape}"
    k = 0
    if y.ndim == 2 and y.dtype.kind == "f" and y.size and np.all(y >= 0) and np.allclose(y.sum(axis=1), 1, atol=1e-3):
        k = y.shape[1]
        y = y.argmax(axis=1)
    if y.ndim != 1 or y.shape != predicted.shape or y.dtype.kind not in "biu" or predicted.dtype.kind not in "biu" or not y.size:
        one = max(y.shape[1:], default=0) == 1 or max(predicted.shape[1:], default=0) == 1
        repair = f"pass {'scores[:, 0] > 0' if one else 'scores.argmax(axis=1)'} of the same examples"
        if (
            y.shape == predicted.shape
            and y.ndim == 1
            and all(x.dtype.kind in "biuf" and np.all(x % 1 == 0) for x in (y, predicted))
        ):
            repair = "convert the labels: np.asarray(y).astype('int64')"
        raise ValueError(f"confusion expected two vectors of class indices, got {got}; {repair}")
    y, predicted = y.astype("int64"), predicted.astype("int64")  # y * k could overflow in a smaller dtype
    return y, predicted, max(k, int(y.max()) + 1, int(predicted.max()) + 1)


def as_names(names: Any) -> list[str]:
    """The names of the classes as texts. Raises TypeError unless they are a list."""
    if isinstance(names, (str, bytes, Mapping, Set)) or not isinstance(names, Iterable):
        raise TypeError(f"names must be a list with the name of each class, got {show(names)}; e.g. ['cat', 'dog']")
    return [" ".join(str(name).split()) for name in names]


def tick_labels(names: list[str], cell: float) -> tuple[range, float, list[str]]:
    """(the classes to label, the size of the text in points, their labels) for cells of this size in inches."""
    picture = matplotlib_here()
    size = min(LARGEST, max(SMALLEST, cell * picture.INCH * 0.9))
    step = 1
    while step * cell * picture.INCH < size * 1.1:  # labels would touch: every second, fifth, tenth ... class
        step = next(n for n in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if n > step)
    ticks = range(0, len(names), step)
    texts = [picture.fitted(names[i], 1.6, size) for i in ticks]
    if len(set(texts)) < len({names[i] for i in ticks}):  # what differs was left out
        texts = [picture.fitted(f"{i} {names[i]}", 1.6, size) for i in ticks]
    return ticks, size, texts


def write_counts(axes: Any, counts: np.ndarray, cell: float) -> None:
    """Write the counts into cells of this size in inches: all in full, or all rounded, or none."""
    picture = matplotlib_here()
    largest = min(LARGEST, cell * picture.INCH * 0.6)
    for form in (lambda n: f"{n:,}", rounded):
        texts = {(i, j): form(int(counts[i, j])) for i, j in np.argwhere(counts)}
        widest = max(picture.width_of(text, largest) for text in set(texts.values()))
        size = min(largest, largest * 0.88 * cell / widest)
        if size >= SMALLEST:
            for (i, j), text in texts.items():
                color = "#666666" if i == j else "#222222"
                axes.text(j, i, text, ha="center", va="center", fontsize=size, color=color)
            return


def rounded(n: int) -> str:
    """A count in at most four characters: 999, 1.2k, 12k, 3.4M."""
    for letter, unit in (("G", 10**9), ("M", 10**6), ("k", 1000)):
        if n >= unit:
            return f"{n / unit:.1f}{letter}" if n < 9.95 * unit else f"{n / unit:.0f}{letter}"
    return str(n)
