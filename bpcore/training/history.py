"""The measurements at the end of each epoch: training loss, test loss, and their gap.

(8.1)
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpcore import arguments, checkpoint, files, tables
from bpcore.arguments import is_number, nearest, show

__all__ = ["History"]

MOST_ROWS = 24  # of a long history at a prompt and in a notebook; str() gives all


class History:
    """The records of a run, a dictionary for each epoch: numbers by column.

    `history[-1]` is the record of the last epoch; `history["test_loss"]` is a column, a list with None where it was not
    measured; `history[:2]` is the History of the first two epochs. Iterating gives the records; str() gives them as a table. A
    prompt and a notebook shorten a long table. theta_epoch: the epoch whose θ the network has, if a callback has gone back to it;
    else None, and θ is that of the last step.
    """

    def __init__(self, records: list[dict[str, Any]] | None = None):
        self.records = [] if records is None else records
        if not isinstance(self.records, list) or not all(isinstance(record, dict) for record in self.records):
            raise TypeError(f"records must be a list of dictionaries, one for each epoch, got {show(records)}")
        self.theta_epoch: int | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch."""
        if not isinstance(record, dict):
            raise TypeError(f"a record must be a dictionary, numbers by column, got {show(record)}")
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, slice):
            return History(self.records[key])
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"the history has {len(self)} epochs, numbered from 0; got {key}")
            return self.records[key]
        if not isinstance(key, str):
            raise TypeError(f"a history is read by the number of an epoch, a slice, or a column's name, got {show(key)}")
        if self.records and key not in self.columns:
            raise KeyError(f"there is no {key!r}, only {', '.join(self.columns)}{nearest(key, self.columns)}")
        return [record.get(key) for record in self.records]

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order in which they first appeared."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def best(self) -> dict[str, Any] | None:
        """The record with the lowest test_loss, or training_loss if there is no test loss; None without a finite loss."""
        name = self._judged()
        measured = [record for record in self.records if is_finite(record.get(name))]
        return min(measured, key=lambda record: float(record[name]), default=None)

    def _judged(self) -> str:
        """The column that tells the best record."""
        return "test_loss" if any(is_finite(record.get("test_loss")) for record in self.records) else "training_loss"

    def __str__(self) -> str:
        return self._table(list(map(self._cells, self.records))) if self.records else ""

    def _table(self, lines: list[list[str]]) -> str:
        """Lines under the names of the columns; then the note."""
        return "\n".join([tables.as_text([self.columns, *lines]), *self._note()])

    def _note(self) -> list[str]:
        """Which θ the network has, if not that of the last step."""
        return [] if self.theta_epoch is None else [f"the network has the θ of epoch {self.theta_epoch}"]

    def _cells(self, record: dict[str, Any]) -> list[str]:
        """A record as a line of the table."""
        return [text(record.get(name)) for name in self.columns]

    def _shortened(self) -> tuple[list[list[str]], int | None]:
        """The lines of the table, of a long one those at both ends and the best, and the number of the best line."""
        best = self.best()
        first, last = tables.shortened(self.records, MOST_ROWS)
        between = [best] if last and best is not None and not any(best is record for record in (*first, *last)) else []
        lines: list[list[str]] = []
        mark = None
        for n, part in enumerate((first, between, last)):
            if part and n:
                lines.append(["…"] * len(self.columns))
            for record in part:
                mark = len(lines) if record is best else mark
                lines.append(self._cells(record))
        return lines, mark

    def __repr__(self) -> str:
        return self._table(self._shortened()[0]) if self.records else "History([])"

    def _repr_html_(self) -> str:
        lines, mark = self._shortened()
        caption = [] if lines else ["a history without epochs"]
        if mark is not None:
            caption.append(f"bold: the lowest {self._judged()}")
        bold = [] if mark is None else [mark]
        return tables.as_html(self.columns, lines, caption="; ".join(caption + self._note()), bold=bold)

    def _ipython_key_completions_(self) -> list[str]:
        return self.columns

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write all records to `path`, .csv or .jsonl. The file is replaced as a whole."""
        check_suffix(path)
        suffix = Path(path).suffix
        if suffix == ".csv":
            buffer = io.StringIO()
            writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.records)
            content = buffer.getvalue()
        else:
            content = "".join(json.dumps({k: plain(v) for k, v in record.items()}) + "\n" for record in self.records)
        files.write(path, content.encode())


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless path ends in .csv or .jsonl."""
    if Path(arguments.path("path", path)).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"a log's path must be a name that ends in .csv or .jsonl, e.g. log.csv, got {path}")


def is_finite(value: Any) -> bool:
    """Whether value is a finite number."""
    return is_number(value) and math.isfinite(value)


def expect_record(record: dict[str, Any]) -> None:
    """Raise a TypeError if a file cannot keep what a callback has put into a record, and take it out."""
    name = checkpoint.unstorable(record)
    if name is not None:
        repair = "a file keeps numbers, texts and lists of them: float(x), or x.tolist()"
        raise TypeError(f"the record's column {name!r} has {show(record.pop(name))}, and {repair}")


def plain(value: Any) -> Any:
    """value as Python's own number, or None for NaN and infinities, which JSON cannot express."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(value: Any) -> str:
    """A value as a cell of the table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
