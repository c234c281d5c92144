"""Recurrent modules: saturated gates."""

from __future__ import annotations

import numpy as np

import bpcore as bp


def test_saturated_gates_give_no_subnormals():
    """What comes back through saturated gates is zero or normal."""
    smallest = float(np.finfo("float32").smallest_normal)
    for module in (bp.LSTM(2, 3), bp.GRU(2, 3)):
        theta = bp.initialize(module)
        theta.W[...] *= 60
        z = np.random.default_rng(0).standard_normal((4, 9, 2)).astype("float32") * 3
        u, B = bp.evaluate(module, theta, z)
        dz, dtheta = B(np.full(u.shape, 1e-12, "float32"))
        for array in (u, dz, *(x for _, x in dtheta.items())):
            sizes = np.abs(array.astype("float64"))
            assert np.all((sizes == 0) | (sizes >= smallest)), module
