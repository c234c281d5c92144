"""One training step of six MLPs (forward, backward, Adam), float32: bpcore against PyTorch eager.

Each engine runs in a process of its own, the rounds alternate between them, and every step takes another batch. The table
gives the median time of a step and, round by round, its ratio to the first engine's reference: the median and the range.

    python benchmarks/training_step.py                     # needs torch beside bpcore
    python benchmarks/training_step.py --cells tiny small --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

CELLS = {  # name: (sizes, batch)
    "tiny": ((64, 64, 10), 32),
    "small": ((784, 128, 10), 64),
    "medium": ((784, 512, 512, 10), 256),
    "wide32": ((784, 2048, 2048, 10), 32),
    "large": ((784, 2048, 2048, 10), 1024),
    "deep": ((256,) * 16 + (10,), 128),
}
LIMITS = {"tiny": 0.5, "small": 1.0, "medium": 1.6, "wide32": 2.7, "large": 1.6, "deep": 1.6}  # of PyTorch eager
REFERENCE = "torch"
BATCHES = 16  # different ones, taken in turn: on one batch alone the gradient dies out


def bpcore_step(sizes: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    import bpcore as bp

    return bp.Trainer(bp.Network(bp.MLP(sizes), backend="numpy"), bp.CrossEntropy(), bp.Adam(1e-3)).step


def torch_step(sizes: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    import torch

    layers: list[Any] = []
    for n_in, n_out in pairwise(sizes):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    net, loss = torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step(X: Any, y: Any) -> Any:
        optimizer.zero_grad()
        J = loss(net(torch.from_numpy(X)), torch.from_numpy(y))
        J.backward()
        optimizer.step()
        return J

    return step


ENGINES = {"bpcore": bpcore_step, "torch": torch_step}


def work(engine: str, cell: str, seconds: float) -> None:
    """A worker: at each line on its input, the median time of a step over about `seconds`, printed."""
    sizes, batch = CELLS[cell]
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((10, sizes[0]))
    batches = []
    for _ in range(BATCHES):
        y = generator.integers(0, 10, batch)
        X = (centres[y] + generator.standard_normal((batch, sizes[0]))).astype("float32")
        batches.append((X, y))
    step = ENGINES[engine](sizes)
    for X, y in batches[:4]:
        step(X, y)
    k = 0
    for _ in sys.stdin:
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            X, y = batches[k % BATCHES]
            start = time.perf_counter()
            step(X, y)
            times.append(time.perf_counter() - start)
            k += 1
        print(statistics.median(times), flush=True)


def measure(cell: str, engines: list[str], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a step, a figure for each round, the engines taking turns."""
    workers = {}
    for engine in engines:
        command = [sys.executable, __file__, "--worker", engine, cell, str(seconds)]
        workers[engine] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    figures: dict[str, list[float]] = {engine: [] for engine in engines}
    for i in range(rounds + 1):
        for engine, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"the worker of {engine} died; see its message above")
            if i:  # the first round warms up
                figures[engine].append(float(line))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return figures


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    model = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "")
    packages = {name: version(name) for name in ("numpy", "torch")}
    return {"cpu": model or platform.processor(), "python": platform.python_version(), **packages, "date": time.strftime("%F")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine in each round")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine, cell, seconds = arguments.worker
        work(engine, cell, float(seconds))
        return
    print(f"{'cell':8} {'engine':8} {'ms a step':>10} {'ratio to ' + REFERENCE:>15} {'range':>13} {'limit':>6}")
    results = {}
    for cell in arguments.cells:
        results[cell] = figures = measure(cell, arguments.engines, arguments.rounds, arguments.seconds)
        for engine, times in figures.items():
            line = f"{cell:8} {engine:8} {statistics.median(times) * 1e3:10.3f}"
            if REFERENCE in figures and engine != REFERENCE:
                ratios = [a / b for a, b in zip(times, figures[REFERENCE], strict=True)]
                spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
                line += f" {statistics.median(ratios):15.2f} {spread:>13} {LIMITS[cell]:6}"
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "seconds a step": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
