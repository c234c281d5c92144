"""Kill a training process at random moments: the checkpoint on disk always loads, and the end is that of the unbroken run.

    python tests/kill.py --kills 50

A process trains, with dropout, momentum, a schedule and early stopping under way, and writes a checkpoint every few steps.
SIGKILL comes at moments drawn uniformly over the length of an unbroken run, the start of processes left out. After each the
checkpoint is read, and a new process resumes from it. What the last one ends with is compared with the unbroken run's end,
bit for bit: θ, the optimiser's vectors, the best θ so far, counters and history. Exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

EPOCHS_PER_KILL = 3  # so that a process lives for a third of a second or so
CHECKPOINT, END = "run.safetensors", "end.safetensors"


def work(folder: Path, epochs: int) -> None:
    """Train in this process, from the checkpoint in the folder where there is one; at the end write another file."""
    import numpy as np

    import bpcore as bp

    generator = np.random.default_rng(0)
    X = generator.standard_normal((1000, 64)).astype("float32")
    y = np.argmax(X @ generator.standard_normal((64, 10)), axis=1)
    run = bp.Trainer(
        bp.Network(bp.MLP([64, 128, 10], dropout=0.2), backend="numpy"),
        bp.CrossEntropy(),
        bp.AdamW(lr=1e-3),
        schedule=bp.schedules.WarmUp(50, bp.schedules.ReduceOnPlateau(0.9, patience=2)),
        callbacks=[bp.EarlyStopping(patience=10**6), bp.Checkpoint(folder / CHECKPOINT, every=7)],
    )
    if (folder / CHECKPOINT).exists():
        run.resume(folder / CHECKPOINT)
    else:
        run.save(folder / CHECKPOINT)
    print("training", flush=True)
    run.fit((X[:800], y[:800]), (X[800:], y[800:]), epochs=epochs, batch_size=16)
    run.save(folder / END)


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """A process that trains; it has begun when this returns."""
    command = [sys.executable, __file__, "--work", str(folder), "--epochs", str(epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline() != "training\n":
        raise RuntimeError(f"the training process did not begin, exit status {process.wait()}; its error is above")
    return process


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process that nobody kills."""
    if process.wait() != 0:
        raise RuntimeError(f"the training process failed, exit status {process.returncode}; its error is above")


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, header) of a checkpoint, the network in it built, the time that epochs took left out."""
    import bpcore as bp
    from bpcore import checkpoint

    bp.Network.load(path, backend="numpy")
    tensors, header = checkpoint.read(path)
    for record in header["training"]["history"]:
        del record["seconds"]
    return tensors, header


def differences(path: Path, expected: Path) -> list[str]:
    """The names of what differs between two checkpoints, bit for bit."""
    (tensors, header), (others, other) = load(path), load(expected)
    names = [name for name in sorted({*tensors, *others}) if name not in tensors or name not in others]
    names += [name for name in tensors if name in others and tensors[name].tobytes() != others[name].tobytes()]
    return names + [name for name, entry in header.items() if entry != other[name]]


@dataclass
class Tally:
    """How many kills there were, and how many while a checkpoint was being written."""

    kills: int = 0
    writing: int = 0


def break_at(moments: list[float], folder: Path, epochs: int, tally: Tally) -> None:
    """One run to its end, killed at these moments of its training time, and resumed each time in a new process."""
    for wait in (after - before for before, after in pairwise([0.0, *moments])):
        process = start(folder, epochs)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() != -signal.SIGKILL:
            break
        tally.kills += 1
        steps = load(folder / CHECKPOINT)[1]["training"]["counters"][0]
        unfinished = list(folder.glob(".*.tmp"))
        tally.writing += bool(unfinished)
        for path in unfinished:
            path.unlink()
        print(f"kill {tally.kills} after {wait:.2f} s: the checkpoint loads, at step {steps}", flush=True)
    finish(start(folder, epochs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many times (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.epochs)
        return 0
    if arguments.kills < 1:
        parser.error("--kills must be 1 or more")

    began, epochs = time.perf_counter(), EPOCHS_PER_KILL * arguments.kills
    generator, tally, different = random.Random(arguments.seed), Tally(), set()
    with tempfile.TemporaryDirectory() as folder:
        process = start(Path(folder), epochs)
        training_began = time.perf_counter()
        finish(process)
        length = time.perf_counter() - training_began
        print(f"unbroken: {epochs} epochs in {length:.1f} s")
        while tally.kills < arguments.kills:  # again where a run was over before its last moment came
            moments = sorted(generator.uniform(0, length) for _ in range(arguments.kills - tally.kills))
            with tempfile.TemporaryDirectory() as broken:
                break_at(moments, Path(broken), epochs, tally)
                different.update(differences(Path(broken) / END, Path(folder) / END))
    seconds = time.perf_counter() - began
    print(
        f"{tally.kills} kills, {tally.writing} in the middle of writing a checkpoint; each left one that loads; {seconds:.0f} s"
    )
    print(f"resumed against unbroken: {', '.join(different)} differ" if different else "resumed ends bit for bit as unbroken")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
