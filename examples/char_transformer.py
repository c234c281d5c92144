"""Train a small transformer to write like Shakespeare, character by character; report training and validation loss.

    BPCORE_DATA=path/to/data python examples/char_transformer.py            # some minutes on two cores
    python examples/char_transformer.py --backend cupy --steps 5000         # a CUDA GPU; the text is downloaded

It trains on nine tenths of tiny-shakespeare; the last tenth is for validation. Losses are in nats per character. The script
writes to --out: a checkpoint (char_transformer.safetensors), the learning curve (learning_curve.png), the history (history.csv)
and a text by the network (sample.txt).
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

import bpcore as bp
from bpcore import files

TOKENS, BATCH = 64, 32  # characters of an excerpt, excerpts of a step
D, HEADS, BLOCKS = 128, 4, 4
EPOCH = 100  # steps between two measurements: excerpts are drawn at random, so an epoch has no natural length
SAMPLE = 256  # excerpts on which the training loss is measured


def transformer(characters: int) -> bp.Module:
    """From token ids (n, tokens) to logits (n, tokens, characters) of the next token. The first and the last layer share W."""
    embedding = bp.Embedding(characters, D)
    return bp.Sequential(
        embedding,
        bp.PositionalEmbedding(TOKENS, D),
        *(bp.TransformerBlock(D, HEADS, causal=True) for _ in range(BLOCKS)),
        bp.LayerNorm(D),
        bp.Unembed(embedding),
    )


def excerpts(ids: Any, starts: Any) -> tuple[Any, Any]:
    """(X, y): TOKENS ids from each start, and for each of them the next id."""
    index = starts[:, None] + np.arange(TOKENS)
    return ids[index], ids[index + 1]


def bigrams(train: Any, held_out: Any, characters: int) -> float:
    """The loss on `held_out` of a model of pairs, a reference: how often each character follows another in `train`."""
    counts = np.bincount(train[:-1] * characters + train[1:], minlength=characters**2).reshape(characters, -1) + 1
    p = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log(p[held_out[:-1], held_out[1:]]).mean())


def write(net: bp.Network, characters: Any, length: int, temperature: float, seed: int) -> str:
    """`length` characters, each drawn from softmax(t / temperature), where t are the logits after the TOKENS before it."""
    generator = np.random.default_rng(seed)
    ids = [int(np.flatnonzero(characters == "\n")[0])]
    for _ in range(length):
        t = net.backend.to_host(net(np.asarray([ids[-TOKENS:]])))[0, -1].astype("float64") / temperature
        p = np.exp(t - t.max())
        ids.append(int(generator.choice(len(p), p=p / p.sum())))
    return "".join(characters[ids[1:]])


def picture(history: bp.History, reference: float, path: Path) -> None:
    """Plot training and validation loss against steps, and the reference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for column, name, color in (("training_loss", "training", "#1f5a96"), ("test_loss", "validation", "#c8501e")):
        label = f"{name}, at the end {history[-1][column]:.3f}"
        axes.plot(history["steps"], history[column], color=color, label=label, marker=".")
    axes.axhline(reference, color="#777777", linestyle=":", label=f"model of pairs of characters, {reference:.3f}")
    axes.set_xlim(left=0)
    axes.set_xlabel("steps")
    axes.set_title("loss, nats a character")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    files.write(path, content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values, the excerpts, and the sample")
    parser.add_argument("--steps", type=int, default=1500, help=f"of {BATCH} excerpts each, rounded up to a multiple of {EPOCH}")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sample: lower is safer, higher is bolder")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/char_transformer"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "char_transformer.safetensors"

    characters, ids = np.unique(list(bp.datasets.tiny_shakespeare()), return_inverse=True)
    cut = len(ids) * 9 // 10
    train, held_out = ids[:cut], ids[cut:]
    X, y = excerpts(held_out, np.arange(0, len(held_out) - TOKENS, TOKENS))
    validation = [(X[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(X), BATCH)]
    reference = bigrams(train, held_out, len(characters))

    net = bp.Network(transformer(len(characters)), backend=arguments.backend, seed=arguments.seed)
    print(f"{net.n_parameters:,} parameters, {len(train):,} characters to train on, backend {net.backend.name}")
    print(f"a model of pairs of characters has a validation loss of {reference:.3f}")
    epochs = math.ceil(arguments.steps / EPOCH)
    trainer = bp.Trainer(
        net,
        bp.CrossEntropy(),
        bp.AdamW(lr=2e-3, weight_decay=0.1),
        schedule=bp.schedules.WarmUp(EPOCH, bp.schedules.Cosine(max(1, (epochs - 1) * EPOCH), floor=0.1)),
        clip_norm=1.0,
        callbacks=[bp.Progress(lines=False), bp.Checkpoint(path), bp.HistoryLog(arguments.out / "history.csv")],
        seed=arguments.seed,
    )
    if arguments.resume:
        trainer.resume(path)
    started = time.perf_counter()
    while trainer.epoch < epochs and not trainer.interrupted:
        generator = np.random.default_rng([trainer.seed, trainer.epoch])  # a resumed run draws the same excerpts
        drawn = excerpts(train, generator.integers(0, len(train) - TOKENS, EPOCH * BATCH))
        trainer.fit(drawn, validation, epochs=trainer.epoch + 1, batch_size=BATCH, training_sample=SAMPLE)
        if not trainer.interrupted:
            last = trainer.history[-1]
            losses = f"training loss {last['training_loss']:.4f}  validation loss {last['test_loss']:.4f}"
            print(f"step {last['steps']:>5}  {losses}  {time.perf_counter() - started:4.0f} s", flush=True)

    if len(trainer.history):
        picture(trainer.history, reference, arguments.out / "learning_curve.png")
    text = write(net, characters, 600, arguments.temperature, arguments.seed)
    files.write(arguments.out / "sample.txt", text.encode())
    print(f"\n{text}\n\nwrote {path}, and learning_curve.png, history.csv and sample.txt beside it")


if __name__ == "__main__":
    main()
