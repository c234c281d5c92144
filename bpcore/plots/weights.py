"""Weights as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpcore.arguments import show, whole
from bpcore.module import Module
from bpcore.network import Network
from bpcore.plots.canvas import FilePath, blank, expect_path, on_host, written
from bpcore.windows import Windows

__all__ = ["filters"]


def filters(W: Any, path: FilePath | None = None, most: int = 64, side: int | tuple[int, int] | None = None) -> Any:
    """Filters side by side, each on its own scale: blue below zero, red above; filters of three channels as colours.

    W: (height, width, n), or Conv2d's (height, width, c, n) with c = 1 or 3, or with `side` Linear's (inputs, n), whose columns
    are images of side x side, or (height, width) = side, and 1 or 3 channels. A filter of three channels is drawn in red, green
    and blue around grey, which is zero. most: the number of filters to draw, those with the largest norm. path: a file (.png,
    .svg, .pdf) to write. Returns matplotlib's Figure, which a notebook shows.
    """
    expect_path(path)
    most = whole("most", most)
    if isinstance(W, (Network, Module, Windows, Mapping)):
        raise TypeError(f"filters expected the array of one weight, got {show(W)}; e.g. net.windows[0].W")
    W = as_images(on_host("filters' W", W), side)  # (h, w, channels, n)
    h, w, channels, n = W.shape
    norms = np.sqrt(np.sum(W * W, axis=(0, 1, 2)))
    chosen = np.sort(np.argsort(-norms, kind="stable")[:most])
    columns = columns_of(len(chosen), h / w)
    rows = -(-len(chosen) // columns)
    gap = max(1, h // 14)
    mosaic = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, channels), np.nan)
    for i, k in enumerate(chosen):
        top = i // columns * (h + gap)
        left = i % columns * (w + gap)
        mosaic[top : top + h, left : left + w] = W[..., k] / max(float(np.abs(W[..., k]).max()), 1e-300)
    scale = min(6 / mosaic.shape[1], 9 / mosaic.shape[0])  # inches for an entry
    width, height = max(3.4, mosaic.shape[1] * scale + 1.2), mosaic.shape[0] * scale + 0.6
    figure = blank(width, height, layout=None)
    drawn = (mosaic.shape[1] * scale / width, mosaic.shape[0] * scale / height)
    left = (1 - drawn[0]) / 2 if channels == 3 else (1 - drawn[0] - 0.9 / width) / 2
    axes = figure.add_axes((left, 0.1 / height, *drawn))
    if channels == 3:
        axes.imshow(np.where(np.isnan(mosaic), 1.0, (mosaic + 1) / 2), interpolation="nearest")
    else:
        image = axes.imshow(mosaic[..., 0], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        place = (left + drawn[0] + 0.12 / width, 0.1 / height, 0.14 / width, drawn[1])
        bar = figure.colorbar(image, cax=figure.add_axes(place), ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["-max", "0", "max"])
        if height > 2.5:
            bar.set_label("of each filter's largest entry", fontsize=8)
        bar.outline.set_visible(False)
    axes.set_axis_off()
    of_norm = f"{len(chosen)} of {n} filters, those of the largest norm"
    axes.set_title("1 filter" if n == 1 else f"{n} filters" if n == len(chosen) else of_norm, fontsize=10)
    return written(figure, path)


def as_images(W: np.ndarray, side: Any) -> np.ndarray:
    """W as (height, width, channels, n), float64. Raises an error, with the repair, if it has another form."""
    shape = W.shape
    if W.dtype.kind not in "biuf":
        raise TypeError(f"filters expected numbers, got W of dtype {W.dtype}; pass the values of a weight")
    if side is not None:
        W = unfolded(W, side)
    elif W.ndim == 3:
        W = W[:, :, None, :]
    if W.ndim == 4 and W.size and W.shape[2] not in (1, 3):
        raise ValueError(f"filters draws 1 or 3 channels, got shape {shape} with {W.shape[2]}; choose one: W[:, :, i]")
    if W.ndim != 4 or not W.size:
        root = math.isqrt(shape[0]) if W.ndim == 2 else 0
        square = root > 1 and root * root == shape[0]
        repair = f"pass side={root} or reshape them" if square else "reshape them"
        raise ValueError(f"filters expected pictures (height, width, n), got shape {shape}; {repair}")
    wrong = int(np.sum(~np.isfinite(W)))
    if wrong:
        got = f"{wrong:,} of {W.size:,} that are NaN or infinite"
        raise ValueError(f"filters expected finite numbers, got {got}; train again with a smaller learning rate")
    W = W.astype("float64")
    return W / (float(np.abs(W).max()) or 1.0)  # so that no square overflows


def unfolded(W: np.ndarray, side: Any) -> np.ndarray:
    """The columns of W (inputs, n) as images (height, width, channels, n)."""
    height, width = side if isinstance(side, (tuple, list)) and len(side) == 2 else (side, side)
    height, width = whole("side", height), whole("side", width)
    if W.ndim != 2:
        raise ValueError(f"filters with side expected Linear's W (inputs, n), got shape {W.shape}; leave side out")
    channels, rest = divmod(W.shape[0], height * width)
    if rest or channels not in (1, 3):
        n = height * width
        expected = f"{n} inputs, or {3 * n} for three channels, with side {height} x {width}"
        raise ValueError(f"filters expected {expected}, got {W.shape[0]}; give side=(height, width)")
    return W.reshape(height, width, channels, -1)


def columns_of(n: int, ratio: float) -> int:
    """The number of columns for n filters whose height is `ratio` times their width: about a square, with full rows if it can."""
    root = math.ceil(math.sqrt(n if 0.5 <= ratio <= 2 else n * ratio))
    return min(n, next((c for c in range(root, 2 * root) if n % c == 0), root))
