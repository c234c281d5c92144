"""Normalisation: of rows, of batches, of groups of channels."""

from __future__ import annotations

from math import prod

from bpcore.backend import is_half, namespace
from bpcore.functional.linear import rows
from bpcore.functional.primitive import in_float32, primitive


@primitive
@in_float32
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
@in_float32
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
@in_float32
def rms_norm(z, gamma, eps):
    """γ ⊙ z / √(mean(z²) + ε).        Zhang and Sennrich, 2019

    z (..., n), gamma (n,). Returns u (..., n) and 1 / √(mean(z²) + ε), (..., 1).
    """
    xp = namespace(z)
    scale = 1 / xp.sqrt(xp.mean(z * z, axis=-1, keepdims=True) + eps)
    return gamma * (z * scale), scale


@primitive
@in_float32
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


@primitive
def batch_statistics(z):
    """μ and the mean of (z - μ)² of each feature of the last axis of z, over all the others; of float16 in float32."""
    xp, flat = namespace(z), rows(z)
    flat = xp.astype(flat, xp.float32) if is_half(z) else flat
    mean = xp.mean(flat, axis=0)
    centred = flat - mean
    return mean, xp.mean(centred * centred, axis=0)


@primitive
@in_float32
def batch_norm(z, mean, variance, gamma, beta, eps):
    """γ ⊙ (z - μ) / √(s² + ε) + β with μ and s² given for each feature of the last axis.        Ioffe and Szegedy, 2015"""
    return (z - mean) * (gamma / namespace(z).sqrt(variance + eps)) + beta


@primitive
@in_float32
def batch_norm_backward(z, mean, variance, gamma, v, eps, of_batch, dgamma, dbeta, need_dz):
    """B[BN, ·](v). of_batch: μ and s² are z's own, so that the gradient goes through them; else they are constants.

    Writes dgamma = Σ v x and dbeta = Σ v with x = (z - μ) / √(s² + ε). Returns dz, or None unless need_dz.
    """
    xp = namespace(z)
    scale = 1 / xp.sqrt(variance + eps)
    x, v_rows = rows((z - mean) * scale), rows(v)
    vx, v_sum = xp.sum(v_rows * x, axis=0), xp.sum(v_rows, axis=0)
    dgamma[...], dbeta[...] = vx, v_sum
    if not need_dz:
        return None
    if not of_batch:
        return v * (gamma * scale)
    n = x.shape[0]
    return xp.reshape((v_rows - v_sum / n - x * (vx / n)) * (gamma * scale), z.shape)


def grouped_shape(z, groups):
    """z (n, ..., c) as (n, entries between, groups, c / groups)."""
    return z.shape[0], prod(z.shape[1:-1]), groups, z.shape[-1] // groups


@primitive
@in_float32
def group_norm(z, gamma, beta, groups, eps):
    """LN over the axes between and the channels of each of `groups` groups, then γ and β a channel.        Wu and He, 2018

    z (n, ..., c), gamma and beta (c,). Returns u, and μ and 1 / √(s² + ε), both (n, 1, groups, 1).
    """
    xp = namespace(z)
    grouped = xp.reshape(z, grouped_shape(z, groups))
    mean = xp.mean(grouped, axis=(1, 3), keepdims=True)
    centred = grouped - mean
    scale = 1 / xp.sqrt(xp.mean(centred * centred, axis=(1, 3), keepdims=True) + eps)
    return xp.reshape(centred * scale, z.shape) * gamma + beta, mean, scale


@primitive
@in_float32
def group_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    """B[GN, ·](v): as B[LN, ·], the means being those of each group. Writes dgamma and dbeta."""
    xp = namespace(z)
    shape = grouped_shape(z, mean.shape[2])
    x = (xp.reshape(z, shape) - mean) * scale
    dgamma[...] = xp.sum(rows(v * xp.reshape(x, z.shape)), axis=0)
    dbeta[...] = xp.sum(rows(v), axis=0)
    if not need_dz:
        return None
    w = xp.reshape(v * gamma, shape)
    means = xp.mean(w, axis=(1, 3), keepdims=True), xp.mean(w * x, axis=(1, 3), keepdims=True)
    return xp.reshape(scale * (w - means[0] - x * means[1]), z.shape)
