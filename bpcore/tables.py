"""Tables of what a run or a network is: as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import TypeVar

T = TypeVar("T")
Row = Sequence[str]


def as_text(rows: Sequence[Row], left: int = 0) -> str:
    """Rows as lines of text. The first `left` columns are aligned on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def as_html(titles: Row, rows: Sequence[Row], left: int = 0, caption: str = "", bold: Collection[int] = ()) -> str:
    """An HTML table, for `_repr_html_`; every text is escaped.

    The first `left` columns are aligned on the left, the others on the right. caption: a line above the table. bold: the indices
    of the rows to print in bold.
    """

    def line(cells: Row, tag: str) -> str:
        aligned = (f'<{tag} style="text-align: {"left" if i < left else "right"}">' for i in range(len(cells)))
        return "".join(f"{opening}{escape(cell)}</{tag}>" for opening, cell in zip(aligned, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'th' if i in bold else 'td')}</tr>" for i, row in enumerate(rows))
    above = f'<caption style="text-align: left">{escape(caption)}</caption>' if caption else ""
    return f"<table>{above}<thead><tr>{line(titles, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def shortened(items: Sequence[T], most: int) -> tuple[Sequence[T], Sequence[T]]:
    """(first, last): all items and nothing, or, of more than `most`, those at both ends."""
    if len(items) <= most:
        return items, items[:0]
    return items[: most // 2], items[len(items) - most // 2 :]


def ends(rows: Sequence[Row], most: int) -> list[Row]:
    """The rows; of more than `most`, those at both ends, with a row of dots between."""
    first, last = shortened(rows, most)
    return [*first, *([("…",) * len(rows[0])] if last else []), *last]
