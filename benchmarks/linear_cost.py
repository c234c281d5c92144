"""The time of a training step against the batch, the width squared and the depth: a fitted line with R² for each, and a picture.

By Theorem 7.4.1 the gradient costs a constant times the cost of the function, so the time should grow like the number of
operations. A round measures all points of a panel in turn; a point is the median of its rounds.

    python benchmarks/linear_cost.py                 # writes benchmarks/results/linear_cost.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, theta
from engines import build

PICTURE = Path(__file__).parent / "results" / "linear_cost.png"
# Large enough that products of matrices, not calls, take the time. Batches stay below 2 MiB per array: above that, the C library
# returns freed memory to the system, and page faults add a fifth to plain NumPy's step.
PANELS: dict[str, list[tuple[float, Cell]]] = {
    "batch": [(n, Cell("mlp", n, (512, 512, 512, 10))) for n in range(112, 897, 112)],
    "width squared": [(w * w, Cell("mlp", 256, (w,) * 4)) for w in (256, 384, 512, 640, 768, 896, 1024)],
    "depth": [(d, Cell("mlp", 256, (256,) * (d + 1))) for d in range(2, 21, 3)],
}
TITLES = {
    "batch": "batch, 512-512-512-10",
    "width squared": "width squared / 1000, 3 layers, batch 256",
    "depth": "layers, 256 wide, batch 256",
}


def line(x: Any, y: Any) -> dict[str, float]:
    """The least-squares line y = intercept + slope x, and its R²."""
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - intercept - slope * x
    spread = y - y.mean()
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(1 - residual @ residual / (spread @ spread))}


def measure(engine: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Panel to its points and the line through them. seconds: of each point in each round."""
    results = {}
    for panel, points in PANELS.items():
        work = []
        for _, cell in points:
            built = build(engine, cell, theta(cell))
            work.append((built, built.ring(cell)))
        rows: list[list[float]] = [[] for _ in points]
        for i in range(rounds + 1):
            for (built, ring), row in zip(work, rows, strict=True):
                times, end = [], time.perf_counter() + seconds
                while time.perf_counter() < end or len(times) < 3:
                    X, y = next(ring)
                    start = time.perf_counter()
                    built.wait(built.step(X, y))
                    times.append(time.perf_counter() - start)
                if i:  # the first round warms up
                    row.append(statistics.median(times))
        x = [at for at, _ in points]
        y = [statistics.median(row) for row in rows]
        results[panel] = {"x": x, "seconds": y, "rounds": rows, **line(x, y)}
    return results


def picture(results: dict[str, Any], path: Path, title: str) -> None:
    """Draw the panels: the points with the range of their rounds, and the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.7), layout="constrained")
    for (panel, fit), axes in zip(results.items(), figure.subplots(1, 3), strict=True):
        scale = 1000 if panel == "width squared" else 1
        x, ms = np.asarray(fit["x"]) / scale, np.asarray(fit["seconds"]) * 1e3
        low, high = (1e3 * np.array([of(row) for row in fit["rounds"]]) for of in (min, max))
        ranges = (ms - low, high - ms)
        bars = axes.errorbar(x, ms, ranges, fmt="o", color="#0072b2", capsize=3, label="median and range of rounds")
        ends = np.array([0, x.max() * 1.04])
        (fitted,) = axes.plot(ends, 1e3 * (fit["intercept"] + fit["slope"] * scale * ends), color="#d55e00", label="fitted line")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(TITLES[panel])
        axes.set_title(f"{panel}, R² = {fit['r2']:.4f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=[bars, fitted], loc="outside lower center", ncols=2, frameon=False)
    figure.axes[0].set_ylabel("ms a training step")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="bpcore", help="bpcore or bpcore-plain (with BPCORE_KERNELS=plain)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each point in each round")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    results = measure(arguments.engine, arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps(results))
    else:
        for panel, fit in results.items():
            points = ", ".join(f"{x:g}: {s * 1e3:.2f}" for x, s in zip(fit["x"], fit["seconds"], strict=True))
            print(f"{panel:14} R² {fit['r2']:.5f}   ms at {points}")
    picture(results, arguments.picture, f"a training step of {arguments.engine} (forward, backward, Adam; float32)")


if __name__ == "__main__":
    main()
