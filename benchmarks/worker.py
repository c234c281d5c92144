"""The process of one engine in one cell. Each line of JSON on its input is a request to measure; it answers with a line of JSON.

python worker.py ENGINE CELL THREADS PRECISION
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from cells import CELLS, Cell, theta
from engines import ENGINES, Engine, Unable, build

LEAST = 3  # times in a round, at least
EPOCHS = 30  # to an accuracy, at most
RISES = 7  # steps whose memory is measured


def timed(call: Callable[..., Any], engine: Engine, ring: Any, seconds: float) -> float:
    """The median time of a call, measured over about `seconds`. ring: its arguments. It waits for a device once per block."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < LEAST:
        arguments = list(itertools.islice(ring, engine.block))
        start = time.perf_counter()
        for batch in arguments:
            result = call(*batch)
        engine.wait(result)
        times.append((time.perf_counter() - start) / engine.block)
    return statistics.median(times)


def resident(name: str) -> float | None:
    """The resident memory of this process in MB, on Linux: "VmRSS" now, "VmHWM" its peak. getrusage's is also the parent's."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:")), None)


def rise(step: Callable[[], Any]) -> float | None:
    """The MB that a step needs beside what lives between steps (θ, ∇J, moments, batches, code), on Linux with glibc.

    It is the peak of the resident memory in the step less that before it, after free memory went back to the system. So what the
    library's own C and C++ code allocates counts as well, but for a workspace that it keeps between steps.
    """
    reset = Path("/proc/self/clear_refs")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if reset.exists() else None
    if trim is None:
        return None
    trim(0)
    reset.write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    step()
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


def examples() -> tuple[str, float, tuple[Any, Any], tuple[Any, Any]]:
    """(cell, accuracy to reach, train, test): MNIST if BPCORE_DATA names a folder, else scikit-learn's digits."""
    import bpcore as bp

    if os.environ.get("BPCORE_DATA"):
        train, test = bp.datasets.mnist()
        return "small", 0.975, (train[0].reshape(-1, 784), train[1]), (test[0].reshape(-1, 784), test[1])
    X, y = bp.datasets.bundled("digits")
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order] / 16, y[order]
    return "tiny", 0.96, (X[:1347], y[:1347]), (X[1347:], y[1347:])


def to_accuracy(name: str, seed: int) -> dict[str, Any]:
    """Epochs and seconds (building, compiling and evaluating included) to the test accuracy. seed: of θ and of the order."""
    cell_name, threshold, (X, y), (X_test, y_test) = examples()
    cell = CELLS[cell_name]
    drawn = theta(cell, seed)
    started = time.perf_counter()
    engine = build(name, cell, drawn)
    first = None  # seconds to the first step
    curve: list[float] = []  # test accuracy after each epoch
    while len(curve) < EPOCHS and (not curve or curve[-1] < threshold):
        order = np.random.default_rng([seed, len(curve)]).permutation(len(X))
        engine.training(True)
        for i in range(0, len(X) - cell.batch + 1, cell.batch):
            rows = order[i : i + cell.batch]
            J = engine.step(engine.place(X[rows]), engine.place(y[rows]))
            if first is None:
                engine.wait(J)
                first = time.perf_counter() - started
        engine.training(False)
        t = engine.host(engine.predict(engine.place(X_test)))
        curve.append(float((t.argmax(1) == y_test).mean()))
    reached = curve[-1] >= threshold
    return {
        "data": "mnist" if X.shape[1] == 784 else "digits",
        "accuracy": threshold,
        "first": first,
        "curve": curve,
        "epochs": len(curve) if reached else None,
        "seconds": time.perf_counter() - started if reached else None,
    }


class Worker:
    """An engine in a cell, after its first step."""

    def __init__(self, name: str, cell: Cell, precision: str):
        self.cell = cell
        started = time.perf_counter()
        self.engine = build(name, cell, theta(cell), precision)
        self.ring = self.engine.ring(cell)
        self.one_step()
        self.first = time.perf_counter() - started
        if ENGINES[name].environment.get("BPCORE_KERNELS") == "plain" and "bpcore.kernels.fast" in sys.modules:
            raise RuntimeError(f"{name} ran the compiled kernels: BPCORE_KERNELS=plain had no effect")

    def one_step(self) -> None:
        """A step on the next batch, until it is finished."""
        self.engine.wait(self.engine.step(*next(self.ring)))

    def answer(self, measure: str, seconds: float = 0.0, seed: int = 0, steps: int = 0) -> Any:
        """What was asked for."""
        if measure == "losses":
            self.engine.training(True)
            return [float(self.engine.host(self.engine.step(*next(self.ring)))) for _ in range(steps)]
        if measure == "step":
            self.engine.training(True)
            return timed(self.engine.step, self.engine, self.ring, seconds)
        if measure == "inference":
            self.engine.training(False)
            return timed(self.engine.predict, self.engine, ((X,) for X, _ in self.ring), seconds)
        if measure == "memory":
            return self.engine.memory() if self.engine.memory else resident("VmHWM")
        if measure == "step_memory":
            self.engine.training(True)
            rises = [] if self.engine.memory else [rise(self.one_step) for _ in range(RISES)]
            return [] if None in rises else rises
        return import_module("fit_epoch").measured(self.cell)


def main() -> None:
    name, cell, threads, precision = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):  # for threads that no setting of the engine limits
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    answers = os.fdopen(os.dup(1), "w")  # what a library prints must not reach it

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = import_module(ENGINES[name].build.split(":")[0])
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import_module(ENGINES[name].library)  # imports are measured apart
            if ENGINES[name].gpu and hasattr(module, "set_precision"):
                module.set_precision(precision == "tf32")
            if cell == "accuracy":
                say({})
                say(to_accuracy(name, json.loads(sys.stdin.readline())["seed"]))
                return
            worker = Worker(name, CELLS[cell], precision)
            say({"first": worker.first})
            for line in sys.stdin:
                say(worker.answer(**json.loads(line)))
        except (ImportError, Unable) as error:
            say({"skipped": str(error)})


if __name__ == "__main__":
    main()
