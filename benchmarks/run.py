"""The benchmark: bpcore and its peers on the same networks, from the same θ, on the same batches; a table, and a JSON file.

In each cell each engine runs in its own process; rounds alternate between the engines; every step takes another batch. Ratios
are computed round by round. An engine that is not installed, or cannot do a cell, is left out, and the reason is printed. On a
machine with a CUDA GPU, the engines for a GPU and a large cell are measured too.

    python benchmarks/run.py --check                   # everything; exit status 1 if a limit does not hold
    python benchmarks/run.py --measures cells --cells tiny small --engines bpcore torch
    python benchmarks/run.py --measures cells --cells gpt gpt-2048 resnet --precision f16    # on a GPU
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
from engines import COMPUTE, ENGINES
from process import HERE, LeftOut, Process, environment

MEASURES = ("cells", "accuracy", "epoch", "import", "install", "linear", "losses")
SLOW = ("accuracy", "linear", "losses")  # not in a smoke run, unless asked for
STEPS = 200  # of the measure "losses"
PACKAGES = ("bpcore", "numpy", "numba", "onednn-cpu-gomp", "torch", "jax", "scikit-learn", "thinc", "mygrad", "cupy")


def gpus() -> list[str]:
    """The CUDA GPUs that the driver lists."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def machine(gpu: list[str]) -> dict[str, Any]:
    """The machine, the versions and the date of a measurement."""
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
    """A run of the benchmark: its settings and its results."""

    def __init__(self, options: argparse.Namespace):
        gpu = gpus()
        self.options = options
        self.failed = False
        self.engines = [name for name in ENGINES if name in options.engines and (gpu or not ENGINES[name].gpu)]
        self.cells = [name for name in CELLS if name in options.cells and (gpu or not CELLS[name].gpu)]
        settings = {name: getattr(options, name) for name in ("rounds", "seconds", "threads", "precision")}
        self.results: dict[str, Any] = {"machine": machine(gpu), "settings": settings, "skipped": [], "cells": {}}
        if not gpu:
            self.skip("all", "a GPU", "nvidia-smi finds no CUDA GPU")
        if options.precision != "f32":
            self.engines = [name for name in self.engines if ENGINES[name].gpu]
            self.skip("all", "a CPU", f"{options.precision} is measured on a GPU")

    def start(self, engine: str, cell: str, precision: str | None = None) -> Process:
        """A process with the engine in a cell, or for the measure "accuracy". precision: that of the run if None."""
        threads, precision = self.options.threads, precision or self.options.precision
        return Process("worker.py", engine, cell, str(threads), precision, variables=environment(threads, precision, engine))

    def skip(self, where: str, engine: str, reason: str | LeftOut) -> None:
        """Note and print that an engine is left out."""
        self.failed |= getattr(reason, "failed", False)
        self.results["skipped"].append({"where": where, "engine": engine, "reason": str(reason)})
        print(f"left out of {where}: {engine}: {reason}", flush=True)

    def measure_cell(self, cell: str) -> dict[str, Any]:
        """Time steps and evaluations of the engines in turn, and note their memory."""
        workers: dict[str, Process] = {}
        results: dict[str, Any] = {}
        for engine in self.engines:
            if CELLS[cell].kind in ENGINES[engine].kinds and (ENGINES[engine].gpu or not CELLS[cell].gpu):
                try:
                    workers[engine] = self.start(engine, cell)
                    results[engine] = {"first": workers[engine].ready["first"], "step": [], "inference": []}
                except LeftOut as reason:
                    self.skip(cell, engine, reason)
        for i in range(self.options.rounds + 1):
            for measure in ("step", "inference"):
                for engine, worker in list(workers.items()):
                    try:
                        got = worker.ask(measure=measure, seconds=self.options.seconds if i else self.options.seconds / 4)
                    except LeftOut as reason:
                        self.skip(cell, engine, reason)
                        del workers[engine], results[engine]
                        continue
                    if i:  # the first round warms up
                        results[engine][measure].append(got)
        for engine, worker in workers.items():
            try:
                memory, of_steps = worker.ask(measure="memory"), worker.ask(measure="step_memory")
            except LeftOut as reason:
                self.skip(cell, engine, reason)
                del results[engine]
                continue
            measured = memory is not None and not engine.startswith("gemms")
            results[engine] |= {"memory": [memory] if measured else [], "step_memory": of_steps if measured else []}
            worker.end()
        return results

    def measure_cells(self) -> None:
        """Measure each cell."""
        for cell in self.cells:
            print(f"measuring {cell}", file=sys.stderr, flush=True)
            self.results["cells"][cell] = self.measure_cell(cell)

    def each(self, measure: str, cell: str, engines: list[str], fresh: bool) -> dict[str, list[Any]]:
        """Each engine's answers, one for each round; engines take turns. fresh: whether each answer comes from a new process."""
        workers: dict[str, Process] = {}
        answers: dict[str, list[Any]] = {engine: [] for engine in engines}
        for i in range(self.options.rounds):
            for engine in list(answers):
                try:
                    if engine not in workers:
                        workers[engine] = self.start(engine, cell)
                    answers[engine].append(workers[engine].ask(measure=measure, seed=i))
                    if fresh:
                        workers.pop(engine).end()
                except LeftOut as reason:
                    self.skip(measure, engine, reason)
                    del answers[engine]
        for worker in workers.values():
            worker.end()
        return answers

    def measure_accuracy(self) -> None:
        """Measure epochs and seconds to an accuracy; each round has another seed."""
        engines = [engine for engine in self.engines if not engine.startswith("gemms") and "mlp" in ENGINES[engine].kinds]
        self.results["accuracy"] = self.each("accuracy", "accuracy", engines, fresh=True)

    def measure_epoch(self) -> None:
        """Measure the time that `fit` adds to its steps, in the cell tiny."""
        engines = [name for name in self.engines if name in ("bpcore", "bpcore-plain")]
        self.results["epoch"] = {
            engine: {name: [answer[name] for answer in answers] for name in ("fit", "bare")}
            for engine, answers in self.each("epoch", "tiny", engines, fresh=True).items()
        }

    def measure_import(self) -> None:
        """Measure the time of an import in a fresh process."""
        self.results["import"], skipped = library.import_times(
            self.options.rounds, environment(self.options.threads, self.options.precision)
        )
        for name, reason in skipped.items():
            self.skip("import", name, reason)

    def measure_install(self) -> None:
        """Measure bytes on disk."""
        self.results["install"], skipped = library.installed_sizes()
        for name, reason in skipped.items():
            self.skip("install", name, reason)

    def measure_linear(self) -> None:
        """Measure the time against batch, width squared and depth, and draw it; of plain bpcore if `fast` is not installed."""
        for engine in [name for name in ("bpcore", "bpcore-plain") if name in self.engines]:
            command = [sys.executable, str(HERE / "linear_cost.py"), "--json", "--engine", engine]
            command += ["--rounds", str(self.options.rounds), "--seconds", str(self.options.seconds / 4)]
            if self.options.json:
                command += ["--picture", str(self.options.json.parent / "linear_cost.png")]
            variables = environment(self.options.threads, self.options.precision, engine)
            done = subprocess.run(command, env=variables, capture_output=True, text=True)
            if done.returncode == 0:
                self.results["linear"] = json.loads(done.stdout)
                return
            self.skip("linear", engine, done.stderr.strip().splitlines()[-1])

    def measure_losses(self) -> None:
        """Note the losses of the transformer on the same batches, with bpcore's first engine; on a GPU in each precision."""
        for engine in [name for name in (figures.REPLAYED, "bpcore", "bpcore-plain") if name in self.engines]:
            found = {}
            for precision in COMPUTE if ENGINES[engine].gpu else ("f32",):
                try:
                    worker = self.start(engine, "transformer", precision)
                    found[precision] = worker.ask(measure="losses", steps=2 if self.options.quick else STEPS)
                    worker.end()
                except LeftOut as reason:
                    self.skip("losses", f"{engine} in {precision}", reason)
            if found:
                self.results["losses"] = found
                return


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=None)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=None, help="measured rounds, after a round to warm up; 7")
    parser.add_argument("--seconds", type=float, default=None, help="of each engine in each round; 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=COMPUTE, default="f32", help="of every engine; but for f32, on a GPU only")
    parser.add_argument("--json", type=Path, default=None, help="benchmarks/results/cpu.json, or gpu.json, gpu-f16.json")
    parser.add_argument("--check", action="store_true", help="print the limits, and whether they hold")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two short rounds of tiny; no file unless --json")
    parser.add_argument("--show", type=Path, help="measure nothing; print the table of an existing file")
    options = parser.parse_args()
    quick = options.quick
    options.measures = options.measures or [name for name in MEASURES if not quick or name not in SLOW]
    options.cells = options.cells or (["tiny"] if quick else list(CELLS))
    options.rounds, options.seconds = options.rounds or (2 if quick else 7), options.seconds or (0.05 if quick else 1.0)
    if options.json is None and not quick:
        suffix = "" if options.precision == "f32" else f"-{options.precision}"
        options.json = HERE / "results" / (f"gpu{suffix}.json" if gpus() else "cpu.json")
    return options


def main() -> None:
    options = arguments()
    failed = False
    if options.show:
        results = json.loads(options.show.read_text())
    else:
        bench = Bench(options)
        for measure in options.measures:
            getattr(bench, f"measure_{measure}")()
        results, failed = bench.results, bench.failed
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    for line in figures.table(results):
        print(line)
    if options.check:
        verdicts = figures.verdicts(results)
        for holds, line in verdicts:
            print(f"{ {True: 'holds', False: 'MISSED', None: 'not measured'}[holds]:12} {line}")
        failed |= any(holds is False for holds, _ in verdicts) or all(holds is None for holds, _ in verdicts)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
