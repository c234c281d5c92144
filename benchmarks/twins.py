"""What the twins of each family gain: a module's forward and backward pass at a real size, or a training step, with and without.

Without them, what comes next serves: NumPy's twins instead of compiled ones, definitions instead of NumPy's. Every variant runs
in a process of its own, rounds alternate, and ratios are made round by round. A ratio of 1.5 means that the family's twins save
a third of the time; those that stay at 1.0 everywhere are not worth their lines.

    python benchmarks/twins.py                                # both sets, all modules and the steps; a quarter of an hour
    python benchmarks/twins.py --sets kernels.numpy --only Softmax transformer
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from process import environment

STEPS = ("small", "cnn", "transformer")  # cells of run.py whose training steps are measured too
SETTINGS = {"kernels.fast": "on", "kernels.numpy": "plain"}


def modules() -> dict[str, tuple[Any, Any]]:
    """Name to (module, input), at sizes of a small transformer's and a small convolutional network's layers."""
    import bpcore as bp

    generator = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, "float32")

    rows, image = floats(2048, 1024), floats(32, 28, 28, 32)
    found: dict[str, tuple[Any, Any]] = {}
    for name in ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Sigmoid", "Tanh", "Softplus", "Softmax", "LogSoftmax"):
        found[name] = getattr(bp, name)(), rows
    return found | {
        "GELU tanh": (bp.GELU("tanh"), rows),
        "Linear": (bp.Linear(256, 1024), floats(2048, 256)),
        "LayerNorm": (bp.LayerNorm(1024), rows),
        "RMSNorm": (bp.RMSNorm(1024), rows),
        "Dropout": (bp.Dropout(0.1), rows),
        "BatchNorm": (bp.BatchNorm(32), image),
        "GroupNorm": (bp.GroupNorm(8, 32), image),
        "Conv2d": (bp.Conv2d(32, 32, 3, padding=1), image),
        "ConvTranspose2d": (bp.ConvTranspose2d(32, 16, 2, 2), image),
        "MaxPool2d": (bp.MaxPool2d(2), image),
        "AvgPool2d": (bp.AvgPool2d(2), image),
        "Embedding": (bp.Embedding(8192, 256), generator.integers(0, 8192, (32, 128))),
        "MultiHeadAttention": (bp.MultiHeadAttention(256, 4, causal=True), floats(16, 128, 256)),
    }


def passes(module: Any, z: Any) -> Callable[[], Any]:
    """A forward and a backward pass of the module in training mode."""
    import bpcore as bp
    from bpcore.layout import Layout

    layout = Layout(module)
    theta = layout.windows(layout.draw(0).astype("float32"))
    gradient = layout.windows(np.zeros(layout.trained, "float32"), np.zeros(layout.spare, "float32"))
    v = np.ones_like(module.forward(theta, z, mode=bp.Mode(True))[0])

    def run() -> None:
        _, saved = module.forward(theta, z, mode=bp.Mode(True))
        module.backward(theta, saved, v, gradient)

    return run


def steps(cell: str) -> Callable[[], Any]:
    """A training step of one of run.py's cells."""
    from cells import CELLS, theta
    from engines import build

    engine = build("bpcore", CELLS[cell], theta(CELLS[cell]))
    ring = engine.ring(CELLS[cell])
    return lambda: engine.step(*next(ring))


def families(of: str) -> dict[str, list[str]]:
    """Family to the primitives that the set has twins of."""
    from bpcore import primitive

    primitive.load(of)
    found: dict[str, list[str]] = {}
    for name, known in primitive.PRIMITIVES.items():
        if of in known.twins:
            found.setdefault(known.twins[of].call.__module__.rpartition(".")[2], []).append(name)
    return found


def families_run(run: Callable[[], Any], of: str) -> list[str]:
    """The families whose twins `run` calls."""
    from bpcore.primitive import PRIMITIVES

    ran: set[str] = set()

    def noted(family: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def twin(*args: Any) -> Any:
            ran.add(family)
            return call(*args)

        return twin

    known = [(family, PRIMITIVES[name]) for family, names in families(of).items() for name in names]
    kept = [primitive.twins[of] for _, primitive in known]
    for (family, primitive), twin in zip(known, kept, strict=True):
        primitive.twins[of] = twin._replace(call=noted(family, twin.call))
    run()
    for (_, primitive), twin in zip(known, kept, strict=True):
        primitive.twins[of] = twin
        primitive.picked.clear()
    return sorted(ran)


def work(what: str, of: str, without: str) -> None:
    """A worker: says which families' twins run, and then answers each number of seconds with a median time."""
    from bpcore.primitive import PRIMITIVES

    for name in families(of).get(without, []):
        del PRIMITIVES[name].twins[of]
    run = steps(what) if what in STEPS else passes(*modules()[what])
    print(json.dumps([] if without else families_run(run, of)), flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


class Worker:
    """A process that measures one thing without one family."""

    def __init__(self, what: str, of: str, without: str, threads: int):
        command = [sys.executable, __file__, "--work", what, of, without]
        variables = environment(threads, tf32=False) | {"BPCORE_KERNELS": SETTINGS[of]}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=sys.path[0]
        )
        self.families: list[str] = json.loads(self.read())

    def read(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self.process.wait()}, see its message above")
        return line

    def ask(self, seconds: float) -> float:
        """The median time of a run over so many seconds."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        return float(self.read())

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def gains(what: str, of: str, given: argparse.Namespace) -> dict[str, float]:
    """Family to the time without its twins over the time with all of them: the median of rounds."""
    whole = Worker(what, of, "", given.threads)
    workers = {"": whole, **{name: Worker(what, of, name, given.threads) for name in whole.families}}
    ratios: dict[str, list[float]] = {name: [] for name in whole.families}
    for i in range(given.rounds + 1):
        times = {name: worker.ask(given.seconds) for name, worker in workers.items()}
        if i:  # the first round warms up
            for name, rounds in ratios.items():
                rounds.append(times[name] / times[""])
    for worker in workers.values():
        worker.end()
    return {name: statistics.median(rounds) for name, rounds in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--only", nargs="+", default=[*modules(), *STEPS], metavar="NAME", help="modules, or cells of run.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each variant in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work)
        return
    print("| set | measured | time without the family's twins, of the time with them |\n| --- | --- | --- |")
    for of in given.sets:
        for what in given.only:
            row = ", ".join(f"{name} {ratio:.2f}" for name, ratio in gains(what, of, given).items())
            if row:
                print(f"| {of.removeprefix('kernels.')} | {what} | {row} |", flush=True)


if __name__ == "__main__":
    main()
