"""Batch normalisation: running statistics, and what is too few rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from runs import trainer, unchanged

import bpcore as bp


@pytest.mark.parametrize("shape", [(6, 3), (5, 4, 3), (4, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics(shape, momentum, torch):
    """Training, statistics and evaluation are PyTorch's, step after step."""
    generator = np.random.default_rng(0)
    net = bp.Network(bp.BatchNorm(3, momentum), dtype="float64")
    layer = (None, torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)[len(shape) - 1](3, 1e-5, momentum)
    layer = layer.double()
    for path, parameter in (("gamma", layer.weight), ("beta", layer.bias)):
        net.parameters()[path][...] = generator.standard_normal(3)
        parameter.data = torch.from_numpy(net.parameters()[path].copy())
    for step in range(4):
        X = 2 * generator.standard_normal(shape) + 1
        mode = bp.Mode(training=True, step=step)
        before = net.theta.copy()
        u, expected = net(X, mode=mode), layer(torch.from_numpy(X).movedim(-1, 1)).movedim(1, -1)
        np.testing.assert_allclose(u, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(net.theta, before)  # forward writes nothing
        mode.commit()
        for path, buffer in (("mean", layer.running_mean), ("variance", layer.running_var)):
            np.testing.assert_allclose(net.parameters()[path], buffer.numpy(), rtol=1e-12, err_msg=f"{path} after step {step}")
        layer.eval()
        u, z = net(X), torch.from_numpy(X).requires_grad_()
        expected = layer(z.movedim(-1, 1)).movedim(1, -1)
        np.testing.assert_allclose(u, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        v = generator.standard_normal(shape)
        dz, dtheta = bp.evaluate(net.module, net.windows, X)[1](v)
        of = torch.autograd.grad(expected, (z, layer.weight, layer.bias), torch.from_numpy(v))
        for got, grad in zip((dz, dtheta.gamma, dtheta.beta), of, strict=True):
            np.testing.assert_allclose(got, grad.numpy(), rtol=1e-11, atol=1e-12)
        layer.train()


def test_before_any_step_evaluation_passes_z_through():
    """Up to ε: the mean starts at 0, the variance at 1."""
    X = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_allclose(bp.Network(bp.BatchNorm(3), dtype="float64")(X), X / math.sqrt(1 + 1e-5), rtol=1e-14)


def test_a_batch_of_one_row_has_no_variance():
    run = trainer(bp.Sequential(bp.BatchNorm(2), bp.Linear(2, 3)))
    with (
        unchanged(run),
        pytest.raises(ValueError, match=r"0: BatchNorm expected two numbers a feature at least in training, got"),
    ):
        run.step(np.zeros((1, 2)), np.zeros(1, "int64"))
