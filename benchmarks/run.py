"""The benchmark: bpcore and its peers on the same networks, from the same θ, on the same batches; one table, and JSON beside it.

Each engine runs in a process of its own in each cell; rounds alternate between the engines; every step takes another batch.
Ratios are made round by round. An engine that is not installed, or cannot do a cell, is left out with the reason. On a machine
with a CUDA GPU the GPU's engines and its large cell join.

    python benchmarks/run.py --check                   # all of it; exit status 1 where something that must hold does not
    python benchmarks/run.py --measures cells --cells tiny small --engines bpcore torch
    python benchmarks/run.py --quick                   # a smoke run
    python benchmarks/run.py --show benchmarks/results/cpu.json --check
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import figures
import library
from cells import CELLS
from engines import ENGINES
from process import HERE, LeftOut, Process, environment

MEASURES = ("cells", "accuracy", "epoch", "import", "install", "linear")
PACKAGES = ("bpcore", "numpy", "numba", "onednn-cpu-gomp", "torch", "jax", "scikit-learn", "thinc", "mygrad", "cupy")


def gpus() -> list[str]:
    """The CUDA GPUs that the driver knows of."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def machine(gpu: list[str]) -> dict[str, Any]:
    """Where, when and with what this is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    date, python = time.strftime("%F"), platform.python_version()
    return {"cpu": model, "gpu": gpu, "system": platform.platform(), "python": python, "versions": versions, "date": date}


class Bench:
    """A run: its settings, and what it found."""

    def __init__(self, given: argparse.Namespace):
        gpu = gpus()
        self.given, self.failed = given, False
        self.engines = [name for name in ENGINES if name in given.engines and (gpu or not ENGINES[name].gpu)]
        self.cells = [name for name in CELLS if name in given.cells and (gpu or not CELLS[name].gpu)]
        settings = {name: getattr(given, name) for name in ("rounds", "seconds", "threads", "tf32")}
        self.results: dict[str, Any] = {"machine": machine(gpu), "settings": settings, "skipped": [], "cells": {}}
        if not gpu:
            self.skip("all", "a GPU", "nvidia-smi finds no CUDA GPU")

    def start(self, engine: str, cell: str) -> Process:
        """A process with the engine in the cell, or for a measure of that name."""
        return Process(engine, cell, self.given.threads, self.given.tf32)

    def skip(self, where: str, engine: str, reason: str | LeftOut) -> None:
        """Note and say that an engine is left out."""
        self.failed |= getattr(reason, "failed", False)
        self.results["skipped"].append({"where": where, "engine": engine, "reason": str(reason)})
        print(f"left out of {where}: {engine}: {reason}", flush=True)

    def measure_cell(self, cell: str) -> dict[str, Any]:
        """Steps and evaluations of the engines in turn, and the memory they took."""
        workers, found = {}, {}
        for engine in self.engines:
            if CELLS[cell].kind in ENGINES[engine].kinds and (ENGINES[engine].gpu or not CELLS[cell].gpu):
                try:
                    workers[engine] = self.start(engine, cell)
                    found[engine] = {"first": workers[engine].ready["first"], "step": [], "inference": []}
                except LeftOut as reason:
                    self.skip(cell, engine, reason)
        for i in range(self.given.rounds + 1):
            for measure in ("step", "inference"):
                for engine, worker in list(workers.items()):
                    try:
                        got = worker.ask(measure=measure, seconds=self.given.seconds if i else self.given.seconds / 4)
                    except LeftOut as reason:
                        self.skip(cell, engine, reason)
                        del workers[engine], found[engine]
                        continue
                    if i:  # the first round warms up
                        found[engine][measure].append(got)
        for engine, worker in workers.items():
            try:
                memory = worker.ask(measure="memory")
            except LeftOut as reason:
                self.skip(cell, engine, reason)
                del found[engine]
                continue
            found[engine]["memory"] = [] if memory is None or engine.startswith("gemms") else [memory]
            worker.end()
        return found

    def measure_cells(self) -> None:
        """Each cell in turn."""
        for cell in self.cells:
            print(f"measuring {cell}", file=sys.stderr, flush=True)
            self.results["cells"][cell] = self.measure_cell(cell)

    def each(self, measure: str, cell: str, engines: list[str], fresh: bool) -> dict[str, list[Any]]:
        """An engine's answers for each round, taking turns; fresh: from a new process each."""
        workers: dict[str, Process] = {}
        found: dict[str, list[Any]] = {engine: [] for engine in engines}
        for i in range(self.given.rounds):
            for engine in list(found):
                try:
                    if engine not in workers:
                        workers[engine] = self.start(engine, cell)
                    found[engine].append(workers[engine].ask(measure=measure, seed=i))
                    if fresh:
                        workers.pop(engine).end()
                except LeftOut as reason:
                    self.skip(measure, engine, reason)
                    del found[engine]
        for worker in workers.values():
            worker.end()
        return found

    def measure_accuracy(self) -> None:
        """Epochs and seconds to an accuracy: a round is a seed."""
        engines = [engine for engine in self.engines if not engine.startswith("gemms") and "mlp" in ENGINES[engine].kinds]
        self.results["accuracy"] = self.each("accuracy", "accuracy", engines, fresh=True)

    def measure_epoch(self) -> None:
        """What `fit` adds to its steps, at tiny."""
        found = self.each("epoch", "tiny", [name for name in self.engines if name in ("bpcore", "bpcore-plain")], fresh=True)
        columns = {engine: {name: [one[name] for one in its] for name in ("fit", "bare")} for engine, its in found.items()}
        self.results["epoch"] = columns

    def measure_import(self) -> None:
        """Of a fresh process."""
        self.results["import"], skipped = library.import_times(
            self.given.rounds, environment(self.given.threads, self.given.tf32)
        )
        for name, reason in skipped.items():
            self.skip("import", name, reason)

    def measure_install(self) -> None:
        """Bytes on disk."""
        self.results["install"], skipped = library.installed_sizes()
        for name, reason in skipped.items():
            self.skip("install", name, reason)

    def measure_linear(self) -> None:
        """Time against batch, width squared and depth, with the picture; of plain bpcore where `fast` is not there."""
        for engine in [name for name in ("bpcore", "bpcore-plain") if name in self.engines]:
            command = [sys.executable, str(HERE / "linear_cost.py"), "--json", "--engine", engine]
            command += ["--rounds", str(self.given.rounds), "--seconds", str(self.given.seconds / 4)]
            if self.given.json:
                command += ["--picture", str(self.given.json.parent / "linear_cost.png")]
            its = environment(self.given.threads, self.given.tf32, engine)
            done = subprocess.run(command, env=its, capture_output=True, text=True)
            if done.returncode == 0:
                self.results["linear"] = json.loads(done.stdout)
                return
            self.skip("linear", engine, done.stderr.strip().splitlines()[-1])


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=None)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=None, help="that are kept; 7")
    parser.add_argument("--seconds", type=float, default=None, help="of each engine in each round; 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tf32", action="store_true", help="let float32 products round to TF32 on a GPU, on every engine")
    parser.add_argument("--json", type=Path, default=None, help="by default benchmarks/results/cpu.json, or gpu.json")
    parser.add_argument("--check", action="store_true", help="say what must hold and whether it does")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two short rounds of tiny; no file unless --json")
    parser.add_argument("--show", type=Path, help="measure nothing: the table of a file written before")
    given = parser.parse_args()
    quick = given.quick
    given.measures = given.measures or [name for name in MEASURES if not quick or name not in ("accuracy", "linear")]
    given.cells = given.cells or (["tiny"] if quick else list(CELLS))
    given.rounds, given.seconds = given.rounds or (2 if quick else 7), given.seconds or (0.05 if quick else 1.0)
    if given.json is None and not quick:
        given.json = HERE / "results" / ("gpu.json" if gpus() else "cpu.json")
    return given


def main() -> None:
    given, failed = arguments(), False
    if given.show:
        results = json.loads(given.show.read_text())
    else:
        bench = Bench(given)
        for measure in given.measures:
            getattr(bench, f"measure_{measure}")()
        results, failed = bench.results, bench.failed
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(results, indent=1) + "\n")
    for line in figures.table(results):
        print(line)
    if given.check:
        verdicts = figures.verdicts(results)
        for holds, line in verdicts:
            print(f"{ {True: 'holds', False: 'MISSED', None: 'not measured'}[holds]:12} {line}")
        failed |= any(holds is False for holds, _ in verdicts) or all(holds is None for holds, _ in verdicts)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
