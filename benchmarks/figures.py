"""The evaluation of the measured times: ratios round by round, the table, and the limits that must hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from engines import ENGINES

Results = dict[str, Any]
EAGER = {False: "torch", True: "torch-cuda"}  # by whether the engine runs on a GPU
COMPILED = ("torch-cuda-compile", "torch-cuda-reduce-overhead")
TORCH = ("torch-cuda", "torch-cuda-cl", *COMPILED)
PEERS = {False: ("torch", "torch-compile", "jax"), True: (*TORCH, "jax-cuda")}
BARE = {"bpcore-plain": "gemms-plain", "bpcore": "gemms"}


class Spread(NamedTuple):
    """The median of rounds, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} {f'({self.low:.2f}-{self.high:.2f})':>14}"

    def __format__(self, form: str) -> str:
        return format(str(self), form)


def ratio(times: list[float], reference: list[float]) -> Spread:
    """The ratio of the times in each round, as median and range."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def best(figures: dict[str, list[float]], among: tuple[str, ...]) -> str | None:
    """The engine with the lowest median, or None if none was measured."""
    measured = [name for name in among if figures.get(name)]
    return min(measured, key=lambda name: statistics.median(figures[name]), default=None)


def against(figures: dict[str, list[float]], engine: str, among: tuple[str, ...]) -> Spread | None:
    """The ratio to the best engine among these, or None if one of the two was not measured."""
    reference = best(figures, among)
    return ratio(figures[engine], figures[reference]) if reference and figures.get(engine) else None


class Limit(NamedTuple):
    """A limit: in a measure of a cell, `engine` takes at most `limit` times the figure of the best engine of `among`.

    precisions: those at which it must hold.
    """

    number: int
    measure: str
    cell: str
    engine: str
    among: tuple[str, ...]
    limit: float
    precisions: tuple[str, ...] = ("f32", "tf32")


REPLAYED = "bpcore-cupy-graph"
CELLS = ("tiny", "small", "medium", "wide32", "large", "deep")
FIRST = (  # what the first run on a GPU reached: a cell, and its step against the best of PyTorch's, and JAX's
    ("tiny", 0.092, 0.96),
    ("small", 0.088, 0.81),
    ("medium", 0.117, 0.83),
    ("large", 0.738, 1.05),
    ("gpu-large", 1.01, 1.03),
    ("cnn", 0.652),
    ("transformer", 0.383, 1.02),
)
LIMITS = [
    *(Limit(1, "step", cell, "bpcore", PEERS[False], 0.9) for cell in ("tiny", "small", "deep")),
    *(Limit(1, "step", cell, "bpcore", PEERS[False], 1.05) for cell in ("medium", "wide32", "large")),
    *(
        Limit(1, "step", cell, "bpcore-plain", ("torch",), limit)
        for cell, limit in zip(CELLS, (0.4, 0.9, 1.5, 2.6, 1.5, 1.5), strict=True)
    ),
    Limit(2, "step", "large", "bpcore", ("gemms",), 1.1),
    Limit(3, "step", "cnn", "bpcore", ("torch", "torch-cl"), 1.2),
    Limit(3, "step", "transformer", "bpcore", ("torch",), 1.0),
    *(Limit(4, "memory", cell, "bpcore", ("torch",), 1.0) for cell in (*CELLS, "transformer")),
    Limit(4, "memory", "cnn", "bpcore", ("torch", "torch-cl"), 1.0),
    *(
        Limit(4, "step_memory", cell, engine, among, 0.9)
        for cell, among in (("cnn", ("torch", "torch-cl")), ("transformer", ("torch",)))
        for engine in ("bpcore", "bpcore-plain")
    ),
    *(Limit(6, "step", cell, "bpcore-cupy", ("torch-cuda",), 0.7) for cell in ("tiny", "small", "medium")),
    Limit(6, "step", "gpu-large", "bpcore-cupy", ("torch-cuda",), 1.0),
    *(
        Limit(6, "step", cell, "bpcore-cupy-graph", ("torch-cuda-reduce-overhead",), 1.1)
        for cell in ("tiny", "small", "medium", "gpu-large")
    ),
    Limit(7, "step", "gpt", REPLAYED, COMPILED, 1.0, ("f16", "bf16")),
    Limit(7, "step", "gpt", REPLAYED, ("torch-cuda",), 0.7, ("f16", "bf16")),
    Limit(7, "memory", "gpt", REPLAYED, ("torch-cuda",), 1.0, ("f16", "bf16")),
    Limit(7, "step", "gpt-2048", REPLAYED, ("torch-cuda",), 1.0, ("f16", "bf16")),
    *(
        Limit(7, "step", "resnet", REPLAYED, TORCH, limit, (precision,))
        for precision, limit in (("f16", 0.9), ("tf32", 1.0), ("f32", 1.1))
    ),
    *(Limit(7, "inference", cell, REPLAYED, TORCH, 1.0) for cell in ("tiny", "small", "medium", "wide32", "deep", "transformer")),
    Limit(7, "step", "cnn", REPLAYED, ("jax-cuda",), 1.2),
    *(
        Limit(7, "step", cell, REPLAYED, among, limit, ("f32",))
        for cell, *limits in FIRST
        for among, limit in zip((TORCH, ("jax-cuda",)), limits, strict=False)
    ),
]
FIT = 1.3  # limit on an epoch of fit over its bare steps and an evaluation
LINEAR = 0.99  # R² must be above it
LOSSES, LAST = 0.02, 10  # limit on the distance of the mean of the last losses from float32's


def figures_of(results: Results, cell: str, measure: str) -> dict[str, list[float]]:
    """Engine to its figures, one for each round."""
    return {engine: its[measure] for engine, its in results["cells"].get(cell, {}).items() if its.get(measure)}


def last_losses(results: Results) -> dict[str, float]:
    """Precision to the mean of the last losses."""
    return {name: statistics.mean(losses[-LAST:]) for name, losses in results.get("losses", {}).items()}


def verdicts(results: Results) -> list[tuple[bool | None, str]]:
    """(whether it holds, a line) for each limit, in order; None if it was not measured."""
    lines: list[tuple[bool | None, str]] = []

    def note(what: str, got: Any, holds: Any) -> None:
        if got is None:
            lines.append((None, what))
        else:
            lines.append((bool(holds), f"{what}: {got:.4f}" if isinstance(got, float) else f"{what}: {got}"))

    precision = results.get("settings", {}).get("precision", "f32")
    for number, measure, cell, engine, among, limit, precisions in LIMITS:
        if precision not in precisions:
            continue
        rounds = figures_of(results, cell, measure)
        got = against(rounds, engine, among)
        reference = best(rounds, among) or " or ".join(among)
        note(f"{number}. {measure}, {cell}: {engine} at most {limit} of {reference}", got, got and got.median <= limit)
    for panel in ("batch", "width squared", "depth"):
        r2 = results.get("linear", {}).get(panel, {}).get("r2")
        note(f"4. a step's time against {panel} fits a line, R² above {LINEAR}", r2, r2 and r2 > LINEAR)
    epoch = results.get("epoch", {}).get("bpcore")
    got = ratio(epoch["fit"], epoch["bare"]) if epoch else None
    note(f"5. an epoch of fit, tiny: at most {FIT} of its bare steps and an evaluation", got, got and got.median <= FIT)
    means = last_losses(results)
    for name in ("tf32", "f16", "bf16"):
        gap = abs(means[name] / means["f32"] - 1) if {name, "f32"} <= set(means) else None
        note(f"7. losses, transformer: {name} within {LOSSES} of f32", gap, gap is not None and gap <= LOSSES)
    return sorted(lines, key=lambda verdict: verdict[1][:2])  # by the limit's number


def cell_lines(cell: str, engines: dict[str, Any]) -> Iterator[str]:
    """The rows of a cell, one for each engine."""
    for engine, its in engines.items():
        line = f"{cell:11} {engine:26}"
        gpu = ENGINES[engine].gpu
        for measure in ("step", "inference"):
            rounds = {name: other[measure] for name, other in engines.items()}
            line += f" {statistics.median(rounds[engine]) * 1e3:9.3f} {against(rounds, engine, (EAGER[gpu],)) or '':>19}"
            if measure == "step":
                bare = against(rounds, engine, (BARE[engine],)) if engine in BARE else None
                line += f" {against(rounds, engine, PEERS[gpu]) or '':>19} {f'{bare.median:.2f}' if bare else '':>6}"
        memory, of_steps = (its.get(name) for name in ("memory", "step_memory"))
        line += f" {f'{memory[0]:.0f}' if memory else '':>7}"
        yield f"{line} {f'{statistics.median(of_steps):.1f}' if of_steps else '':>7} {its['first']:7.2f}"


def table(results: Results) -> Iterator[str]:
    """The table of all that was measured, line by line."""
    if results["cells"]:
        step, evaluation = "a training step", "an evaluation"
        yield f"{'':38} {step:^56} {evaluation:^29} {'peak':>7} {'step':>7} {'first':>7}"
        step, evaluation = f"{'ms':>9} {'/torch':>19} {'/best peer':>19} {'/GEMMs':>6}", f"{'ms':>9} {'/torch':>19}"
        yield f"{'cell':11} {'engine':26} {step} {evaluation} {'MB':>7} {'MB':>7} {'step, s':>7}"
    for cell, engines in results["cells"].items():
        yield from cell_lines(cell, engines)
        for gpu, peers in PEERS.items():
            name = best(figures_of(results, cell, "step"), peers)
            if name:
                yield f"{cell:11} the best peer on a {'GPU' if gpu else 'CPU'} is {name}"
    for engine, rounds in results.get("accuracy", {}).items():
        reached = [run for run in rounds if run["epochs"] is not None]
        middle = {name: statistics.median(run[name] for run in reached) if reached else math.nan for name in ("seconds", "first")}
        epochs = ", ".join(str(run["epochs"] or "never") for run in rounds)
        what = f"{rounds[0]['accuracy']:.1%} of {rounds[0]['data']}"
        seconds = f"{middle['seconds']:7.2f} s, {middle['first']:.2f} s of it to the first step"
        yield f"{what:15} {engine:26} {seconds}; epochs by seed: {epochs}"
    for engine, its in results.get("epoch", {}).items():
        ms = statistics.median(its["fit"]) * 1e3
        yield f"an epoch of fit {engine:26} {ms:7.2f} ms, of its bare steps and an evaluation {ratio(its['fit'], its['bare'])}"
    for name, its in results.get("import", {}).items():
        of_torch = f", of torch's {ratio(its, results['import']['torch'])}" if "torch" in results["import"] else ""
        yield f"{'import':15} {name:26} {statistics.median(its) * 1e3:7.0f} ms{of_torch}"
    for name, size in results.get("install", {}).items():
        yield f"{'installed size':15} {name:26} {size / 1e6:7.1f} MB with all dependencies"
    for name, mean in last_losses(results).items():
        yield f"{'losses':15} {'transformer, ' + name:26} {mean:7.4f} after {len(results['losses'][name])} steps"
    for panel, fit in results.get("linear", {}).items():
        yield f"{'linear cost':15} {'against ' + panel:26} {fit['r2']:7.4f} R² of a line through {len(fit['x'])} points"
