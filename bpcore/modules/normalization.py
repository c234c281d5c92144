"""Normalization within each example: over its features, or over groups of its channels."""

from __future__ import annotations

from bpcore.arguments import number, whole
from bpcore.array import Array
from bpcore.expect import expect_entries, expect_features
from bpcore.functional.normalization import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from bpcore.initializers import Constant, Zeros
from bpcore.module import Mode, Module, Parameter, Windows

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]

Saved = tuple[Array, Array, Array]  # z, mean, scale


class LayerNorm(Module):
    """u = γ ⊙ (z - μ) / √(s² + ε) + β, μ and s² over the last axis of n features.

    Parameters without weight decay: gamma (n,), ones, and beta (n,), zeros.

    Ba et al., 2016
    """

    rows_independent = True

    def __init__(self, n: int, eps: float = 1e-5):
        self.n = whole("n", n, of=self)
        self.eps = number("eps", eps, "eps > 0", lambda eps: eps > 0, of=self)
        self.parameters = {
            "gamma": Parameter((self.n,), Constant(1.0), decay=False),
            "beta": Parameter((self.n,), Zeros(), decay=False),
        }

    def _adds(self, mode: Mode | None) -> bool:
        return mode is None

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Saved]:
        z = expect_features(self, theta, z, self.n, theta.gamma, "n")
        u, mean, scale = layer_norm(z, theta.gamma, theta.beta, self.eps)
        return u, (z, mean, scale)

    def backward(
        self, theta: Windows, saved: Saved, v: Array, gradient: Windows, need_dz: bool = True, plus: Array | None = None
    ) -> Array | None:
        z, mean, scale = saved
        return layer_norm_backward(z, mean, scale, theta.gamma, v, gradient.gamma, gradient.beta, need_dz, plus)


class RMSNorm(Module):
    """u = γ ⊙ z / √(mean(z²) + ε) over the last axis of n features.

    Parameter without weight decay: gamma (n,), ones.

    Zhang and Sennrich, 2019
    """

    rows_independent = True

    def __init__(self, n: int, eps: float = 1e-6):
        self.n = whole("n", n, of=self)
        self.eps = number("eps", eps, "eps > 0", lambda eps: eps > 0, of=self)
        self.parameters = {"gamma": Parameter((self.n,), Constant(1.0), decay=False)}

    def _adds(self, mode: Mode | None) -> bool:
        return mode is None

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, Array]]:
        z = expect_features(self, theta, z, self.n, theta.gamma, "n")
        u, scale = rms_norm(z, theta.gamma, self.eps)
        return u, (z, scale)

    def backward(
        self,
        theta: Windows,
        saved: tuple[Array, Array],
        v: Array,
        gradient: Windows,
        need_dz: bool = True,
        plus: Array | None = None,
    ) -> Array | None:
        z, scale = saved
        return rms_norm_backward(z, scale, theta.gamma, v, gradient.gamma, need_dz, plus)


class GroupNorm(Module):
    """LayerNorm over each group of channels and the axes before them: z (n, ..., c), with the c channels split into `groups`.

    Parameters without weight decay: gamma (c,), ones, and beta (c,), zeros.

    Wu and He, 2018
    """

    rows_independent = True

    def __init__(self, groups: int, c: int, eps: float = 1e-5):
        self.groups = whole("groups", groups, of=self)
        self.c = whole("c", c, of=self)
        if c % groups:
            raise ValueError(f"GroupNorm's groups must divide c, got {groups} for {c}")
        self.eps = number("eps", eps, "eps > 0", lambda eps: eps > 0, of=self)
        self.parameters = {
            "gamma": Parameter((self.c,), Constant(1.0), decay=False),
            "beta": Parameter((self.c,), Zeros(), decay=False),
        }

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Saved]:
        z = expect_features(self, theta, z, self.c, theta.gamma, "c")
        if z.ndim < 2:
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels), got z of shape {tuple(z.shape)}; add an axis")
        expect_entries(self, theta, z, range(1, z.ndim))
        u, mean, scale = group_norm(z, theta.gamma, theta.beta, self.groups, self.eps)
        return u, (z, mean, scale)

    def backward(self, theta: Windows, saved: Saved, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        z, mean, scale = saved
        return group_norm_backward(z, mean, scale, theta.gamma, v, gradient.gamma, gradient.beta, need_dz)
