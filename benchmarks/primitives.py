"""Every primitive at real sizes: its time, its bytes and operations, and the fraction of the machine's ceiling that it reaches.

The ceilings are measured first: the bytes a second of a copy, and the operations a second of a large product. At these a
primitive's bytes and operations (the longer of both counts) take a time; that time over the measured one is the fraction. It
can pass 1 where arrays stay in a cache. What lies below half is listed, with the time that it loses.

Each engine has its own process: a device with all twins, without those that need an extra (plain), and without any (off). Rounds
alternate between them. On a GPU only its own time counts: the host has launched the calls before they begin.

    python benchmarks/primitives.py                          # all that is here; ten minutes on two cores
    python benchmarks/primitives.py --engines cpu --only gelu conv2d
    python benchmarks/primitives.py --engines gpu gpu-plain gpu-off --precision f16
    python benchmarks/primitives.py --show benchmarks/results/primitives-gpu-f16.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engines import COMPUTE
from figures import Spread, ratio
from process import HERE, LeftOut, Process, environment, finish, take_turns
from run import gpus, machine

HALF = 0.5  # of the ceiling: what lies below is listed
Results = dict[str, Any]


class Variant(NamedTuple):
    """An engine: a backend, and BPCORE_KERNELS, which says what twins there are."""

    backend: str
    kernels: str


ENGINES = {
    "cpu": Variant("numpy", "on"),
    "cpu-plain": Variant("numpy", "plain"),
    "cpu-off": Variant("numpy", "off"),
    "gpu": Variant("cupy", "on"),
    "gpu-plain": Variant("cupy", "plain"),
    "gpu-off": Variant("cupy", "off"),
}


def measure(options: argparse.Namespace) -> Results:
    """Measure each row, round by round; engines take turns."""
    from primitive_draw import SIZES
    from primitive_rows import rows

    results: Results = {"machine": machine(gpus()), "settings": {}, "skipped": {}, "ceilings": {}, "rows": []}
    results["settings"] = {name: getattr(options, name) for name in ("rounds", "seconds", "threads", "precision", "sizes")}
    workers: dict[str, Process] = {}
    for engine in options.engines:
        variables = environment(options.threads, options.precision) | {"BPCORE_KERNELS": ENGINES[engine].kernels}
        arguments = (engine, options.precision, options.sizes, str(options.seconds))
        try:
            workers[engine] = Process("primitive_worker.py", *arguments, variables=variables)
            results["ceilings"][engine] = workers[engine].ready
        except LeftOut as reason:
            results["skipped"][engine] = str(reason)
    for name, its in rows(SIZES[options.sizes]).items():
        for i, row in enumerate(its if name in options.only or not options.only else ()):
            print(f"measuring {name}, {row.label}", file=sys.stderr, flush=True)
            request: dict[str, Any] = {"name": name, "row": i, "seconds": options.seconds}
            got = take_turns(workers, options.rounds, results["skipped"], f"{name}, {row.label}", **request)
            found: dict[str, Any] = {}
            for engine, its in got.items():
                failed = next((answer for answer in its if "failed" in answer), None)
                found[engine] = failed or its[-1] | {"seconds": [answer["seconds"] for answer in its]}
            results["rows"].append({"primitive": name, "label": row.label, "engines": found})
            if options.json:  # so far: a run may be cut off
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    for worker in workers.values():
        worker.end()
    return results


def device(engine: str) -> str:
    """ "cpu" or "gpu"."""
    return engine.partition("-")[0]


def ceiling(results: Results, engine: str, kind: str) -> float:
    """The highest measured figure of a device."""
    return max(float(of[kind]) for name, of in results["ceilings"].items() if device(name) == device(engine))


def floor(results: Results, engine: str, its: dict[str, Any]) -> float:
    """The seconds that a primitive takes at the ceiling."""
    return max(its[kind] / ceiling(results, engine, kind) for kind in ("bytes", "operations"))


def fraction(results: Results, engine: str, its: dict[str, Any]) -> float:
    """The fraction of the ceiling that an engine reaches in a row."""
    return floor(results, engine, its) / statistics.median(its["seconds"])


def lines(results: Results) -> Iterator[str]:
    """The table, a line for each row and device with the time of its first engine; then what lies below half of the ceiling."""
    for engine, reason in results["skipped"].items():
        yield f"left out: {engine}: {reason}"
    for engine, of in results["ceilings"].items():
        yield f"ceiling of {engine}: copies {of['bytes'] / 1e9:.1f} GB/s, products {of['operations'] / 1e9:.0f} GFLOP/s"
    what = f"{'primitive':27} {'size':26}"
    yield f"{what} {'engine':9} {'set':10} {'ms':>9} {'MB':>8} {'GFLOP':>8} {'of ceiling':>10} without its twins, times as long"
    low = []
    for row in results["rows"]:
        what = f"{row['primitive']:27} {row['label']:26}"
        first: dict[str, str] = {}  # by device
        for engine, its in row["engines"].items():
            if "failed" in its:
                yield f"{what} {engine:9} failed: {its['failed']}"
            elif device(engine) not in first:
                first[device(engine)] = engine
        for engine in first.values():
            its = row["engines"][engine]
            reached, seconds = fraction(results, engine, its), statistics.median(its["seconds"])
            others = {
                name: ratio(other["seconds"], its["seconds"])
                for name, other in row["engines"].items()
                if device(name) == device(engine) and name != engine and "failed" not in other
            }
            more = ", ".join(f"{name} {times.median:.2f}" for name, times in others.items())
            needs = f"{its['bytes'] / 1e6:8.1f} {its['operations'] / 1e9:8.2f}"
            yield f"{what} {engine:9} {its['set']:10} {seconds * 1e3:9.3f} {needs} {reached:10.2f} {more}"
            if reached < HALF:
                spread = Spread(reached, *(floor(results, engine, its) / end(its["seconds"]) for end in (max, min)))
                lost = (seconds - floor(results, engine, its)) * 1e3
                low.append((-lost, f"{what} {engine:9} {its['set']:10} {spread} of the ceiling, {lost:.3f} ms lost"))
    yield f"below {HALF} of the ceiling: {len(low)}"
    yield from (line for _, line in sorted(low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None, help="all whose device is there")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="primitives")
    parser.add_argument("--precision", choices=COMPUTE, default="f32", help="of arrays, or of products: tf32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=None, help="of each engine in each round; 0.2 on a GPU, 0.05 on a CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="benchmarks/results/primitives-DEVICE-PRECISION.json")
    parser.add_argument("--quick", action="store_true", help="a smoke run of small sizes; no file unless --json")
    parser.add_argument("--show", type=Path, help="measure nothing; print the table of an existing file")
    options = parser.parse_args()
    options.sizes = "small" if options.quick else "real"
    if options.quick:
        options.rounds, options.seconds = 1, 0.001
    if options.show:
        results = json.loads(options.show.read_text())
    else:
        here = ["gpu"] if gpus() else []
        here += ["cpu"] if options.precision == "f32" else []
        options.engines = options.engines or [engine for engine in ENGINES if device(engine) in here]
        if not options.engines:
            parser.error(f"{options.precision} is measured on a GPU, and nvidia-smi finds none")
        if options.json is None and not options.quick:
            options.json = HERE / "results" / f"primitives-{device(options.engines[0])}-{options.precision}.json"
        options.seconds = options.seconds or (0.2 if device(options.engines[0]) == "gpu" else 0.05)
        results = measure(options)
    finish(results, lines(results))


if __name__ == "__main__":
    main()
