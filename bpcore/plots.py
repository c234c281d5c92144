"""Pictures, with matplotlib (the extra `plot`), drawn without pyplot and its state."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from typing import Any

from bpcore.schedules import whole
from bpcore.training.callbacks import Callback
from bpcore.training.history import History


def learning_curve(history: History, path: str | os.PathLike[str] | None = None) -> Any:
    """Training and test loss against epochs, on a logarithmic scale, with the gap between them shaded.        (8.1)

    Metrics that were measured on both get a panel each. Returns matplotlib's Figure; writes it to `path` where given.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib: pip install 'bpcore[plot]'") from error
    if len(history) == 0:
        raise ValueError("the history is empty: there is no epoch to draw; call fit first")
    training = [name.removeprefix("training_") for name in history.columns if name.startswith("training_")]
    panels = [name for name in training if name == "loss" or f"test_{name}" in history.columns]
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    epochs = history["epoch"]
    for name, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        values = history[f"training_{name}"]
        axes.plot(epochs, values, color="#1f5a96", label="training", marker="o" if len(epochs) < 4 else None)
        if f"test_{name}" in history.columns:
            held_out = [math.nan if value is None else value for value in history[f"test_{name}"]]  # not measured: a gap
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
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


class LearningCurve(Callback):
    """The learning curve as a picture at `path` (.png, .svg, .pdf), drawn anew every `every` epochs and at the end."""

    def __init__(self, path: str | os.PathLike[str], every: int = 10):
        whole("every", every)
        self.path, self.every = path, every

    def on_start(self, trainer: Any) -> None:
        if find_spec("matplotlib") is None:
            raise RuntimeError("pictures need matplotlib: pip install 'bpcore[plot]'")

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        if record["epoch"] % self.every == 0:
            learning_curve(trainer.history, self.path)

    def on_end(self, trainer: Any) -> None:
        if len(trainer.history):
            learning_curve(trainer.history, self.path)
