"""The gain of each family's twins: the time of a module's forward and backward pass, or of a training step, with and without.

A twin is a faster implementation of one of bpcore's functions. Without compiled twins, NumPy's twins run, without NumPy's, the
definitions. Every variant runs in its own process, rounds alternate, and ratios are computed round by round. A ratio of 1.5 means
that the family's twins save a third of the time; twins that stay at 1.0 everywhere are not worth their lines.

    python benchmarks/twins.py                                # both sets, all modules and the steps; a quarter of an hour
    python benchmarks/twins.py --sets kernels.numpy --only LayerNorm transformer
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

STEPS = ("tiny", "small", "cnn", "transformer")  # cells of run.py whose training steps are measured too
SETTINGS = {"kernels.fast": "on", "kernels.numpy": "plain"}  # BPCORE_KERNELS
ENGINES = {"kernels.fast": "bpcore", "kernels.numpy": "bpcore-plain"}  # of run.py


def modules() -> dict[str, tuple[Any, Any]]:
    """Name to (module, input), with the sizes of layers in a small transformer and a small convolutional network."""
    import bpcore as bp

    generator = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, "float32")

    rows, image = floats(2048, 1024), floats(32, 28, 28, 32)
    activations: dict[str, tuple[Any, Any]] = {}
    for name in ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Sigmoid", "Tanh", "Softplus", "Softmax", "LogSoftmax"):
        activations[name] = getattr(bp, name)(), rows
    return activations | {
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
        "Upsample": (bp.Upsample(2), image),
        "Embedding": (bp.Embedding(8192, 256), generator.integers(0, 8192, (32, 128))),
        "MultiHeadAttention": (bp.MultiHeadAttention(256, 4, causal=True), floats(16, 128, 256)),
    }


def passes(module: Any, z: Any) -> Callable[[], Any]:
    """A function that does a forward and a backward pass of the module in training mode."""
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


def steps(cell: str, of: str) -> Callable[[], Any]:
    """A function that takes a training step in a cell of run.py."""
    from cells import CELLS, theta
    from engines import build

    engine = build(ENGINES[of], CELLS[cell], theta(CELLS[cell]))
    ring = engine.ring(CELLS[cell])

    def run() -> None:
        engine.step(*next(ring))

    return run


def families(of: str) -> dict[str, list[str]]:
    """Family to the names of the primitives for which the set `of` has twins."""
    from bpcore import primitive

    primitive.load(of)
    names: dict[str, list[str]] = {}
    for name, known in primitive.PRIMITIVES.items():
        if of in known.twins:
            names.setdefault(known.twins[of].call.__module__.rpartition(".")[2], []).append(name)
    return names


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
    twins = [primitive.twins[of] for _, primitive in known]
    for (family, primitive), twin in zip(known, twins, strict=True):
        primitive.twins[of] = twin._replace(call=noted(family, twin.call))
        primitive.picked.clear()
    run()
    for (_, primitive), twin in zip(known, twins, strict=True):
        primitive.twins[of] = twin
        primitive.picked.clear()
    return sorted(ran)


def work(what: str, of: str, without: str) -> None:
    """The worker's process: prints the families whose twins run; then, for each number of seconds, the median time of a run."""
    from bpcore.primitive import PRIMITIVES

    for name in families(of).get(without, []):
        del PRIMITIVES[name].twins[of]
    run = steps(what, of) if what in STEPS else passes(*modules()[what])
    print(json.dumps([] if without else families_run(run, of)), flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


class Worker:
    """A process that measures a module or a step without the twins of one family."""

    def __init__(self, what: str, of: str, without: str, threads: int):
        command = [sys.executable, __file__, "--work", what, of, without]
        variables = environment(threads) | {"BPCORE_KERNELS": SETTINGS[of]}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=sys.path[0]
        )
        self.families: list[str] = json.loads(self.read())

    def read(self) -> str:
        """The worker's next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self.process.wait()}, see its message above")
        return line

    def ask(self, seconds: float) -> float:
        """The median time of a run, measured over so many seconds."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        return float(self.read())

    def end(self) -> None:
        """Close the worker's input, and wait for its end."""
        self.process.communicate()


def gains(what: str, of: str, options: argparse.Namespace) -> dict[str, float]:
    """Family to the time without its twins over the time with all twins: the median of the rounds."""
    whole = Worker(what, of, "", options.threads)
    workers = {"": whole, **{name: Worker(what, of, name, options.threads) for name in whole.families}}
    ratios: dict[str, list[float]] = {name: [] for name in whole.families}
    for i in range(options.rounds + 1):
        times = {name: worker.ask(options.seconds) for name, worker in workers.items()}
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
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    print("| set | measured | time without the family's twins over the time with them |\n| --- | --- | --- |")
    for of in options.sets:
        for what in options.only:
            row = ", ".join(f"{name} {ratio:.2f}" for name, ratio in gains(what, of, options).items())
            if row:
                print(f"| {of.removeprefix('kernels.')} | {what} | {row} |", flush=True)


if __name__ == "__main__":
    main()
