"""Train with scipy.optimize.minimize, by L-BFGS on the whole training set. It needs no adapter, since θ is one vector.

python examples/lbfgs.py
"""

from __future__ import annotations

import argparse
from typing import Any

from scipy.optimize import minimize
from sklearn.datasets import load_digits

import bpcore as bp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default=None, help="numpy, cupy, torch, array_api_strict, auto (default: numpy)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    X, y = images[:1300] / 16, labels[:1300]
    net = bp.Network(bp.MLP([64, 32, 10], "tanh"), backend=arguments.backend, dtype="float64", seed=arguments.seed)
    loss = bp.CrossEntropy()
    decay = 1e-3
    to_host = net.backend.to_host

    def objective(theta: Any) -> Any:
        net.theta[...] = net.backend.asarray(theta)
        J, gradient = net.value_and_gradient(loss, X, y)
        return float(to_host(J)) + 0.5 * decay * theta @ theta, to_host(gradient) + decay * theta

    result = minimize(objective, to_host(net.theta).copy(), jac=True, method="L-BFGS-B", options={"maxiter": 200})

    net.theta[...] = net.backend.asarray(result.x)
    trainer = bp.Trainer(net, loss, bp.SGD(), metrics=["accuracy"])
    print(f"L-BFGS: {result.nit} iterations, {result.nfev} evaluations, objective {result.fun:.5f}")
    for name, data in (("training", (X, y)), ("test", (images[1300:] / 16, labels[1300:]))):
        figures = trainer.evaluate(data)
        print(f"{name} loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.2%}")


if __name__ == "__main__":
    main()
