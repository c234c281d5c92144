"""Every module, loss and optimiser on a CPU, forward and backward, beside PyTorch.

The engines are bpcore with all twins (fast), without those that need an extra (plain), without any (off), and PyTorch with
channels first or last, of which the quicker one counts. Each has its own process; rounds alternate between them; ratios are taken
within a round. An optimiser's update also shows the fraction of the memory's bandwidth that `fast` reaches, of that of a copy.
What takes more than its limit of PyTorch's time is listed.

    python benchmarks/modules.py                             # at usual and at large sizes; eight minutes
    python benchmarks/modules.py --sizes usual --engines fast torch torch-cl --only LSTM GRU
    python benchmarks/modules.py --show benchmarks/results/modules.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import best, ratio
from primitive_draw import SIZES
from process import HERE, LeftOut, Process, environment, finish, take_turns
from run import gpus, machine

KERNELS = {"fast": "on", "plain": "plain", "off": "off"}  # BPCORE_KERNELS of bpcore's engines
TORCH = ("torch", "torch-cl")
LIMITS = {"fast": 1.2, "plain": 6.0}  # of PyTorch's time
COPIED = {True: 1 << 16, False: 1 << 25}  # numbers in the array that is copied, by whether it is a smoke run
Results = dict[str, Any]


def measure(options: argparse.Namespace) -> Results:
    """Measure each row, round by round; engines take turns."""
    from module_rows import rows

    results: Results = {"machine": machine(gpus()), "settings": {}, "skipped": {}, "copies": {}, "rows": []}
    results["settings"] = {name: getattr(options, name) for name in ("rounds", "seconds", "threads", "sizes")}
    workers: dict[str, Process] = {}
    for engine in options.engines:
        variables = environment(options.threads) | {"BPCORE_KERNELS": KERNELS.get(engine, "off")}
        try:
            workers[engine] = Process("module_worker.py", engine, str(COPIED[options.quick]), variables=variables)
            results["copies"][engine] = workers[engine].ready["bytes"]
        except LeftOut as reason:
            results["skipped"][engine] = str(reason)
    for size in options.sizes:
        for name in rows(SIZES[size]):
            if options.only and not {name, name.split()[0]} & set(options.only):
                continue
            print(f"measuring {name}, {size}", file=sys.stderr, flush=True)
            request: dict[str, Any] = {"name": name, "size": size, "seconds": options.seconds}
            found: dict[str, dict[str, Any]] = {}
            for engine, got in take_turns(workers, options.rounds, results["skipped"], f"{name}, {size}", **request).items():
                failed = next((its for its in got if "failed" in its), None)
                found[engine] = failed or {which: [its[which] for its in got] for which in got[0]}
            results["rows"].append({"module": name, "size": size, "engines": found})
            if options.json:  # so far: a run may be cut off
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    for worker in workers.values():
        worker.end()
    return results


def fraction(results: Results, row: dict[str, Any], seconds: list[float]) -> float:
    """The fraction of a copy's bandwidth that an update reaches: it reads g, and reads and writes θ and its moments."""
    import bpcore as bp

    sizes = SIZES[row["size"]]
    moved = 4 * sizes.parameters * (3 + 2 * len(getattr(bp, row["module"]).moments))
    return float(moved / max(results["copies"].values()) / statistics.median(seconds))


def lines(results: Results) -> Iterator[str]:
    """The table, a line for each pass of each row; then what takes longer than its limit."""
    for engine, reason in results["skipped"].items():
        yield f"left out: {engine}: {reason}"
    if results["copies"]:
        yield f"copies reach {max(results['copies'].values()) / 1e9:.1f} GB/s"
    columns = "".join(f"{engine + ', ms':>9} {'of it':>19} " for engine in KERNELS)
    yield f"{'module':20} {'size':6} {'pass':9} {'reference':9} {'ms':>9} {columns}"
    past: dict[str, list[tuple[float, str]]] = {engine: [] for engine in LIMITS}
    for row in results["rows"]:
        what = f"{row['module']:20} {row['size']:6}"
        for engine, its in row["engines"].items():
            if "failed" in its:
                yield f"{what} {engine} failed: {its['failed']}"
        for which in ("forward", "backward", "update"):
            times = {engine: its[which] for engine, its in row["engines"].items() if which in its}
            reference = best(times, TORCH) or next(reversed(times), "")
            if not reference:
                continue
            line = f"{what} {which:9} {reference:9} {statistics.median(times[reference]) * 1e3:9.3f}"
            for engine in KERNELS:
                if engine not in times:
                    line += " " * 30
                    continue
                spread = ratio(times[engine], times[reference])
                line += f" {statistics.median(times[engine]) * 1e3:9.3f} {spread:>19}"
                if reference in TORCH and spread.median > LIMITS.get(engine, math.inf):
                    past[engine].append((-spread.median, f"{what} {which:9} {spread}"))
            if which == "update" and "fast" in times:
                line += f" {fraction(results, row, times['fast']):.2f} of the bandwidth"
            yield line.rstrip()
    for engine, its in past.items():
        yield f"{engine} past {LIMITS[engine]} of PyTorch: {len(its)}"
        yield from (line for _, line in sorted(its))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=(*KERNELS, *TORCH), default=[*KERNELS, *TORCH])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help='modules, or rows: "Conv2d 1x1"')
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=None, help="usual and large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each pass of each engine in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="benchmarks/results/modules.json")
    parser.add_argument("--quick", action="store_true", help="a smoke run of small sizes; no file unless --json")
    parser.add_argument("--show", type=Path, help="measure nothing; print the table of an existing file")
    options = parser.parse_args()
    options.sizes = options.sizes or (["small"] if options.quick else ["usual", "large"])
    if options.quick:
        options.rounds, options.seconds = 1, 0.001
    elif options.json is None:
        options.json = HERE / "results" / "modules.json"
    results = json.loads(options.show.read_text()) if options.show else measure(options)
    finish(results, lines(results))


if __name__ == "__main__":
    main()
