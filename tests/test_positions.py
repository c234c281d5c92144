"""Positions: rotations by hand."""

from __future__ import annotations

import cmath

import numpy as np

import bpcore as bp
from bpcore import functional as f


def test_rotation_by_hand():
    """Feature pair j of token t is a complex number, turned by t · 10000^(-2 j / d)."""
    z = np.random.default_rng(0).standard_normal((2, 40, 6))
    u, B = bp.evaluate(bp.RotaryPositions(6), bp.initialize(bp.RotaryPositions(6)), z)
    for n, t, j in np.ndindex(2, 40, 3):
        turned = complex(*z[n, t, 2 * j : 2 * j + 2]) * cmath.exp(1j * t * 10000 ** (-2 * j / 6))
        np.testing.assert_allclose(u[n, t, 2 * j : 2 * j + 2], (turned.real, turned.imag), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), np.linalg.norm(z, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(B(u)[0], z, rtol=1e-12, atol=1e-14)  # the adjoint of a rotation is its inverse


def test_rotated_scores_depend_on_distances():
    """q_s · k_t is a function of s - t."""
    q, k = (np.broadcast_to(x, (9, 4)) for x in np.random.default_rng(0).standard_normal((2, 4)))
    scores = f.rotate(q, 1.0) @ f.rotate(k, 1.0).T
    for offset in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(scores, offset), np.diagonal(scores, offset)[0], rtol=1e-12)
