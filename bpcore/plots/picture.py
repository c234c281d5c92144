"""Figure as a notebook shows it. Only this file imports matplotlib when it is imported: bpcore works without."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

INCH = 72  # points
MOST = 300  # characters of a line


class Picture(Figure):
    """matplotlib's Figure, without pyplot: a notebook shows it, `savefig` writes it, and no window opens."""

    def draw(self, renderer: Any) -> None:
        """Draw letters as wide as `width_of` says: hints would round each of them to whole pixels."""
        with rc_context({"text.hinting": "none"}):
            super().draw(renderer)

    def rendered(self, form: str, dpi: float) -> bytes:
        """The content of a file: form is "png", "svg", "pdf" or another that matplotlib writes."""
        buffer = io.BytesIO()
        self.savefig(buffer, format=form, dpi=dpi, facecolor=self.get_facecolor())
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.rendered("png", dpi=100)

    def show(self, warn: bool = True) -> None:
        """Raises RuntimeError: a picture has no window."""
        raise RuntimeError(
            "a picture opens no window: make it the last line of a notebook's cell, or write it to a file, path=..."
        )

    def formats(self) -> list[str]:
        """The endings of the files that matplotlib can write."""
        return sorted(self.canvas.get_supported_filetypes())


def width_of(text: str, size: float) -> float:
    """The width of a text in inches, set in `size` points."""
    width: Any = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]
    return float(width) / INCH


def fitted(text: str, inches: float, size: float) -> str:
    """The text, with its middle left out if it is wider than this."""
    if width_of(text[:MOST], size) <= inches:
        return text
    text = text if len(text) <= MOST else text[: MOST // 2] + text[-MOST // 2 :]
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
        if width_of(short, size) <= inches:
            return short
    return text[:1]
