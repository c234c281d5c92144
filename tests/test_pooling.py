"""Pooling beyond the table of cases: ties."""

from __future__ import annotations

import math

import numpy as np

import bpcore as bp


def test_ties_go_to_the_first_maximum(backend):
    """By the kernel's rows, on every backend; padding is never chosen."""
    z = np.random.default_rng(0).integers(0, 2, (2, 5, 4, 3)).astype(float) - 5.0  # ties everywhere
    window = {"kernel": (3, 2), "stride": 2, "padding": (1, 1)}
    padded = np.full((2, 7, 6, 3), -math.inf)
    padded[:, 1:6, 1:5, :] = z
    u, dz = np.empty((2, 3, 3, 3)), np.zeros(padded.shape)
    v = np.random.default_rng(1).standard_normal(u.shape)
    for n, y, x, c in np.ndindex(u.shape):
        seen = padded[n, 2 * y : 2 * y + 3, 2 * x : 2 * x + 2, c]
        i, j = np.unravel_index(np.argmax(seen), seen.shape)  # NumPy's is the first
        u[n, y, x, c] = seen[i, j]
        dz[n, 2 * y + i, 2 * x + j, c] += v[n, y, x, c]
    module, theta = bp.MaxPool2d(**window), bp.initialize(bp.MaxPool2d(**window))
    placed, placed_v = backend.asarray(z), backend.asarray(v)
    with backend.guard():
        got, saved = module.forward(theta, placed, mode=bp.Mode())
        got_dz = module.backward(theta, saved, placed_v, theta)
    np.testing.assert_array_equal(backend.to_host(got), u)
    np.testing.assert_allclose(backend.to_host(got_dz), dz[:, 1:6, 1:5, :], rtol=1e-15, atol=1e-15)
