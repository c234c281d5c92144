"""Algorithm 3 of CS229's section 7.4.4, line by line, with bpcore's functions: back-propagation for an r-layer MLP.

It is written twice: in columns as in the notes, W[k] z + b[k] for one example, and in rows, Z = X W + b for all examples at once
(section 7.5). The gradients of both equal those of bpcore's Network, entry by entry.

    python examples/algorithm_3.py
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import bpcore as bp
from bpcore.functional.activations import relu, relu_backward
from bpcore.functional.linear import linear, linear_backward
from bpcore.functional.losses import logistic, logistic_backward


def algorithm_3(X: Any, y: Any, W: list[Any], b: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """J, dJ/dW and dJ/db in rows: X (n, d), y (n, 1), W[k] (m, m'), b[k] (m',).

    (7.84)
    """
    r = len(W)
    # 1: Forward pass. Store every a[k], z[k], and J.        (7.72)
    a, z = [X], []
    for k in range(r):
        z.append(linear(a[k], W[k], b[k]))
        a.append(relu(z[k]))
    J = logistic(z[r - 1], y, None)
    # 2: Backward pass. dJ/dz[r] = B[ℓ_logistic, z[r]](1).        (7.76)
    dz = logistic_backward(z[r - 1], y, None, 1.0)
    dW = [W_k * 0 for W_k in W]
    db = [b_k * 0 for b_k in b]
    # 3: for k = r - 1 to 0
    for k in range(r - 1, -1, -1):
        # 4: dJ/dW[k+1] = B[MM, W[k+1]](dJ/dz[k+1]), dJ/db[k+1] = B[MM, b[k+1]](dJ/dz[k+1])        (7.77), (7.78)
        # 5: and when k >= 1, dJ/da[k] = B[MM, a[k]](dJ/dz[k+1])        (7.79)
        da = linear_backward(a[k], W[k], dz, dW[k], db[k], k >= 1)
        if da is not None:
            dz = relu_backward(a[k], da)  # dJ/dz[k] = σ'(z[k]) ⊙ dJ/da[k]        (7.80)
    return J, dW, db


def algorithm_3_columns(x: Any, y: float, W: list[Any], b: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """The same for one example, as in the notes: x (d,), W[k] (m', m), b[k] (m',)."""
    r = len(W)
    a, z = [x], []
    for k in range(r):
        z.append(W[k] @ a[k] + b[k])
        a.append(np.maximum(z[k], 0))
    t = z[r - 1][0]
    J = np.log1p(np.exp(-abs(t))) + max(t, 0) - y * t
    dz = np.array([1 / (1 + np.exp(-t)) - y])  # (7.76)
    dW: list[Any] = [None] * r
    db: list[Any] = [None] * r
    for k in range(r - 1, -1, -1):
        dW[k] = np.outer(dz, a[k])  # v zᵀ        (7.77)
        db[k] = dz  # v        (7.78)
        if k >= 1:
            da = W[k].T @ dz  # (7.79)
            dz = (z[k - 1] > 0) * da  # (7.80)
    return J, dW, db


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    sizes, n = (5, 8, 6, 1), 40
    net = bp.Network(bp.MLP(sizes), backend=arguments.backend, dtype="float64", seed=arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    X = generator.standard_normal((n, sizes[0]))
    y = (X[:, :1] * X[:, 1:2] > 0).astype("float64")

    J, gradient = net.value_and_gradient(bp.LogisticLoss(), X, y)
    of_network = net.layout.windows(gradient)
    names = [f"{2 * k}" for k in range(len(sizes) - 1)]  # the Linear modules of the MLP

    to_host = net.backend.to_host
    W, b = ([net.windows[name][letter] for name in names] for letter in "Wb")
    J_rows, dW, db = algorithm_3(net.place(X), net.place(y), W, b)

    W_columns = [to_host(W_k).T for W_k in W]  # transposed: the notes' convention
    b_columns = [to_host(b_k) for b_k in b]
    J_of, dW_of, db_of = zip(*(algorithm_3_columns(X[i], y[i, 0], W_columns, b_columns) for i in range(n)), strict=True)
    J_columns = np.mean(J_of)

    print(f"J: Network {float(to_host(J)):.15f}, rows {float(to_host(J_rows)):.15f}, columns {J_columns:.15f}")
    print(f"{'gradient':10} {'shape':>9} {'rows - Network':>16} {'columns - Network':>18}")
    worst = 0.0
    for k, name in enumerate(names):
        dW_columns = np.mean([dW_i[k] for dW_i in dW_of], axis=0).T
        db_columns = np.mean([db_i[k] for db_i in db_of], axis=0)
        for letter, rows, columns in (("W", dW[k], dW_columns), ("b", db[k], db_columns)):
            exact = to_host(of_network[name][letter])
            apart = [float(np.max(np.abs(x - exact))) for x in (to_host(rows), columns)]
            worst = max(worst, *apart)
            print(f"{letter}[{k + 1}]       {exact.shape!s:>9} {apart[0]:16.1e} {apart[1]:18.1e}")
    if worst > 1e-12:
        raise SystemExit(f"the gradients differ by {worst:.1e}")
    print(f"all gradients agree: largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
