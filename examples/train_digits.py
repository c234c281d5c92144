"""Train an MLP on the 1,797 handwritten digits of scikit-learn; report training and test error.

    python examples/train_digits.py                     # NumPy; under a minute on two cores
    python examples/train_digits.py --backend cupy      # a CUDA GPU

The script writes to --out: a checkpoint (digits.safetensors), the learning curve (learning_curve.png) and the history
(history.csv).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bpcore as bp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the initial values, the order and dropout")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "digits.safetensors"

    images, labels = load_digits(return_X_y=True)  # (1797, 64) with values 0 to 16, (1797,)
    split = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=arguments.seed)
    X_train, X_test, y_train, y_test = split

    net = bp.Network(bp.MLP([64, 256, 128, 10], dropout=0.3), backend=arguments.backend, seed=arguments.seed)
    print(net.summary((len(X_train), 64)))
    steps = arguments.epochs * -(-len(X_train) // 64)
    trainer = bp.Trainer(
        net,
        bp.CrossEntropy(),
        bp.AdamW(lr=3e-3, weight_decay=0.05),
        schedule=bp.schedules.OneCycle(steps),
        metrics=["accuracy"],
        callbacks=[
            bp.Progress(lines=True),
            bp.Checkpoint(path),
            bp.HistoryLog(arguments.out / "history.csv"),
            bp.LearningCurve(arguments.out / "learning_curve.png", every=arguments.epochs),
        ],
        seed=arguments.seed,
    )
    if arguments.resume:
        trainer.resume(path)
        if trainer.seed != arguments.seed:  # with another split, some test digits were trained on
            raise SystemExit(f"{path} was made with --seed {trainer.seed}; resume with that seed")
    history = trainer.fit((X_train, y_train), (X_test, y_test), epochs=arguments.epochs, batch_size=64)

    if trainer.interrupted:
        raise SystemExit(f"interrupted in epoch {trainer.epoch + 1}; {path} has the last saved state, continue with --resume")
    if len(history):
        last = history[-1]
        print(f"training error {1 - last['training_accuracy']:.2%}  test error {1 - last['test_accuracy']:.2%}")
        print(f"test accuracy {last['test_accuracy']:.2%} on {len(y_test)} held-out digits, backend {net.backend.name}")
        print(f"wrote {path}, {arguments.out / 'learning_curve.png'} and {arguments.out / 'history.csv'}")


if __name__ == "__main__":
    main()
