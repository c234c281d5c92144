"""Normalisation over the last axis."""

from __future__ import annotations

from bpcore.backend import namespace
from bpcore.functional.linear import rows
from bpcore.functional.primitive import primitive


@primitive
def layer_norm(z, gamma, beta, eps):
    """γ ⊙ (z - μ) / √(s² + ε) + β, μ and s² the mean and variance of each row.        Ba et al., 2016

    z (..., n), gamma and beta (n,). Returns u (..., n), and μ and 1 / √(s² + ε), both (..., 1).
    """
    xp = namespace(z)
    mean = xp.mean(z, axis=-1, keepdims=True)
    centred = z - mean
    scale = 1 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return gamma * (centred * scale) + beta, mean, scale


@primitive
def layer_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    """B[LN, ·](v). With x = (z - μ) / √(s² + ε) and w = γ ⊙ v: dz = (w - mean(w) - x mean(w x)) / √(s² + ε).

    Writes dgamma = Σ v x and dbeta = Σ v, summed over rows. Returns dz (..., n), or None unless need_dz.
    """
    xp = namespace(z)
    x = (z - mean) * scale
    dgamma[...] = xp.sum(rows(v * x), axis=0)
    dbeta[...] = xp.sum(rows(v), axis=0)
    if not need_dz:
        return None
    w = v * gamma
    return scale * (w - xp.mean(w, axis=-1, keepdims=True) - x * xp.mean(w * x, axis=-1, keepdims=True))


@primitive
def rms_norm(z, gamma, eps):
    """γ ⊙ z / √(mean(z²) + ε).        Zhang and Sennrich, 2019

    z (..., n), gamma (n,). Returns u (..., n) and 1 / √(mean(z²) + ε), (..., 1).
    """
    xp = namespace(z)
    scale = 1 / xp.sqrt(xp.mean(z * z, axis=-1, keepdims=True) + eps)
    return gamma * (z * scale), scale


@primitive
def rms_norm_backward(z, scale, gamma, v, dgamma, need_dz):
    """B[RMSNorm, ·](v). With x = z / √(mean(z²) + ε) and w = γ ⊙ v: dz = (w - x mean(w x)) / √(mean(z²) + ε).

    Writes dgamma = Σ v x, summed over rows. Returns dz (..., n), or None unless need_dz.
    """
    xp = namespace(z)
    x = z * scale
    dgamma[...] = xp.sum(rows(v * x), axis=0)
    if not need_dz:
        return None
    w = v * gamma
    return scale * (w - x * xp.mean(w * x, axis=-1, keepdims=True))
