"""Learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bpcore.arguments import is_number, show, whole
from bpcore.plots.canvas import BLUE, ORANGE, FilePath, blank, expect_path, written
from bpcore.training.callbacks import Callback, Run
from bpcore.training.history import History

__all__ = ["LearningCurve", "learning_curve"]

UNITS = {  # by metric: what the numbers are
    "loss": "J, mean over the examples",
    "accuracy": "fraction of the examples",
    "mse": "square of the labels' unit",
    "rmse": "the labels' unit",
    "mae": "the labels' unit",
    "r2": "R², 1 is exact",
    "log_loss": "nats",
}
LOGARITHMIC = ("loss", "log_loss", "mse", "rmse", "mae")  # where all values are positive
FEW = 4  # epochs: so many points are drawn as dots


def learning_curve(history: History, path: FilePath | None = None) -> Any:
    """Training and test loss against epochs, on a logarithmic scale where it fits, with the gap between them shaded.

    Each metric has its own panel. A circle marks the epoch of `history.theta_epoch`, else of `history.best()`. path: a file to
    write (.png, .svg, .pdf). Returns matplotlib's Figure, which a notebook shows.

    (8.1)
    """
    expect_path(path)
    if not isinstance(history, History):
        got = type(history).__name__
        raise TypeError(f"learning_curve expected a History, got {got}; pass trainer.history, or bp.History(a list of records)")
    if len(history) == 0:
        raise ValueError("the history is empty: it has no epoch to draw; call fit first")
    names = dict.fromkeys(name.partition("_")[2] for name in map(str, history.columns) if name.startswith(("training_", "test_")))
    panels = [*(["loss"] if "loss" in names else []), *(name for name in names if name != "loss")]
    if not panels:
        got = ", ".join(map(str, history.columns))
        raise ValueError(f"learning_curve expected columns training_... or test_..., got {got}; pass the history of a fit")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = blank(5.2 * columns, 3.8 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for name, axes in zip(panels, places, strict=False):
        draw_panel(axes, history, name)
    for axes in places[len(panels) :]:
        axes.remove()
    return written(figure, path)


def draw_panel(axes: Any, history: History, name: str) -> None:
    """Draw the columns training_<name> and test_<name>."""
    from matplotlib.ticker import MaxNLocator

    epochs = numbers(history, "epoch") if "epoch" in history.columns else [float(i + 1) for i in range(len(history))]
    curves = {}
    marker = "o" if len(epochs) < FEW else None
    for kind, color, dash in (("training", BLUE, "-"), ("test", ORANGE, (0, (5, 1.5)))):
        if f"{kind}_{name}" in history.columns:
            values = curves[kind] = numbers(history, f"{kind}_{name}")
            axes.plot(epochs, values, color=color, linestyle=dash, label=kind, marker=marker)
            draw_alone(axes, epochs, values, color)
    if len(curves) == 2:
        axes.fill_between(epochs, *curves.values(), color=ORANGE, alpha=0.12, linewidth=0, label="gap (8.1)")
    draw_best(axes, history, epochs, curves, name)
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    scale(axes, finite, name in LOGARITHMIC)
    if not finite:
        axes.text(0.5, 0.5, "no finite value was measured", ha="center", va="center", transform=axes.transAxes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(set(epochs)) == 1:
        axes.set_xticks(epochs[:1])
    axes.set_xlabel("epoch")
    axes.set_ylabel(UNITS.get(name, name.replace("_", " ")))
    axes.set_title(name.replace("_", " "))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def numbers(history: History, name: str) -> list[float]:
    """A column as floats; NaN where nothing finite was measured. Raises TypeError for anything but numbers."""
    column = history[name]
    wrong = next((value for value in column if value is not None and not is_number(value)), None)
    if wrong is not None:
        raise TypeError(f"learning_curve expected numbers in {name}, got {show(wrong)}; convert the column, e.g. by float()")
    return [float(value) if value is not None and math.isfinite(value) else math.nan for value in column]


def draw_alone(axes: Any, epochs: Sequence[float], values: Sequence[float], color: str) -> None:
    """A dot for each value whose neighbours were not measured: no line shows it."""
    there = [False, *map(math.isfinite, values), False]
    alone = [i for i in range(len(values)) if there[i + 1] and not there[i] and not there[i + 2]]
    if len(epochs) >= FEW and alone:
        axes.scatter([epochs[i] for i in alone], [values[i] for i in alone], color=color, s=9)


def draw_best(axes: Any, history: History, epochs: Sequence[float], curves: dict[str, Any], name: str) -> None:
    """A circle at the epoch whose θ came back, else at the best, on the test curve if there is one; the loss's panel tells it."""
    back = next((record for record in history if record["epoch"] == history.theta_epoch), None)
    best = history.best() if back is None else back
    if best is None:
        return
    at = next(i for i, record in enumerate(history) if record is best)
    value = next((curves[kind][at] for kind in ("test", "training") if kind in curves and math.isfinite(curves[kind][at])), None)
    if value is not None:
        axes.scatter([epochs[at]], [value], s=70, facecolors="none", edgecolors="black", linewidths=1.3, zorder=3)
        if name == "loss":
            what = "lowest in" if back is None else "θ of"
            axes.set_title(f"{what} epoch {epochs[at]:g}: {value:.4g}", loc="right", fontsize="small")


def scale(axes: Any, values: Sequence[float], logarithmic: bool) -> None:
    """Choose the scale for these values, with numbers at the ticks: a logarithmic axis of few decades has none by default."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if not values or not logarithmic or min(values) <= 0 or min(values) == max(values):
        return
    decades = math.log10(max(values)) - math.log10(min(values))
    if decades > 100 or not 1e-300 < min(values) < max(values) < 1e300:
        axes.margins(y=0)  # the margin's end could overflow
    axes.set_yscale("log")
    if decades < 1:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    else:
        low, high = max(-323, math.floor(math.log10(min(values)))), min(307, math.ceil(math.log10(max(values))))
        powers = range(low, high + 1, 1 + int(decades / 8))
        axes.yaxis.set_major_locator(FixedLocator([m * 10.0**k for k in powers for m in ((1, 2, 5) if decades < 3 else (1,))]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


class LearningCurve(Callback):
    """Draws the learning curve to `path` (.png, .svg, .pdf) every `every` epochs and at the end of `fit`."""

    def __init__(self, path: FilePath, every: int = 10):
        self.path = path
        self.every = whole("every", every)

    def on_start(self, trainer: Run) -> None:
        expect_path(self.path)  # fails now if the path is wrong or matplotlib is missing, and not after the first epochs

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        if record["epoch"] % self.every == 0:
            learning_curve(trainer.history, self.path)

    def on_end(self, trainer: Run) -> None:
        if len(trainer.history):
            learning_curve(trainer.history, self.path)
