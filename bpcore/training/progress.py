"""What a run shows while it trains, where somebody looks."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from bpcore.arguments import flag, whole
from bpcore.array import Array
from bpcore.training.callbacks import Callback, Run

__all__ = ["Progress"]


class Progress(Callback):
    """Shows a tqdm bar for each epoch, and prints a line of figures at its end.

    every: the bar shows the loss every `every` steps. lines: whether to print the lines; None prints them where somebody looks.
    The bar is shown where somebody looks, which is a terminal or a notebook. A stream that is missing, closed or broken never
    ends the training.
    """

    def __init__(self, every: int = 20, lines: bool | None = None):
        self.every = whole("every", every)
        self.lines = None if lines is None else flag("lines", lines)
        self.bar: Any = None
        self.shows = self.prints = False  # whether there are bars and lines; `on_start` decides

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar": None}  # a copy opens a bar of its own

    def on_start(self, trainer: Run) -> None:
        self.bar = None
        self.shows = watched(sys.stderr) and (os.environ.get("TERM") != "dumb" or in_notebook())
        self.prints = watched(sys.stdout) if self.lines is None else self.lines
        self.steps = 0  # taken since the bar was last updated
        self.updated = 0.0  # when the bar was last updated

    def on_step(self, trainer: Run, J: Array) -> None:
        if not self.shows:
            return
        if self.bar is None:
            self.try_to(self.open, trainer)
        if self.bar is not None and trainer.steps % self.every == 0:
            loss = f"{float(trainer.network.backend.to_host(J)):.4f}"
            self.bar.set_postfix(loss=loss, refresh=False)  # shown when the bar is drawn: ten times a second and at the end
        self.steps += 1
        if time.monotonic() - self.updated >= 0.05:
            self.try_to(self.update)

    def on_epoch(self, trainer: Run, record: dict[str, Any]) -> None:
        self.try_to(self.close)
        if self.prints:
            figures = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float) and k not in ("lr", "seconds"))
            self.try_to(lambda: print(f"epoch {record['epoch']:>3}/{trainer.epochs}  {figures}", flush=True))

    def on_end(self, trainer: Run) -> None:
        self.try_to(self.close)

    def try_to(self, show: Callable[..., None], *args: Any) -> None:
        """Call show(*args), which writes to a stream; if it cannot, show nothing more."""
        try:
            show(*args)
        except Exception:  # whatever a stream raises
            if self.bar is not None:
                self.bar.disable = True  # it writes no more, not even when it is deleted
            self.bar, self.shows, self.prints = None, False, False

    def open(self, trainer: Run) -> None:
        """Show a new bar."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets bars of text
            from tqdm.auto import tqdm

        title = f"epoch {trainer.epoch + 1}/{trainer.epochs}"
        done = trainer.position - 1
        self.bar = tqdm(total=trainer.steps_per_epoch, initial=done, desc=title, leave=False, unit="step")

    def update(self) -> None:
        """Add the steps taken since the last update to the bar."""
        if self.bar is not None:
            self.bar.update(self.steps)
            self.steps = 0
            self.updated = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.update()
            self.bar.refresh()
            self.bar.close()
            self.bar = None


def watched(stream: Any) -> bool:
    """Whether somebody looks at this standard stream: on a terminal, or in a notebook. None and closed streams: False."""
    try:
        return stream is not None and not getattr(stream, "closed", False) and (in_notebook() or bool(stream.isatty()))
    except Exception:  # a stream of somebody's own
        return False


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})


def audience(progress: bool | None, callbacks: list[Callback]) -> list[Callback]:
    """The callbacks of a run. With progress=None they get a Progress if somebody looks, with True one that prints lines too.

    A Progress among them is enough.
    """
    wanted = watched(sys.stderr) or watched(sys.stdout) if progress is None else progress
    if not wanted or any(isinstance(callback, Progress) for callback in callbacks):
        return list(callbacks)
    return [Progress(lines=progress), *callbacks]
