"""Write a module of your own, check it against differences, and train it.

Maxout (Goodfellow et al., 2013): u = max(z W₁ + b₁, z W₂ + b₂), the larger of two affine pieces, entry by entry.

    python examples/custom_module.py
"""

from __future__ import annotations

import argparse

from sklearn.datasets import make_moons

import bpcore as bp
from bpcore.expect import expect_features
from bpcore.functional.linear import linear, linear_backward
from bpcore.initializers import HeNormal, Zeros

Saved = tuple[bp.Array, bp.Array]  # z, and where the first piece is the larger


class Maxout(bp.Module):
    """u = max(z W₁ + b₁, z W₂ + b₂): z (..., n_in), u (..., n_out)."""

    rows_independent = True

    def __init__(self, n_in: int, n_out: int):
        self.n_in, self.n_out = n_in, n_out
        self.parameters = {
            "W1": bp.Parameter((n_in, n_out), HeNormal()),
            "b1": bp.Parameter((n_out,), Zeros(), decay=False),
            "W2": bp.Parameter((n_in, n_out), HeNormal()),
            "b2": bp.Parameter((n_out,), Zeros(), decay=False),
        }

    def forward(self, theta: bp.Windows, z: bp.Array, mode: bp.Mode) -> tuple[bp.Array, Saved]:
        expect_features(self, theta, z, self.n_in, theta.W1, "n_in")
        first: bp.Array = linear(z, theta.W1, theta.b1)
        second: bp.Array = linear(z, theta.W2, theta.b2)
        return bp.namespace(z).maximum(first, second), (z, first > second)

    def backward(
        self, theta: bp.Windows, saved: Saved, v: bp.Array, gradient: bp.Windows, need_dz: bool = True
    ) -> bp.Array | None:
        z, larger = saved
        larger = bp.namespace(v).astype(larger, v.dtype)
        # each piece gets v where it is the larger; at a tie the second piece gets it
        dz1 = linear_backward(z, theta.W1, v * larger, gradient.W1, gradient.b1, need_dz)
        dz2 = linear_backward(z, theta.W2, v * (1 - larger), gradient.W2, gradient.b2, need_dz)
        return None if dz1 is None or dz2 is None else dz1 + dz2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    bp.check_module(Maxout(3, 4), (5, 3), seed=arguments.seed)
    print("check_module: Maxout keeps the contract")
    print(bp.cost(Maxout(3, 4), (5, 3)))

    X, y = make_moons(1200, noise=0.2, random_state=arguments.seed)
    net = bp.Network(
        bp.Sequential(Maxout(2, 16), Maxout(16, 16), bp.Linear(16, 1), bp.Reshape(())),
        backend=arguments.backend,
        seed=arguments.seed,
    )
    trainer = bp.Trainer(net, bp.LogisticLoss(), bp.Adam(lr=1e-2), metrics=["accuracy"], seed=arguments.seed)
    history = trainer.fit((X[:900], y[:900]), (X[900:], y[900:]), epochs=20)
    print(history)
    print(f"two moons: test accuracy {history[-1]['test_accuracy']:.1%} on 300 held-out points")


if __name__ == "__main__":
    main()
