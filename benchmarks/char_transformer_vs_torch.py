"""A character transformer on tiny-shakespeare, float32: bpcore against PyTorch eager from one θ, on the same batches.

Both take the same steps of AdamW (warm-up, cosine, gradients clipped at norm 1). Each engine runs in a process of its own,
and they take turns, 50 steps a time; after each turn a line gives both training losses (the mean J of these steps), both
validation losses, and the median time of a step. Ends with exit status 1 where the last validation losses are further
apart than LIMIT.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from training_step import machine

import bpcore as bp

TOKENS, BATCH = 64, 32
D, HEADS, BLOCKS = 128, 4, 4
LR, DECAY, CLIP, WARM = 2e-3, 0.1, 1.0, 100
TURN = 50  # steps
LIMIT = 0.02  # between the validation losses at the end

Step = Callable[[Any, Any], Any]  # a batch -> J
Evaluate = Callable[[Any, Any], float]


def network(characters: int, seed: int) -> bp.Network:
    """The network of both engines, with the θ that both begin at."""
    embedding = bp.Embedding(characters, D)
    blocks = [bp.TransformerBlock(D, HEADS, causal=True) for _ in range(BLOCKS)]
    module = bp.Sequential(embedding, bp.PositionalEmbedding(TOKENS, D), *blocks, bp.LayerNorm(D), bp.Unembed(embedding))
    return bp.Network(module, backend="numpy", seed=seed)


def bpcore_engine(net: bp.Network, schedule: bp.schedules.Schedule) -> tuple[Step, Evaluate]:
    trainer = bp.Trainer(net, bp.CrossEntropy(), bp.AdamW(LR, weight_decay=DECAY), schedule, clip_norm=CLIP)
    return trainer.step, lambda X, y: trainer.evaluate((X, y), BATCH)["loss"]


def torch_engine(net: bp.Network, schedule: bp.schedules.Schedule) -> tuple[Step, Evaluate]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.feed_norm = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, z: Any) -> Any:
            n, tokens, _ = z.shape
            q, k, v = self.qkv(self.norm(z)).view(n, tokens, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            z = z + self.out(mixed.transpose(1, 2).reshape(n, tokens, D))
            return z + self.down(F.gelu(self.up(self.feed_norm(z))))

    class Transformer(nn.Module):
        def __init__(self, characters: int) -> None:
            super().__init__()
            self.embedding, self.positions = nn.Embedding(characters, D), nn.Embedding(TOKENS, D)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(BLOCKS)), nn.LayerNorm(D)

        def forward(self, ids: Any) -> Any:
            z = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
            for block in self.blocks:
                z = block(z)
            return self.norm(z) @ self.embedding.weight.T

    theta = {path: torch.from_numpy(window.copy()) for path, window in net.parameters().items()}
    model = Transformer(len(theta["0.W"]))
    pairs = {"0.W": model.embedding.weight, "1.W": model.positions.weight}
    pairs |= {f"{BLOCKS + 2}.gamma": model.norm.weight, f"{BLOCKS + 2}.beta": model.norm.bias}
    for i, block in enumerate(model.blocks, 2):
        for path, norm in (("norm", block.norm), ("feed.body.0", block.feed_norm)):
            pairs |= {f"{i}.{path}.gamma": norm.weight, f"{i}.{path}.beta": norm.bias}
        pairs |= {f"{i}.attention.W": block.qkv.weight, f"{i}.attention.b": block.qkv.bias}
        pairs |= {f"{i}.attention.W_o": block.out.weight, f"{i}.attention.b_o": block.out.bias}
        for path, linear in (("feed.body.1", block.up), ("feed.body.3", block.down)):
            pairs |= {f"{i}.{path}.W": linear.weight, f"{i}.{path}.b": linear.bias}
    assert set(pairs) == set(theta)
    assert len(pairs) == len(list(model.parameters()))
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    with torch.no_grad():
        for path, parameter in pairs.items():
            parameter.copy_(theta[path].T if id(parameter) in transposed else theta[path])
    matrices = [p for p in model.parameters() if p.ndim > 1]  # bpcore decays these, and neither biases nor γ
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, loss, taken = torch.optim.AdamW(groups, LR, fused=True), nn.CrossEntropyLoss(), 0

    def step(X: Any, y: Any) -> Any:
        nonlocal taken
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(taken)
        optimizer.zero_grad()
        J = loss(model(torch.from_numpy(X)).flatten(0, 1), torch.from_numpy(y).flatten())
        J.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        taken += 1
        return J.detach()

    def evaluate(X: Any, y: Any) -> float:
        total = 0.0
        with torch.no_grad():
            for i in range(0, len(X), BATCH):
                t = model(torch.from_numpy(X[i : i + BATCH]))
                total += len(t) * float(loss(t.flatten(0, 1), torch.from_numpy(y[i : i + BATCH]).flatten()))
        return total / len(X)

    return step, evaluate


ENGINES = {"bpcore": bpcore_engine, "torch": torch_engine}


def windows(ids: Any, starts: Any) -> tuple[Any, Any]:
    """TOKENS ids from each start, and the ids that follow them."""
    at = starts[:, None] + np.arange(TOKENS)
    return ids[at], ids[at + 1]


def work(engine: str, steps: int, seed: int) -> None:
    """A worker: at each line on its input, TURN steps and an evaluation, reported as a line of JSON."""
    text = bp.datasets.tiny_shakespeare()
    characters, ids = np.unique(np.array(list(text)), return_inverse=True)
    cut = len(ids) * 9 // 10
    starts = np.random.default_rng(seed).integers(0, cut - TOKENS, (steps, BATCH))
    held_out = windows(ids[cut:], np.arange(0, len(ids) - cut - TOKENS, TOKENS))
    schedule = bp.schedules.WarmUp(WARM, bp.schedules.Cosine(max(1, steps - WARM), floor=0.1))
    step, evaluate = ENGINES[engine](network(len(characters), seed), schedule)
    for turn, _ in enumerate(sys.stdin):
        losses, times = [], []
        for batch in starts[turn * TURN : (turn + 1) * TURN]:
            X, y = windows(ids, batch)
            began = time.perf_counter()
            losses.append(float(step(X, y)))
            times.append(time.perf_counter() - began)
        report = {"steps": turn * TURN + len(times), "training": statistics.mean(losses), "validation": evaluate(*held_out)}
        print(json.dumps({**report, "seconds": statistics.median(times)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of θ and of the batches")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.steps, arguments.seed)
        return
    workers = {}
    for engine in ENGINES:
        command = [sys.executable, __file__, "--worker", engine, "--steps", str(arguments.steps), "--seed", str(arguments.seed)]
        workers[engine] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
        arguments.json.write_text(json.dumps({"machine": machine(), **curves}, indent=1) + "\n")
    if not apart <= LIMIT:  # NaN is not within either
        raise SystemExit(1)


if __name__ == "__main__":
    main()
