"""Forward and gradients equal PyTorch autograd's, for every case and for whole networks, in float64.

Each row says what a case computes in PyTorch's words: `oracle(o, theta, *z)`, θ's windows by path.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import CASES, MODE, Result, assert_close, inputs_of, run, theta_of, upstream
from conftest import BackendUnderTest
from references import REFERENCES, attention, reference, transformer_block

import bpcore as bp
from bpcore.layout import Layout
from bpcore.philox import philox_mask

TOLERANCE = 1e-10


def oracle(torch: Any) -> SimpleNamespace:
    """PyTorch, and what it lacks: weighted means, and bpcore's dropout masks (uses count modules in the walk's order)."""

    def mean(ell, weights=None):
        return torch.mean(ell) if weights is None else torch.sum(weights * ell) / torch.sum(weights)

    def dropout(z, p, use):
        keep = philox_mask(tuple(z.shape), p, (MODE["seed"], MODE["step"], MODE["micro"], use))
        return z * torch.from_numpy(keep) / (1 - p)

    def linear(theta, path, z):
        return z @ theta[path + "W"] + theta[path + "b"]

    def cross_entropy(t, y, weights=None, smoothing=0.0):
        k, flat = t.shape[-1], y.reshape(-1, t.shape[-1]) if y.is_floating_point() else y.reshape(-1).long()
        ell = torch.nn.functional.cross_entropy(t.reshape(-1, k), flat, reduction="none", label_smoothing=smoothing)
        return mean(ell.reshape(t.shape[:-1]), weights)

    def logistic(t, y, weights=None):
        ell = torch.nn.functional.binary_cross_entropy_with_logits(t, y.to(t.dtype), reduction="none")
        return mean(ell if t.ndim == 1 else ell.sum(-1), weights)

    def fan_out(theta, path, x):
        h = linear(theta, path + "h.", x)
        return h * torch.tanh(h) + x

    def nested(theta, z):
        z = z.reshape(-1, 2, 4)
        z = z + linear(theta, "1.0.body.1.", rms_norm(z, theta["1.0.body.0.gamma"], 1e-6))
        z = fan_out(theta, "2.", torch.nn.functional.silu(z)).reshape(z.shape[0], -1)
        return linear(theta, "5.", dropout(z, 0.3, 14))

    def rms_norm(z, gamma, eps):
        return torch.nn.functional.rms_norm(z, z.shape[-1:], gamma, eps)

    def layer_norm(z, theta, path, eps=1e-5):
        return torch.nn.functional.layer_norm(z, z.shape[-1:], theta[path + "gamma"], theta[path + "beta"], eps)

    def mlp(theta, z, layers, sigma, between=lambda z, i: z):
        for i in layers[:-1]:
            z = sigma(between(linear(theta, f"{i}.", z), i))
        return linear(theta, f"{layers[-1]}.", z)

    local = {name: value for name, value in locals().items() if name != "torch"}
    return SimpleNamespace(torch=torch, F=torch.nn.functional, **local)


def gelu_network(o, theta, z):
    """Linear, LayerNorm, GELU, Dropout, twice; module i is use i + 1, the MLP itself being use 0."""
    for i in (0, 4):
        z = o.F.gelu(o.layer_norm(o.linear(theta, f"{i}.", z), theta, f"{i + 1}."))
        z = o.dropout(z, 0.2, i + 4)
    return o.linear(theta, "8.", z)


def two_outputs(o, theta, x):
    h = o.linear(theta, "h.", x)
    return h, o.torch.exp(h), x


ORACLE = {
    "Linear": lambda o, theta, z: o.F.linear(z, theta["W"].T, theta["b"]),
    "Linear, no bias, leading axes": lambda o, theta, z: o.F.linear(z, theta["W"].T),
    "Linear, leading axes": lambda o, theta, z: o.F.linear(z, theta["W"].T, theta["b"]),
    "Linear, one example without a batch axis": lambda o, theta, z: o.F.linear(z, theta["W"].T, theta["b"]),
    "Linear, sizes of one": lambda o, theta, z: o.F.linear(z, theta["W"].T, theta["b"]),
    "Weight": lambda o, theta: theta["W"] * 1,
    "ReLU": lambda o, theta, z: o.F.relu(z),
    "ReLU, a vector": lambda o, theta, z: o.F.relu(z),
    "LeakyReLU": lambda o, theta, z: o.F.leaky_relu(z),
    "LeakyReLU, slope 0.3": lambda o, theta, z: o.F.leaky_relu(z, 0.3),
    "ELU": lambda o, theta, z: o.F.elu(z),
    "ELU, alpha 1.7": lambda o, theta, z: o.F.elu(z, 1.7),
    "GELU": lambda o, theta, z: o.F.gelu(z),
    "GELU, far from zero": lambda o, theta, z: o.F.gelu(z),
    "GELU, tanh": lambda o, theta, z: o.F.gelu(z, approximate="tanh"),
    "SiLU": lambda o, theta, z: o.F.silu(z),
    "Sigmoid": lambda o, theta, z: o.torch.sigmoid(z),
    "Sigmoid, far from zero": lambda o, theta, z: o.torch.sigmoid(z),
    "Tanh": lambda o, theta, z: o.torch.tanh(z),
    "Softplus": lambda o, theta, z: o.F.softplus(z),
    "Identity": lambda o, theta, z: z * 1,
    "Softmax": lambda o, theta, z: o.torch.softmax(z, -1),
    "Softmax, axis 1": lambda o, theta, z: o.torch.softmax(z, 1),
    "Softmax, one class": lambda o, theta, z: o.torch.softmax(z, -1),
    "LogSoftmax": lambda o, theta, z: o.torch.log_softmax(z, -1),
    "LogSoftmax, axis 0": lambda o, theta, z: o.torch.log_softmax(z, 0),
    "Add": lambda o, theta, a, b: a + b,
    "Add, a row": lambda o, theta, a, b: a + b,
    "Add, both broadcast": lambda o, theta, a, b: a + b,
    "Add, a scalar": lambda o, theta, a, b: a + b,
    "Subtract": lambda o, theta, a, b: a - b,
    "Subtract, broadcast": lambda o, theta, a, b: a - b,
    "Multiply": lambda o, theta, a, b: a * b,
    "Multiply, both broadcast": lambda o, theta, a, b: a * b,
    "Divide": lambda o, theta, a, b: a / b,
    "Divide, broadcast": lambda o, theta, a, b: a / b,
    "MatMul": lambda o, theta, a, b: a @ b,
    "MatMul, leading axes against a matrix": lambda o, theta, a, b: a @ b,
    "MatMul, both broadcast": lambda o, theta, a, b: a @ b,
    "Exp": lambda o, theta, z: o.torch.exp(z),
    "Log": lambda o, theta, z: o.torch.log(z),
    "Power, 3": lambda o, theta, z: z**3,
    "Power, -1/2": lambda o, theta, z: z**-0.5,
    "Power, 0": lambda o, theta, z: z**0,
    "Power, 0, of zeros": lambda o, theta, z: z**0,
    "Power, two inputs": lambda o, theta, a, b: a**b,
    "Power, two inputs, broadcast": lambda o, theta, a, b: a**b,
    "Sum": lambda o, theta, z: z.sum(),
    "Sum, axis 1": lambda o, theta, z: z.sum(1),
    "Sum, two axes kept": lambda o, theta, z: z.sum((0, -1), keepdim=True),
    "Mean": lambda o, theta, z: z.mean(),
    "Mean, two axes": lambda o, theta, z: z.mean((0, -1)),
    "Mean, axis kept": lambda o, theta, z: z.mean(-1, keepdim=True),
    "Concatenate": lambda o, theta, *z: o.torch.cat(z, -1),
    "Concatenate, axis 0": lambda o, theta, *z: o.torch.cat(z, 0),
    "Concatenate, one input": lambda o, theta, z: z * 1,
    "Reshape": lambda o, theta, z: z.reshape(4, 2, 3),
    "Reshape, a size left open": lambda o, theta, z: z.reshape(4, 6, 2),
    "Flatten": lambda o, theta, z: o.torch.flatten(z, 1),
    "LayerNorm": lambda o, theta, z: o.layer_norm(z, theta, ""),
    "LayerNorm, leading axes, eps": lambda o, theta, z: o.layer_norm(z, theta, "", 0.1),
    "RMSNorm": lambda o, theta, z: o.rms_norm(z, theta["gamma"], 1e-6),
    "RMSNorm, leading axes, eps": lambda o, theta, z: o.rms_norm(z, theta["gamma"], 0.1),
    "Dropout": lambda o, theta, z: o.dropout(z, 0.4, 0),
    "Dropout, none": lambda o, theta, z: z * 1,
    "Sequential": lambda o, theta, z: o.linear(theta, "2.", o.torch.tanh(o.linear(theta, "0.", z))),
    "Sequential, empty": lambda o, theta, z: z * 1,
    "Sequential, one module twice": lambda o, theta, z: o.linear(theta, "0.", o.torch.tanh(o.linear(theta, "0.", z))),
    "Sequential, nested": lambda o, theta, z: o.nested(theta, z),
    "Residual": lambda o, theta, z: z + o.linear(theta, "body.", z),
    "Circuit, fan-out": lambda o, theta, z: o.fan_out(theta, "", z),
    "Circuit, two inputs": lambda o, theta, a, b: o.linear(theta, "ha.", a) * (b @ theta["hb.W"]),
    "Circuit, several outputs": two_outputs,
    "Circuit, operands": lambda o, theta, z: z @ theta["W.W"] + theta["b.W"],
    "Circuit, a loss in it": lambda o, theta, x, y: o.cross_entropy(o.linear(theta, "t.", x), y),
    "Tied, one parameter in two modules": lambda o, theta, z: z @ theta["encode.W"] @ theta["encode.W"].T,
    "MLP": lambda o, theta, z: o.mlp(theta, z, (0, 2, 4), o.F.relu),
    "MLP, one layer, batch 1": lambda o, theta, z: o.linear(theta, "0.", z),
    "MLP, gelu, LayerNorm, dropout": gelu_network,
    "MLP, tanh, RMSNorm, leading axes": lambda o, theta, z: o.mlp(
        theta, z, (0, 3), o.torch.tanh, lambda z, i: o.rms_norm(z, theta["1.gamma"], 1e-6)
    ),
    "MLP, a module for activation": lambda o, theta, z: o.mlp(theta, z, (0, 2, 4), lambda z: o.F.leaky_relu(z, 0.2)),
    "SquaredError": lambda o, theta, z, y: 0.5 * o.mean(((z - y) ** 2).sum(-1)),
    "SquaredError, one output": lambda o, theta, z, y: 0.5 * o.F.mse_loss(z, y),
    "SquaredError, leading axes, weights": lambda o, theta, z, y, w: 0.5 * o.mean(((z - y) ** 2).sum(-1), w),
    "Huber": lambda o, theta, z, y: o.mean(o.F.huber_loss(z, y, reduction="none").sum(-1)),
    "Huber, delta, weights": lambda o, theta, z, y, w: o.mean(o.F.huber_loss(z, y, reduction="none", delta=0.3).sum(-1), w),
    "LogisticLoss": lambda o, theta, t, y: o.logistic(t, y),
    "LogisticLoss, probabilities": lambda o, theta, t, y: o.logistic(t, y),
    "LogisticLoss, weights": lambda o, theta, t, y, w: o.logistic(t, y, w),
    "CrossEntropy": lambda o, theta, t, y: o.cross_entropy(t, y),
    "CrossEntropy, one example": lambda o, theta, t, y: o.cross_entropy(t, y),
    "CrossEntropy, more classes than uint8 counts": lambda o, theta, t, y: o.cross_entropy(t, y),
    "CrossEntropy, leading axes, weights": lambda o, theta, t, y, w: o.cross_entropy(t, y, w),
    "CrossEntropy, rows": lambda o, theta, t, y: o.cross_entropy(t, y),
    "CrossEntropy, smoothing": lambda o, theta, t, y: o.cross_entropy(t, y, smoothing=0.1),
    "CrossEntropy, rows, smoothing, weights": lambda o, theta, t, y, w: o.cross_entropy(t, y, w, 0.2),
}


def recomputed(o, theta, z, keep):
    """The body of Recompute is use 1."""
    return transformer_block(o.torch, bp.TransformerBlock(4, 2, dropout=0.2), theta, "body.", z, keep, 1)


def masked_stack(o, theta, ids, mask):
    """The blocks are uses 4 and 17."""
    z = theta["0.W"][ids] + theta["1.W"]
    z = transformer_block(o.torch, bp.TransformerBlock(4, 2, dropout=0.2), theta, "2.0.", z, mask, 4)
    z = o.layer_norm(z, theta, "2.1.")
    z = transformer_block(o.torch, bp.TransformerBlock(4, 2, True), theta, "2.2.body.", z, mask, 17)
    return o.F.relu(o.linear(theta, "3.", z))


def recomputed_stack(o, theta, z, mask):
    """The first block is use 2."""
    z = transformer_block(o.torch, bp.TransformerBlock(4, 2, dropout=0.2), theta, "body.0.", z, mask, 2)
    z = o.rms_norm(z, theta["body.1.gamma"], 1e-6)
    return transformer_block(o.torch, bp.TransformerBlock(4, 2), theta, "body.2.", z, mask)


def residual_attention(o, theta, z, mask):
    h = o.layer_norm(z, theta, "body.0.")
    return z + attention(o.torch, bp.MultiHeadAttention(4, 2), theta, "body.1.", h, mask)


def side_by_side(o, theta, z):
    first = o.linear(theta, "a.2.", o.F.relu(o.linear(theta, "a.0.", z)))
    return first + o.torch.tanh(o.linear(theta, "b.0.", z))


ORACLE |= {
    "Sequential, two in a container whose saved values are a tuple": side_by_side,
    "Sequential, ids and a mask": masked_stack,
    "Residual, attention with a mask": residual_attention,
    "Recompute, a mask in a stack": recomputed_stack,
    "Unembed, sharing an embedding": lambda o, theta, ids: o.torch.tanh(theta["0.W"][ids]) @ theta["0.W"].T,
    "Recompute": lambda o, theta, z: o.linear(
        theta,
        "body.4.",
        o.dropout(o.F.gelu(o.layer_norm(o.linear(theta, "body.0.", z), theta, "body.1.")), 0.3, 5),
    ),
    "Recompute, buffers": lambda o, theta, z: o.F.batch_norm(z, None, None, theta["body.gamma"], theta["body.beta"], True),
    "Recompute, two inputs": recomputed,
}
BY_MODULE = {one.id for one in CASES if type(one.make()) in REFERENCES}  # said once for all configurations


def autograd(torch: Any, one: Any) -> Result:
    """What PyTorch says of the case: the same θ, inputs and v."""
    layout, host = Layout(one.make()), inputs_of(one)
    vector = torch.from_numpy(theta_of(one, layout)).requires_grad_()
    theta = {use.path: vector[use.start : use.start + use.size].reshape(use.parameter.shape) for use in layout.homes}
    z = [torch.from_numpy(x.copy()) for x in host]
    differentiable = [x.requires_grad_() for i, x in enumerate(z) if i not in one.without_gradient]
    module = one.make()
    u = reference(torch, module, theta, *z) if type(module) in REFERENCES else ORACLE[one.id](oracle(torch), theta, *z)
    outputs = u if isinstance(u, tuple) else (u,)
    v = [torch.from_numpy(x) for x in upstream(one, [tuple(x.shape) for x in outputs])]
    found = iter(torch.autograd.grad(outputs, [vector, *differentiable], v, allow_unused=True, materialize_grads=True))
    gradient = next(found).numpy()[: layout.trained]
    return Result(
        [x.detach().numpy() for x in outputs],
        [None if i in one.without_gradient else next(found).numpy() for i in range(len(z))],
        {
            use.path: gradient[use.start : use.start + use.size].reshape(use.parameter.shape)
            for use in layout.homes
            if use.parameter.trained
        },
    )


def test_every_case_has_an_oracle():
    assert ORACLE.keys() | BY_MODULE == {one.id for one in CASES}
    assert not ORACLE.keys() & BY_MODULE


@pytest.mark.parametrize("one", CASES, ids=str)
def test_equals_autograd(one, torch):
    got = run(one, BackendUnderTest("numpy", bp.get_backend("numpy")), "float64")
    assert_close(got, autograd(torch, one), TOLERANCE, "float64")


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

    o = oracle(torch)
    J_of = {
        "CrossEntropy": o.cross_entropy,
        "LogisticLoss": o.logistic,
        "SquaredError": lambda z, y, w: 0.5 * o.mean(((z - y) ** 2).sum(-1), w),
        "Huber": lambda z, y, w: o.mean(o.F.huber_loss(z, y, reduction="none").sum(-1), w),
    }[loss]
    out = torch.nn.Sequential(*copied)(torch.from_numpy(X))
    J = J_of(out, torch.from_numpy(y), torch.from_numpy(weights) if weighted else None)
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
    ("module", "name", "y"),
    [
        (bp.CrossEntropy(), "cross_entropy", np.asarray([1, 2, 0, 2])),
        (bp.CrossEntropy(0.1), "smoothed", np.asarray([1, 2, 0, 2])),
        (bp.CrossEntropy(), "cross_entropy", np.full((4, 3), 1 / 3)),
        (bp.LogisticLoss(), "logistic", np.asarray([[0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1]])),
    ],
    ids=["indices", "smoothing", "rows", "logistic"],
)
def test_logits_of_ten_thousand(module, name, y, dtype, torch):
    """Finite, and equal to PyTorch's, where a softmax would overflow."""
    o, t, y = oracle(torch), FAR.astype(dtype), y.astype(dtype) if y.dtype.kind == "f" else y
    u, B = bp.evaluate(module, bp.initialize(module), t, y)
    dt = B(np.ones((), dtype))[0][0]
    leaf = torch.from_numpy(t).requires_grad_()
    smoothed = lambda t, y: o.cross_entropy(t, y, smoothing=0.1)  # noqa: E731
    J = (smoothed if name == "smoothed" else getattr(o, name))(leaf, torch.from_numpy(y))
    J.backward()
    assert np.isfinite(u)
    assert np.all(np.isfinite(dt))
    np.testing.assert_allclose(u, J.item(), rtol=1e-6)
    np.testing.assert_allclose(dt, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)
