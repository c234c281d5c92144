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

from bpcore.arguments import file, nearest, show

__all__ = ["History"]


class History:
    """The records of a run, a dictionary for each epoch: numbers by column.

    `history[-1]` is the record of the last epoch; `history["test_loss"]` is a column, a list with None where it was not
    measured; `history[:2]` is the History of the first two epochs. Iterating gives the records; str() gives them as a table.
    """

    def __init__(self, records: list[dict[str, Any]] | None = None):
        self.records = [] if records is None else records
        if not isinstance(self.records, list) or not all(isinstance(record, dict) for record in self.records):
            raise TypeError(f"records must be a list of dictionaries, one for each epoch, got {show(records)}")

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

    def __str__(self) -> str:
        table = [self.columns, *([text(r.get(name)) for name in self.columns] for r in self.records)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in table)

    __repr__ = __str__

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
        temporary = Path(f"{os.fspath(path)}.tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless path ends in .csv or .jsonl."""
    if Path(file(path)).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"a log's path must end in .csv or .jsonl, got {path}")


def plain(value: Any) -> Any:
    """value, or None for NaN and infinities, which JSON cannot express."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(value: Any) -> str:
    """A value as a cell of the table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
