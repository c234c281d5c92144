"""Normalisation of each feature over a batch."""

from __future__ import annotations

from bpcore.array import Array, is_half, namespace
from bpcore.functional.linear import rows
from bpcore.functional.numerics import sum_over
from bpcore.primitive import primitive

__all__ = ["batch_norm", "batch_norm_backward", "batch_statistics"]


@primitive(float32=None)
def batch_statistics(z: Array) -> tuple[Array, Array]:
    """For each feature (last axis of z), μ and the mean of (z - μ)² over all other axes. float32 if z is float16 or bfloat16.

    In float32 (z - μ)² is finite for |z - μ| below 1.8e19.
    """
    xp, flat = namespace(z), rows(z)
    flat = xp.astype(flat, xp.float32) if is_half(z) else flat
    first = flat[0, ...]
    centred = flat - first  # the mean of equal numbers is then exact
    mean = sum_over(centred, 0) / flat.shape[0]
    centred = centred - mean
    rest = sum_over(centred, 0) / flat.shape[0]  # rounding error of a mean far from the first row
    return first + (mean + rest), sum_over(centred * centred, 0) / flat.shape[0]


@primitive(float32=True)
def batch_norm(z: Array, mean: Array, variance: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """γ ⊙ (z - μ) / √(s² + ε) + β. z (..., c); μ, s², γ and β (c,).

    Ioffe and Szegedy, 2015
    """
    return (z - mean) * (gamma / namespace(z).sqrt(variance + eps)) + beta


@primitive(float32=True, writes=("dgamma", "dbeta"))
def batch_norm_backward(
    z: Array,
    mean: Array,
    variance: Array,
    gamma: Array,
    v: Array,
    eps: float,
    of_batch: bool,
    dgamma: Array,
    dbeta: Array,
    need_dz: bool,
) -> Array | None:
    """B[BN, ·](v). of_batch: μ and s² were computed from z, so the gradient passes through them; else they are constants.

    Writes dgamma = Σ v x and dbeta = Σ v with x = (z - μ) / √(s² + ε). Returns dz, or None unless need_dz.
    """
    xp = namespace(z)
    scale = 1 / xp.sqrt(variance + eps)
    x, v_rows = rows((z - mean) * scale), rows(v)
    vx, v_sum = sum_over(v_rows * x, 0), sum_over(v_rows, 0)
    dgamma[...], dbeta[...] = vx, v_sum
    if not need_dz:
        return None
    if not of_batch:
        return v * (gamma * scale)
    n = x.shape[0]
    return xp.reshape((v_rows - v_sum / n - x * (vx / n)) * (gamma * scale), z.shape)
