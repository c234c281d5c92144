"""A run that an earlier bpcore wrote in the middle of an epoch, in tests/data: the version of today must take it up.

    python tests/old_run.py write tests/data      # old_run.safetensors; the unbroken run's end as old_end.npy and old_end.json
    python tests/old_run.py resume FOLDER         # resumes tests/data/old_run.safetensors; its end as FOLDER/end.npy and end.json

The files in tests/data were written once, by `write` at commit 1f105c6 with BPCORE_KERNELS=off (definitions on NumPy alone), and
stay: to write them again would test nothing. The run has all that a checkpoint can hold: θ with buffers, moments, a schedule and
a callback with state, a history, and a position within an epoch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import bpcore as bp

DATA = Path(__file__).parent / "data"
EPOCHS, STOP = 8, 23  # of 5 steps each


class Stop(bp.Callback):
    """Ends `fit` after step number `at`."""

    def __init__(self, at: int):
        self.at = at

    def on_step(self, trainer: Any, J: Any) -> None:
        trainer.interrupted = trainer.steps == self.at


def examples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(X, y), multiples of 1/8 drawn as integers: the same on every machine."""
    generator = np.random.default_rng(seed)
    X = generator.integers(-16, 17, (n, 5)) / 8
    return X, np.stack([X[:, 0] * X[:, 1], X[:, 2] - X[:, 3]], axis=1) + generator.integers(-4, 5, (n, 2)) / 8


def trainer(at: int) -> bp.Trainer:
    """The run before its first step, to be stopped after step `at`."""
    module = bp.Sequential(
        bp.Linear(5, 8),
        bp.LayerNorm(8),
        bp.ReLU(),
        bp.Dropout(0.25),
        bp.Linear(8, 6, bias=False),
        bp.BatchNorm(6),
        bp.Tanh(),
        bp.Linear(6, 2),
    )
    return bp.Trainer(
        bp.Network(module, backend="numpy", dtype="float64", seed=3),
        bp.SquaredError(),
        bp.AdamW(lr=0.05, weight_decay=0.02),
        schedule=bp.schedules.ReduceOnPlateau(0.5, patience=0, threshold=0.2),
        metrics=["mae"],
        clip_norm=1.0,
        accumulate=2,
        callbacks=[bp.EarlyStopping(patience=5), Stop(at)],
        seed=4,
    )


def fit(run: bp.Trainer) -> None:
    """Go on to the end, or to where the run is stopped."""
    run.fit(examples(40, 1), examples(20, 2), epochs=EPOCHS, batch_size=8)


def decided(run: bp.Trainer) -> dict[str, Any]:
    """What the run decided on its way, and its history."""
    schedule: Any = run.schedule
    stopping: Any = run.callbacks[0]
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in run.history]
    counters = [run.steps, run.epoch, run.position, run.seed, run.finished]
    return {"counters": counters, "factor": schedule.current, "best epoch": stopping.best_epoch, "history": records}


def write(folder: Path) -> None:
    """The checkpoint, and where the unbroken run ends."""
    broken, unbroken = trainer(STOP), trainer(0)
    fit(broken)
    broken.save(folder / "old_run.safetensors")
    fit(unbroken)
    np.save(folder / "old_end.npy", unbroken.network.theta)
    (folder / "old_end.json").write_text(json.dumps(decided(unbroken), indent=1) + "\n", encoding="utf-8")


def resume(folder: Path) -> None:
    """Where the old run ends if it is resumed today."""
    run = trainer(0)
    run.resume(DATA / "old_run.safetensors")
    fit(run)
    np.save(folder / "end.npy", run.network.theta)
    (folder / "end.json").write_text(json.dumps(decided(run), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"write": write, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))
