"""Regression: compare an MLP with a linear model by their test RMSE.

Data: California housing (20,640 block groups; Pace and Barry, 1997) if the folder that the environment variable
BPCORE_DATA names has california-housing/cal_housing.data; else the 442 diabetes patients of scikit-learn.

    python examples/train_regression.py
    BPCORE_DATA=path/to/data python examples/train_regression.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

import bpcore as bp


def load() -> tuple[str, str, Any, Any]:
    """(name of the data, unit of the labels, X, y)."""
    path = Path(os.environ.get("BPCORE_DATA", "")) / "california-housing" / "cal_housing.data"
    if not path.is_file():
        X, y = load_diabetes(return_X_y=True, scaled=False)
        return "diabetes", "points of disease progression", X, y
    table = np.loadtxt(path, delimiter=",")
    if table.shape != (20640, 9) or not np.isfinite(table).all():
        raise SystemExit(f"{path} has shape {table.shape}, expected 20,640 rows of 9 numbers; fetch it again")
    X = table[:, :8].copy()
    X[:, 3:6] /= table[:, 6:7]  # rooms, bedrooms and people, per household
    X[:, 2:7] = np.log(X[:, 2:7])  # long-tailed
    return "California housing", "dollars", X, table[:, 8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/regression"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    name, unit, X, y = load()
    split = train_test_split(X, y, test_size=0.25, random_state=arguments.seed)
    X_train, X_test, y_train, y_test = (np.asarray(part) for part in split)

    linear = LinearRegression().fit(X_train, y_train)
    rmse_linear = float(np.sqrt(np.mean((linear.predict(X_test) - y_test) ** 2)))

    mean, scale = X_train.mean(axis=0), X_train.std(axis=0)
    y_mean, y_scale = y_train.mean(), y_train.std()

    def standardised(X: Any, y: Any) -> tuple[Any, Any]:
        return (X - mean) / scale, ((y - y_mean) / y_scale)[:, None]

    few = len(X_train) < 1000
    sizes = [X.shape[1], 64, 1] if few else [X.shape[1], 128, 128, 1]
    net = bp.Network(bp.MLP(sizes), arguments.backend, seed=arguments.seed)
    trainer = bp.Trainer(
        net,
        bp.SquaredError(),
        bp.AdamW(lr=3e-3, weight_decay=3.0 if few else 0.01),
        schedule=bp.schedules.Cosine(arguments.epochs * -(-len(X_train) // 64)),
        metrics=["rmse", "r2"],
        callbacks=[
            bp.Progress(lines=True),
            bp.Checkpoint(arguments.out / "regression.safetensors"),
            bp.LearningCurve(arguments.out / "learning_curve.png", every=arguments.epochs),
        ],
        seed=arguments.seed,
    )
    train, test = standardised(X_train, y_train), standardised(X_test, y_test)
    last = trainer.fit(train, test, epochs=arguments.epochs, batch_size=64)[-1]

    rmse = last["test_rmse"] * y_scale
    print(f"{name}: {len(X_train)} rows to train, {len(X_test)} to test")
    print(f"test RMSE {rmse:,.1f} {unit}, R² {last['test_r2']:.3f}")
    print(f"linear model {rmse_linear:,.1f}; ratio {rmse / rmse_linear:.3f}")


if __name__ == "__main__":
    main()
