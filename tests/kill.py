"""Kill training processes in steps, in writes and in resume: the checkpoint on disk is whole, and the end is the unbroken run's.

    python tests/kill.py --kills 100

A process trains, with dropout, moments, a schedule and early stopping under way, and writes a checkpoint every few steps. It
stops at a drawn call of one of the POINTS, says so and waits for SIGKILL. The first kills are one at each point; later, some
come at any moment of training. After each the file must be the old checkpoint or the new one, as the point says, and bit for
bit what the unbroken run wrote at this step: θ, the optimiser's vectors, the best θ so far, counters and history. A new process
resumes from it. The last one ends with what the unbroken run ends with, and no temporary file is left. Exit status 1 where
anything differs, or where a point had no kill.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bpcore as bp
from bpcore import checkpoint, files
from bpcore.training import state
from bpcore.training.step import Step

CHECKPOINT, EPOCHS, EVERY = "run.safetensors", 4, 7  # 200 steps, 29 checkpoints and that of the end
OPEN, BEFORE, AFTER = "write: the temporary file is open", "write: before the rename", "write: after the rename"
ANY = "any moment"
POINTS: dict[str, tuple[Any, str, bool]] = {  # a function, and whether to stop before its call, or after it
    "step: between forward and backward": (bp.Network, "backward", True),
    "step: before the update": (bp.AdamW, "update", True),
    "step: after the update": (bp.AdamW, "update", False),
    OPEN: (files, "locked", False),
    BEFORE: (files, "rename", True),
    AFTER: (files, "rename", False),
    "resume: the file is read": (checkpoint, "read", False),
    "resume: the vectors are restored": (Step, "restore", False),
    "resume: all is restored": (state, "restore", False),
    ANY: (bp.Network, "backward", True),  # and some time later
}


def at_each_call(of: Any, name: str, first: bool, what: Callable[[], Any]) -> None:
    """Call `what` before (first) or after each call of a function, which is the attribute `name` of `of`."""
    function = getattr(of, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        if first:
            what()
        result = function(*args, **named)
        if not first:
            what()
        return result

    setattr(of, name, wrapped)


def work(folder: Path, point: str = "", nth: int = 1, kept: Path | None = None) -> None:
    """Train in this process, from the checkpoint in the folder where there is one.

    point, nth: the call to stop at. kept: where a copy of each checkpoint goes, named after its number of steps.
    """
    generator = np.random.default_rng(0)
    X = generator.standard_normal((1000, 64)).astype("float32")
    y = np.argmax(X @ generator.standard_normal((64, 10)), axis=1)
    path, calls = folder / CHECKPOINT, itertools.count(1)
    run = bp.Trainer(
        bp.Network(bp.MLP([64, 16, 10], dropout=0.2), backend="numpy"),
        bp.CrossEntropy(),
        bp.AdamW(lr=1e-3),
        schedule=bp.schedules.WarmUp(50, bp.schedules.ReduceOnPlateau(0.9, patience=2)),
        callbacks=[bp.EarlyStopping(patience=10**6), bp.Checkpoint(path, every=EVERY)],
    )

    def stop() -> None:
        if next(calls) == nth:
            print(run.steps, flush=True)
            while point != ANY:
                signal.pause()

    if point:
        at_each_call(*POINTS[point], stop)
    if path.exists():
        run.resume(path)
    else:
        run.save(path)
    if kept is not None:
        shutil.copy(path, kept / f"{run.steps}{path.suffix}")
        at_each_call(files, "rename", False, lambda: shutil.copy(path, kept / f"{run.steps}{path.suffix}"))
    if run.epoch < EPOCHS:
        run.fit((X[:800], y[:800]), (X[800:], y[800:]), epochs=EPOCHS, batch_size=16)
    run.save(path)


def child(folder: Path, point: str = "", nth: int = 1, wait: float = 0.0) -> int | None:
    """Run `work` in a process, and kill it `wait` seconds after it has come to the point.

    Returns the steps that the process had done then, or None if it came to its end.
    """
    command = [sys.executable, __file__, "--work", str(folder), "--point", point, "--nth", str(nth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = process.stdout.readline()
        if reached:
            time.sleep(wait)
            process.kill()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the training process failed, exit status {process.returncode}; its error is above")
    return int(reached) if process.returncode else None


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, header) of a checkpoint, the network in it built, the time that epochs took left out."""
    bp.Network.load(path, backend="numpy")
    tensors, header = checkpoint.read(path)
    for record in header["training"]["history"]:
        del record["seconds"]
    return tensors, header


