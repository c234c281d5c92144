"""Train an MLP or a small convolutional network on MNIST; report training and test error.

    BPCORE_DATA=path/to/data python examples/train_mnist.py --model mlp     # 784-800-800-10, dropout, no augmentation
    BPCORE_DATA=path/to/data python examples/train_mnist.py --model cnn     # images shifted by up to two pixels
    python examples/train_mnist.py --model cnn --backend cupy               # a CUDA GPU; MNIST is downloaded

The script writes to --out: a checkpoint (mnist.safetensors), the history (history.csv), and pictures of the learning curve, of
the first layer's filters and of the confusion matrix (learning_curve.png, filters.png, confusion.png).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import bpcore as bp

BATCH = 128
SAMPLE = 10_000  # training images on which the training error is measured
SHIFT = 2  # pixels


def mlp() -> bp.Module:
    return bp.Sequential(bp.Flatten(), bp.Dropout(0.2), bp.MLP([784, 800, 800, 10], dropout=0.4))


def cnn() -> bp.Module:
    def convolution(c_in: int, c_out: int, kernel: int, **options: Any) -> tuple[bp.Module, ...]:
        return bp.Conv2d(c_in, c_out, kernel, bias=False, **options), bp.BatchNorm(c_out), bp.ReLU()

    return bp.Sequential(
        *convolution(1, 24, 5, stride=2, padding=2),  # (n, 14, 14, 24)
        *convolution(24, 48, 3),  # (n, 12, 12, 48)
        bp.MaxPool2d(2),
        *convolution(48, 96, 3),  # (n, 4, 4, 96)
        bp.Flatten(),
        bp.Dropout(0.4),
        bp.Linear(4 * 4 * 96, 10),
    )


def shifted(X: Any, generator: Any) -> Any:
    """X (n, h, w, 1) with each image shifted by up to SHIFT pixels along both axes; zeros fill the rest."""
    n, h, w, _ = X.shape
    padded = np.pad(X[..., 0], ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    places = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(1, 2))  # (n, places, places, h, w)
    down, right = generator.integers(0, 2 * SHIFT + 1, (2, n))
    return places[np.arange(n), down, right][..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values, the order, dropout and the shifts")
    parser.add_argument("--epochs", type=int, default=None, help="25 for the MLP, 10 for the CNN")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=None, help="runs/mnist-mlp or runs/mnist-cnn")
    arguments = parser.parse_args()
    convolutional = arguments.model == "cnn"
    epochs = arguments.epochs or (10 if convolutional else 25)
    out = arguments.out or Path(f"runs/mnist-{arguments.model}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "mnist.safetensors"

    (X_train, y_train), (X_test, y_test) = bp.datasets.mnist()
    net = bp.Network(cnn() if convolutional else mlp(), backend=arguments.backend, seed=arguments.seed)
    print(net.summary((BATCH, 28, 28, 1)))
    trainer = bp.Trainer(
        net,
        bp.CrossEntropy(),
        bp.AdamW(lr=4e-3 if convolutional else 2e-3, weight_decay=0.02),
        schedule=bp.schedules.OneCycle(epochs * -(-len(X_train) // BATCH)),
        metrics=["accuracy"],
        callbacks=[
            bp.Progress(lines=True),
            bp.Checkpoint(path),
            bp.HistoryLog(out / "history.csv"),
            bp.LearningCurve(out / "learning_curve.png", every=5),
        ],
        seed=arguments.seed,
    )
    if arguments.resume:
        trainer.resume(path)
    started = time.perf_counter()
    history = trainer.fit(
        (X_train, y_train),
        (X_test, y_test),
        epochs=epochs,
        batch_size=BATCH,
        training_sample=SAMPLE,
        augment=shifted if convolutional else None,
    )
    print(f"trained for {time.perf_counter() - started:.0f} s")
    if trainer.interrupted:
        raise SystemExit(f"interrupted in epoch {trainer.epoch + 1}; {path} has the last saved state, continue with --resume")

    scores = np.concatenate([net.backend.to_host(net(X_test[i : i + 1000])) for i in range(0, len(X_test), 1000)])
    bp.confusion(y_test, scores.argmax(axis=1), out / "confusion.png")
    W = net.backend.to_host(net.parameters()["0.W" if convolutional else "2.0.W"])  # (5, 5, 1, 24) or (784, 800)
    bp.filters(W.reshape(5, 5, -1) if convolutional else W.reshape(28, 28, -1), out / "filters.png")
    last = history[-1]
    print(
        f"training error {1 - last['training_accuracy']:.2%} (of {SAMPLE:,} images)  test error {1 - last['test_accuracy']:.2%}"
    )
    print(f"wrote {path}, history.csv, learning_curve.png, filters.png and confusion.png beside it")


if __name__ == "__main__":
    main()
