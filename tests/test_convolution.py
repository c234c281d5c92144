"""Convolutions beyond the table of cases."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp


@pytest.mark.filterwarnings("ignore:Using padding=:UserWarning")  # of its own memory
def test_same_is_what_pytorch_calls_same(torch):
    """Where PyTorch has it, that is at stride 1."""
    z, W = np.random.default_rng(0).standard_normal((2, 5, 6, 3)), np.random.default_rng(1).standard_normal((4, 3, 3, 2))
    theta = bp.initialize(bp.Conv2d(3, 2, (4, 3), padding="same", dilation=(1, 2), bias=False), dtype="float64")
    theta.W[...] = W
    u, _ = bp.evaluate(bp.Conv2d(3, 2, (4, 3), padding="same", dilation=(1, 2), bias=False), theta, z)
    given = torch.from_numpy(z).permute(0, 3, 1, 2), torch.from_numpy(W).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(*given, padding="same", dilation=(1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(u, expected.numpy(), rtol=1e-12, atol=1e-12)
