"""Normalisation within each example: over its features, or over groups of channels."""

from __future__ import annotations

from math import prod

from bpcore.array import Array, namespace
from bpcore.functional.linear import rows
from bpcore.functional.numerics import inverse_deviation, masked, mean_over, sum_over
from bpcore.primitive import primitive

__all__ = ["group_norm", "group_norm_backward", "layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward"]


@primitive(float32=True)
def layer_norm(z: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """γ ⊙ (z - μ) / √(s² + ε) + β, where μ and s² are the mean and variance of each row.

    z (..., n), gamma and beta (n,). Returns u (..., n), and μ - z[..., 0] and 1 / √(s² + ε), both (..., 1). Measured from the
    row's first entry, a mean far from zero loses no digits, and that of equal entries is exactly 0.

    Ba et al., 2016
    """
    xp = namespace(z)
    z = z - z[..., :1]
    mean = xp.mean(z, axis=-1, keepdims=True)
    centred = z - mean
    scale = inverse_deviation(centred, -1, eps)
    return gamma * (centred * scale) + beta, mean, scale


@primitive(float32=True, writes=("dgamma", "dbeta"))
def layer_norm_backward(
    z: Array,
    mean: Array,
    scale: Array,
    gamma: Array,
    v: Array,
    dgamma: Array,
    dbeta: Array,
    need_dz: bool,
    plus: Array | None,
) -> Array | None:
    """B[LN, ·](v). With x = (z - μ) / √(s² + ε) and w = γ ⊙ v: dz = (w - mean(w) - x mean(w x)) / √(s² + ε).

    mean, scale: as `layer_norm` returns them. Writes dgamma = Σ v x and dbeta = Σ v, summed over rows. Returns dz (..., n), or
    None unless need_dz. plus (..., n): if it is not None, plus + dz is returned.
    """
    xp = namespace(z)
    x = (z - z[..., :1] - mean) * scale
    dgamma[...] = sum_over(rows(v * x), 0)
    dbeta[...] = sum_over(rows(v), 0)
    if not need_dz:
        return None
    w = v * gamma
    dz = scale * (w - xp.mean(w, axis=-1, keepdims=True) - x * xp.mean(w * x, axis=-1, keepdims=True))
    return dz if plus is None else plus + dz


@primitive(float32=True)
def rms_norm(z: Array, gamma: Array, eps: float) -> tuple[Array, Array]:
    """γ ⊙ z / √(mean(z²) + ε).

    z (..., n), gamma (n,). Returns u (..., n) and 1 / √(mean(z²) + ε), (..., 1).

    Zhang and Sennrich, 2019
    """
    scale = inverse_deviation(z, -1, eps)
    return gamma * (z * scale), scale


@primitive(float32=True, writes=("dgamma",))
def rms_norm_backward(
    z: Array, scale: Array, gamma: Array, v: Array, dgamma: Array, need_dz: bool, plus: Array | None
) -> Array | None:
    """B[RMSNorm, ·](v). With x = z / √(mean(z²) + ε) and w = γ ⊙ v: dz = (w - x mean(w x)) / √(mean(z²) + ε).

    Writes dgamma = Σ v x, summed over rows. Returns dz (..., n), or None unless need_dz. plus: as in `layer_norm_backward`.
    """
    xp = namespace(z)
    x = z * scale
    dgamma[...] = sum_over(rows(v * x), 0)
    if not need_dz:
        return None
    w = v * gamma
    dz = scale * (w - x * xp.mean(w * x, axis=-1, keepdims=True))
    return dz if plus is None else plus + dz


def grouped_shape(z: Array, groups: int) -> tuple[int, int, int, int]:
    """The shape (n, entries of the axes between, groups, c / groups) for z (n, ..., c)."""
    return z.shape[0], prod(z.shape[1:-1]), groups, z.shape[-1] // groups


@primitive(float32=True)
def group_norm(z: Array, gamma: Array, beta: Array, groups: int, eps: float) -> tuple[Array, Array, Array]:
    """LN over the axes between the first and the last and over the channels of each group; γ and β act on channels.

    z (n, ..., c), gamma and beta (c,). Returns u, and μ, measured from the first entry of the group, and 1 / √(s² + ε), both
    (n, 1, groups, 1).

    Wu and He, 2018
    """
    xp = namespace(z)
    grouped = xp.reshape(z, grouped_shape(z, groups))
    grouped = grouped - grouped[:, :1, :, :1]
    mean = mean_over(grouped, (1, 3))
    rest = mean_over(grouped - mean, (1, 3))  # rounding error of a mean far from the first entry
    mean = mean + masked(rest, xp.isfinite(rest))
    centred = grouped - mean
    scale = inverse_deviation(centred, (1, 3), eps)
    return xp.reshape(centred * scale, z.shape) * gamma + beta, mean, scale


@primitive(float32=True, writes=("dgamma", "dbeta"))
def group_norm_backward(
    z: Array, mean: Array, scale: Array, gamma: Array, v: Array, dgamma: Array, dbeta: Array, need_dz: bool
) -> Array | None:
    """B[GN, ·](v): as B[LN, ·](v), with means over each group. Writes dgamma and dbeta; returns dz, or None unless need_dz."""
    xp = namespace(z)
    shape = grouped_shape(z, mean.shape[2])
    grouped = xp.reshape(z, shape)
    x = (grouped - grouped[:, :1, :, :1] - mean) * scale
    dgamma[...] = sum_over(rows(v * xp.reshape(x, z.shape)), 0)
    dbeta[...] = sum_over(rows(v), 0)
    if not need_dz:
        return None
    w = xp.reshape(v * gamma, shape)
    mean_w, mean_wx = mean_over(w, (1, 3)), mean_over(w * x, (1, 3))
    return xp.reshape(scale * (w - mean_w - x * mean_wx), z.shape)
