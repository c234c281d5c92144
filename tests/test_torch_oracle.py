"""Forward and gradients equal PyTorch autograd's, for every case and for whole networks, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, ORACLES
from conftest import BackendUnderTest
from harness import assert_close, autograd, run
from references import PyTorch

import bpcore as bp

TOLERANCE = 1e-10


@pytest.mark.parametrize("one", CASES, ids=str)
def test_equals_autograd(one, torch):
    got = run(one, BackendUnderTest("numpy", bp.get_backend("numpy")), "float64")
    assert_close(got, autograd(PyTorch(torch), one), TOLERANCE, "float64")


NETWORKS = [  # sizes, activation, its PyTorch module, normalization, loss
    ([6, 8, 3], "relu", "ReLU", None, "CrossEntropy"),
    ([6, 16, 16, 16, 4], "tanh", "Tanh", None, "CrossEntropy"),
    ([5, 7, 9, 2], "gelu", "GELU", "layer_norm", "SquaredError"),
    ([5, 12, 12, 3], "silu", "SiLU", "rms_norm", "Huber"),
    ([4, 10, 1], "elu", "ELU", None, "LogisticLoss"),
    ([4, 10, 10, 2], "softplus", "Softplus", "layer_norm", "LogisticLoss"),
]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("sizes", "activation", "name", "normalization", "loss"), NETWORKS, ids=lambda x: str(x))
def test_whole_networks(sizes, activation, name, normalization, loss, weighted, torch):
    """Network.value_and_gradient against torch.nn modules with the same weights."""
    generator, n = np.random.default_rng(len(sizes)), 12
    net = bp.Network(bp.MLP(sizes, activation, normalization=normalization), backend="numpy", dtype="float64", seed=4)
    net.theta[...] += 0.1 * generator.standard_normal(net.n_parameters)
    copied, paths = [], []
    for i, module in enumerate(net.module.modules):
        if isinstance(module, bp.Linear):
            copied.append(torch.nn.Linear(module.n_in, module.n_out, dtype=torch.float64))
            paths += [(f"{i}.W", copied[-1].weight), (f"{i}.b", copied[-1].bias)]
        elif isinstance(module, bp.LayerNorm):
            copied.append(torch.nn.LayerNorm(module.n, dtype=torch.float64))
            paths += [(f"{i}.gamma", copied[-1].weight), (f"{i}.beta", copied[-1].bias)]
        elif isinstance(module, bp.RMSNorm):
            copied.append(torch.nn.RMSNorm(module.n, eps=1e-6, dtype=torch.float64))
            paths += [(f"{i}.gamma", copied[-1].weight)]
        else:
            copied.append(getattr(torch.nn, name)())
    with torch.no_grad():
        for path, parameter in paths:
            window = torch.from_numpy(net.parameters()[path].copy())
            parameter.copy_(window.T if path.endswith("W") else window)
    X = generator.standard_normal((n, sizes[0]))
    y = {
        "CrossEntropy": generator.integers(0, sizes[-1], n),
        "LogisticLoss": generator.integers(0, 2, (n, sizes[-1])),
    }.get(loss, generator.standard_normal((n, sizes[-1])))
    weights = generator.uniform(0.1, 2, n) if weighted else None

    out = torch.nn.Sequential(*copied)(torch.from_numpy(X))
    labels = torch.from_numpy(y), torch.from_numpy(weights) if weighted else None
    J = ORACLES[loss](PyTorch(torch), getattr(bp, loss)(), {}, out, *labels)
    J.backward()

    np.testing.assert_allclose(net(X), out.detach().numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    J_net, gradient = net.value_and_gradient(getattr(bp, loss)(), X, y, weights)
    np.testing.assert_allclose(J_net, J.item(), rtol=TOLERANCE)
    for path, parameter in paths:
        expected = (parameter.grad.T if path.endswith("W") else parameter.grad).numpy()
        window = net.layout.windows(gradient)[path]
        np.testing.assert_allclose(window, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=path)


FAR = np.asarray([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, 1e4], [0.0, 1e-4, -1e4]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("module", "y"),
    [
        (bp.CrossEntropy(), np.asarray([1, 2, 0, 2])),
        (bp.CrossEntropy(0.1), np.asarray([1, 2, 0, 2])),
        (bp.CrossEntropy(), np.full((4, 3), 1 / 3)),
        (bp.LogisticLoss(), np.asarray([[0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1]])),
    ],
    ids=["indices", "smoothing", "rows", "logistic"],
)
def test_logits_of_ten_thousand(module, y, dtype, torch):
    """Finite, and equal to PyTorch's, where a softmax would overflow."""
    t, y = FAR.astype(dtype), y.astype(dtype) if y.dtype.kind == "f" else y
    u, B = bp.evaluate(module, bp.initialize(module), t, y)
    dt = B(np.ones((), dtype))[0][0]
    leaf = torch.from_numpy(t).requires_grad_()
    J = ORACLES[type(module).__name__](PyTorch(torch), module, {}, leaf, torch.from_numpy(y))
    J.backward()
    assert np.isfinite(u)
    assert np.all(np.isfinite(dt))
    np.testing.assert_allclose(u, J.item(), rtol=1e-6)
    np.testing.assert_allclose(dt, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)
