"""The time that `Trainer.fit` adds to its steps: an epoch with shuffling, metrics, progress and a log, against bare steps."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell

ROWS = 1797  # as in scikit-learn's digits
EPOCHS = 20  # of one `fit`


class Terminal(io.StringIO):
    """A stream that discards its text but claims to be a terminal, so that the progress bar is drawn."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def measured(cell: Cell) -> dict[str, float]:
    """Seconds of an epoch of `fit`, and of the same number of bare steps and an evaluation of the loss on the training set.

    Each has its own trainer, which is new but warm. `fit`'s time includes its checks of the data; the bare evaluation has no
    metric.
    """
    import bpcore as bp
    from bpcore.training.data import as_examples
    from bpcore.training.evaluation import measure

    generator = np.random.default_rng(0)
    y = generator.integers(0, cell.sizes[-1], ROWS)
    X = generator.standard_normal((cell.sizes[-1], cell.sizes[0]), "float32")[y]
    X = X + generator.standard_normal(X.shape, "float32")
    rows = [slice(i, i + cell.batch) for i in range(0, ROWS, cell.batch)]
    batches = [(X[at], y[at]) for at in rows]
    examples = as_examples((X, y), "train")

    def trainer(**options: Any) -> Any:
        return bp.Trainer(bp.Network(bp.MLP(cell.sizes), backend="numpy"), bp.CrossEntropy(), bp.Adam(cell.lr), **options)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(Terminal()), contextlib.redirect_stdout(Terminal()):
        log = bp.HistoryLog(Path(folder) / "history.csv")
        fitted = trainer(metrics=["accuracy"], callbacks=[bp.Progress(), log])
        bare = trainer()
        fitted.fit((X, y), epochs=1, batch_size=cell.batch)
        started = time.perf_counter()
        fitted.fit((X, y), epochs=1 + EPOCHS, batch_size=cell.batch)
        fit = time.perf_counter() - started
        for epoch in range(1 + EPOCHS):
            if epoch == 1:
                started = time.perf_counter()
            for batch in batches:
                bare.step(*batch)
            measure(bare.network, bare.loss, [], examples, 1024)
    return {"fit": fit / EPOCHS, "bare": (time.perf_counter() - started) / EPOCHS}