def steps_of(path: Path) -> int | None:
    """The steps that a checkpoint says were done; None if there is no file."""
    return int(load(path)[1]["training"]["counters"][0]) if path.exists() else None


def differences(path: Path, expected: Path) -> list[str]:
    """The names of what differs between two checkpoints, bit for bit."""
    (tensors, header), (others, other) = load(path), load(expected)
    names = [name for name in sorted({*tensors, *others}) if name not in tensors or name not in others]
    names += [name for name in tensors if name in others and tensors[name].tobytes() != others[name].tobytes()]
    return names + [name for name, entry in header.items() if entry != other[name]]


class Killer:
    """Breaks runs, and compares what they leave with the checkpoints of the unbroken run, which are in a folder.

    tally: kills by point. wrong: what was found.
    """

    def __init__(self, kills: int, seed: int, kept: Path):
        self.kept, self.generator = kept, random.Random(seed)
        self.saved = sorted(int(path.stem) for path in kept.iterdir())
        self.tally: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.left = self.generator.sample(list(POINTS)[:-1], len(POINTS) - 1)
        self.left += self.generator.choices(list(POINTS), k=max(0, kills - len(self.left)))

    def break_one_run(self, folder: Path) -> None:
        """One run to its end, killed at points that are left, and resumed each time in a new process."""
        path, old = folder / CHECKPOINT, None
        while self.left and old != self.saved[-1]:
            # nothing to resume yet: another point first
            point = next((p for p in self.left if old is not None or not p.startswith("resume")), AFTER)
            nth = 1 if point.startswith("resume") else self.generator.randint(1, 4 if point.startswith("write") else 30)
            steps = child(folder, point, nth, self.generator.uniform(0, 0.1) if point == ANY else 0.0)
            if steps is None:
                break  # the run was over before
            if point in self.left:
                self.left.remove(point)
            self.tally[point] += 1
            old = self.check(f"kill {self.tally.total()}, {point}", path, point, old, steps)
        child(folder)
        self.compare("the end", path, self.saved[-1])
        if os.listdir(folder) != [CHECKPOINT]:
            self.wrong.append(f"the end: {os.listdir(folder)}")

    def check(self, what: str, path: Path, point: str, old: int | None, steps: int) -> int | None:
        """Compare what a kill left with what it must leave. old: the steps of the file before. Returns those of the file now."""
        now, unfinished = steps_of(path), len(list(path.parent.glob(".*.tmp")))
        print(f"{what}, after {steps} steps: the checkpoint has {now}", flush=True)
        last = max((n for n in self.saved if n < steps or (n == steps and point not in (OPEN, BEFORE))), default=None)
        possible = [n for n in self.saved if n >= (old or 0)] if point == ANY else [old if point.startswith("resume") else last]
        if now not in possible:
            self.wrong.append(f"{what}: expected a checkpoint of step {possible}")
        if now is not None:
            self.compare(what, path, now)
        if unfinished > 1 or (point in (OPEN, BEFORE) and not unfinished) or (point == AFTER and unfinished):
            self.wrong.append(f"{what}: {unfinished} temporary files")
        return now

    def compare(self, what: str, path: Path, steps: int) -> None:
        """Compare a checkpoint with that of the unbroken run at this step."""
        if different := differences(path, self.kept / f"{steps}{path.suffix}"):
            self.wrong.append(f"{what}: {', '.join(different)} differ from the unbroken run")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help=f"how many times (100), at least {len(POINTS) - 1}")
    parser.add_argument("--seed", type=int, default=0, help="of the points (0)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--point", default="", help=argparse.SUPPRESS)
    parser.add_argument("--nth", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.point, arguments.nth)
        return 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as kept:
        work(Path(folder), kept=Path(kept))
        killer = Killer(arguments.kills, arguments.seed, Path(kept))
        while killer.left:
            with tempfile.TemporaryDirectory() as broken:
                killer.break_one_run(Path(broken))
    for point in POINTS:
        print(f"{killer.tally[point]:4} kills: {point}")
    missed = [f"no kill: {point}" for point in POINTS if point != ANY and not killer.tally[point]]
    print(f"{killer.tally.total()} kills, {len(killer.wrong)} wrong, {time.perf_counter() - began:.0f} s")
    print("\n".join([*missed, *killer.wrong]) or "resumed ends bit for bit as unbroken")
    return 1 if missed or killer.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
