"""Pictures, drawn with matplotlib (the extra `plot`), without the global state of pyplot."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from bpcore.arguments import file, whole
from bpcore.training.callbacks import Callback, Run
from bpcore.training.history import History

__all__ = ["LearningCurve", "confusion", "filters", "learning_curve"]


def learning_curve(history: History, path: str | os.PathLike[str] | None = None) -> Any:
    """Training and test loss against epochs, on a logarithmic scale, with the gap between them shaded.

    Each metric that was measured on both sets has its own panel. path: a file (.png, .svg, .pdf) to write. Returns matplotlib's
    Figure.

    (8.1)
    """
    if len(history) == 0:
        raise ValueError("the history is empty: it has no epoch to draw; call fit first")
    training = [name.removeprefix("training_") for name in history.columns if name.startswith("training_")]
    panels = [name for name in training if name == "loss" or f"test_{name}" in history.columns]
    figure = blank(5.2 * len(panels), 3.8)
    from matplotlib.ticker import MaxNLocator

    epochs = history["epoch"]
    for name, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        values = history[f"training_{name}"]
        axes.plot(epochs, values, color="#1f5a96", label="training", marker="o" if len(epochs) < 4 else None)
        if f"test_{name}" in history.columns:
            held_out = [math.nan if value is None else value for value in history[f"test_{name}"]]  # not measured: no point
            axes.plot(epochs, held_out, color="#c8501e", label="test", marker="o" if len(epochs) < 4 else None)
            axes.fill_between(epochs, values, held_out, color="#c8501e", alpha=0.12, linewidth=0, label="gap (8.1)")
        if name == "loss" and all(value > 0 for value in values):
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_title(name.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return written(figure, path)


def confusion(y: Any, predicted: Any, path: str | os.PathLike[str] | None = None, names: Any = None) -> Any:
    """The confusion matrix: how often class i (a row) was predicted as class j (a column), coloured where i and j differ.

    y, predicted: class indices (n,), on the host. names: the classes' names; by default their numbers. path: a file (.png, .svg,
    .pdf) to write. Returns matplotlib's Figure.
    """
    y, predicted = np.asarray(y), np.asarray(predicted)
    if y.ndim != 1 or y.shape != predicted.shape or y.dtype.kind not in "iu" or predicted.dtype.kind not in "iu" or not y.size:
        got = f"{y.dtype} {y.shape} and {predicted.dtype} {predicted.shape}"
        raise ValueError(f"confusion expected two vectors of class indices, got {got}; pass scores.argmax(axis=1)")
    y, predicted = y.astype("int64"), predicted.astype("int64")  # y * k could overflow in a smaller dtype
    k = max(int(y.max()), int(predicted.max())) + 1 if names is None else len(names)
    low, high = min(int(y.min()), int(predicted.min())), max(int(y.max()), int(predicted.max()))
    if low < 0 or high >= k:
        raise ValueError(f"confusion expected classes from 0 to {k - 1}, got {low} to {high}; correct them, or give all names")
    counts = np.bincount(y * k + predicted, minlength=k * k).reshape(k, k)
    diagonal = np.eye(k, dtype=bool)
    mistakes = np.where(diagonal, 0, counts)
    size = max(3.2, 0.46 * k + 1.2)
    figure = blank(size, size + 0.3)
    axes = figure.subplots()
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()) * 1.25)
    axes.imshow(np.where(diagonal, 0.1, np.nan), cmap="Greys", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=8, color="#666666" if i == j else "#222222")
    axes.set_xticks(range(k), range(k) if names is None else names)
    axes.set_yticks(range(k), range(k) if names is None else names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    axes.set_title(f"{mistakes.sum():,} of {len(y):,} wrong ({mistakes.sum() / len(y):.2%})")
    return written(figure, path)


def filters(W: Any, path: str | os.PathLike[str] | None = None, most: int = 64) -> Any:
    """Filters W (height, width, n) side by side, each on its own scale: blue below zero, red above.

    W: on the host; reshape Conv2d's (kh, kw, 1, n), and the W of a Linear on flat images, by W.reshape(h, w, -1). most: the
    number of filters to draw, those with the largest norm. path: a file (.png, .svg, .pdf) to write. Returns matplotlib's
    Figure.
    """
    most = whole("most", most)
    W = np.asarray(W)
    if W.ndim != 3 or not W.size:
        raise ValueError(f"filters expected pictures (height, width, n), got shape {W.shape}; reshape them")
    h, w, n = W.shape
    norms = np.sqrt(np.sum(W * W, axis=(0, 1)))
    chosen = np.sort(np.argsort(-norms, kind="stable")[:most])
    root = math.ceil(math.sqrt(len(chosen)))
    columns = next((c for c in range(root, 2 * root) if len(chosen) % c == 0), root)  # full rows where possible
    rows = -(-len(chosen) // columns)
    gap = max(1, h // 14)
    mosaic = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
    for i, k in enumerate(chosen):
        top = i // columns * (h + gap)
        left = i % columns * (w + gap)
        mosaic[top : top + h, left : left + w] = W[:, :, k] / max(float(np.abs(W[:, :, k]).max()), 1e-30)
    figure = blank(6, 6 * mosaic.shape[0] / mosaic.shape[1] + 0.3)
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{n} filters" if n == len(chosen) else f"{len(chosen)} of {n} filters, those of the largest norm")
    return written(figure, path)


def blank(width: float, height: float) -> Any:
    """An empty figure, width and height in inches. Raises RuntimeError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib: pip install 'bpcore[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def written(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Write the figure to `path`, if there is one, and return it."""
    if path is not None:
        figure.savefig(file(path), dpi=150)
    return figure


class LearningCurve(Callback):
    """Draws the learning curve to `path` (.png, .svg, .pdf) every `every` epochs and at the end of `fit`."""

    def __init__(self, path: str | os.PathLike[str], every: int = 10):
        self.path = path
        self.every = whole("every", every)

    def on_start(self, trainer: Run) -> None:
        blank(1, 1)  # fails now if matplotlib is missing, and not after the first epochs

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        if record["epoch"] % self.every == 0:
            learning_curve(trainer.history, self.path)

    def on_end(self, trainer: Run) -> None:
        if len(trainer.history):
            learning_curve(trainer.history, self.path)
