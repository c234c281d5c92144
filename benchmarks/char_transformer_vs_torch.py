"""A character transformer on tiny-shakespeare, float32: bpcore and PyTorch eager from the same θ, on the same batches.

Both take the same steps of AdamW (warm-up, cosine, gradients clipped at norm 1). Each engine runs in its own process, and they
take turns of 50 steps. After each turn a line shows both training losses (the mean J of these steps), both validation losses,
and the median time of a step. The exit status is 1 if the last validation losses differ by more than LIMIT.

    BPCORE_DATA=path/to/data python benchmarks/char_transformer_vs_torch.py         # needs torch beside bpcore
    python benchmarks/char_transformer_vs_torch.py --steps 100 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch_engine
from cells import CELLS
from engines import Engine, bpcore, bpcore_module
from process import environment
from run import machine

import bpcore as bp

CELL, ENGINES = CELLS["transformer"], ("bpcore", "torch")
TOKENS = CELL.dims.tokens
WARM, TURN = 100, 50  # steps
LIMIT = 0.02  # on the difference of the last validation losses


def engine_of(name: str, steps: int, seed: int) -> Engine:
    """The benchmark's engine of that name, on bpcore's own initial θ."""
    theta = bp.Network(bpcore_module(CELL), backend="numpy", seed=seed).parameters()
    schedule = bp.schedules.WarmUp(WARM, bp.schedules.Cosine(max(1, steps - WARM), floor=0.1))
    return {"bpcore": bpcore, "torch": torch_engine.build}[name](CELL, theta, schedule=schedule)


def validation_loss(engine: Engine, X: Any, y: Any) -> float:
    """The mean J of an evaluation, in float64."""
    total = 0.0
    for i in range(0, len(X), CELL.batch):
        t = engine.host(engine.predict(engine.place(X[i : i + CELL.batch]))).astype("float64")
        t -= t.max(-1, keepdims=True)
        own = np.take_along_axis(t, y[i : i + CELL.batch, :, None], -1)[..., 0]
        total += float((np.log(np.exp(t).sum(-1)) - own).mean(1).sum())
    return total / len(X)


def excerpts(ids: Any, starts: Any) -> tuple[Any, Any]:
    """(X, y): TOKENS ids from each start, and for each of them the next id."""
    index = starts[:, None] + np.arange(TOKENS)
    return ids[index], ids[index + 1]


def work(name: str, steps: int, seed: int) -> None:
    """The worker's process: for each line on its input, TURN steps and an evaluation, reported as a line of JSON."""
    text = bp.datasets.tiny_shakespeare()
    ids = np.unique(np.array(list(text)), return_inverse=True)[1]
    cut = len(ids) * 9 // 10
    starts = np.random.default_rng(seed).integers(0, cut - TOKENS, (steps, CELL.batch))
    held_out = excerpts(ids[cut:], np.arange(0, len(ids) - cut - TOKENS, TOKENS))
    engine = engine_of(name, steps, seed)
    for turn, _ in enumerate(sys.stdin):
        losses, times = [], []
        for batch in starts[turn * TURN : (turn + 1) * TURN]:
            X, y = (engine.place(x) for x in excerpts(ids, batch))
            started = time.perf_counter()
            losses.append(float(engine.host(engine.step(X, y))))
            times.append(time.perf_counter() - started)
        report = {"steps": turn * TURN + len(times), "training": statistics.mean(losses)}
        report |= {"validation": validation_loss(engine, *held_out), "seconds": statistics.median(times)}
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of θ and of the batches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.steps, arguments.seed)
        return
    workers = {}
    for engine in ENGINES:
        command = [sys.executable, __file__, "--worker", engine, "--steps", str(arguments.steps), "--seed", str(arguments.seed)]
        variables = environment(arguments.threads)
        workers[engine] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    print(f"{'':5}  {'training loss':^17}  {'validation loss':^17}  {'ms a step':^15}")
    print(f"steps  {'bpcore':>8} {'torch':>8}  {'bpcore':>8} {'torch':>8}  {'bpcore':>7} {'torch':>7}  ratio")
    curves: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(-(-arguments.steps // TURN)):
        for engine, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"the worker of {engine} died; see its message above")
            curves[engine].append(json.loads(line))
        ours, theirs = (curve[-1] for curve in curves.values())
        losses = "  ".join(f"{ours[name]:8.4f} {theirs[name]:8.4f}" for name in ("training", "validation"))
        ms = f"{ours['seconds'] * 1e3:7.1f} {theirs['seconds'] * 1e3:7.1f}  {ours['seconds'] / theirs['seconds']:5.2f}"
        print(f"{ours['steps']:5}  {losses}  {ms}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(*curves.values(), strict=True)]
    apart = abs(ours["validation"] - theirs["validation"])
    print(f"a step takes {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of PyTorch's time")
    verdict = "within" if apart <= LIMIT else "NOT within"
    print(f"validation losses after {ours['steps']} steps: {apart:.5f} apart, {verdict} {LIMIT}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine([]), **curves}, indent=1) + "\n")
    if not apart <= LIMIT:  # NaN is not within either
        raise SystemExit(1)


if __name__ == "__main__":
    main()
