"""Normalisation that knows of batches and of channels, and dropout of whole channels."""

from __future__ import annotations

from bpcore.functional.dropout import dropout
from bpcore.functional.linear import rows
from bpcore.functional.normalization import batch_norm, batch_norm_backward, group_norm, group_norm_backward, statistics
from bpcore.initializers import Constant, Zeros
from bpcore.module import Module, Parameter
from bpcore.modules.normalization import Dropout


class BatchNorm(Module):
    """u = γ ⊙ (z - μ) / √(s² + ε) + β for each of n features in the last axis, any axes before.        Ioffe and Szegedy, 2015

    In training μ and s² are the batch's, over all axes but the last, and the running statistics move towards them by
    `momentum` (the variance with n - 1 for n). In evaluation they are the running statistics, which start at 0 and 1, so
    that an untrained BatchNorm passes z through. Parameters without weight decay: gamma, ones; beta, zeros. Buffers:
    mean and variance.
    """

    def __init__(self, n: int, momentum: float = 0.1, eps: float = 1e-5):
        self.n = self.whole("n", n)
        self.momentum = self.number("momentum", momentum, "0 < momentum <= 1", lambda momentum: 0 < momentum <= 1)
        self.eps = self.number("eps", eps, "eps > 0", lambda eps: eps > 0)
        self.parameters = {
            "gamma": Parameter((self.n,), Constant(1.0), decay=False),
            "beta": Parameter((self.n,), Zeros(), decay=False),
            "mean": Parameter((self.n,), Zeros(), trained=False),
            "variance": Parameter((self.n,), Constant(1.0), trained=False),
        }

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.n, theta.gamma, "n")
        if not mode.training:
            u = batch_norm(z, theta.mean, theta.variance, theta.gamma, theta.beta, self.eps)
            return u, (z, theta.mean, theta.variance, False)
        flat = rows(z)
        count = flat.shape[0]
        if count < 2:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected two numbers a feature at least in training, got {got}; use more rows")
        mean, variance = statistics(flat)
        mode.track(theta.mean, mean, self.momentum)
        mode.track(theta.variance, variance * (count / (count - 1)), self.momentum)
        return batch_norm(z, mean, variance, theta.gamma, theta.beta, self.eps), (z, mean, variance, True)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, mean, variance, of_batch = saved
        windows = gradient.gamma, gradient.beta
        return batch_norm_backward(z, mean, variance, theta.gamma, v, self.eps, of_batch, *windows, need_dz)


class GroupNorm(Module):
    """LN over the axes between and the channels of each group: z (n, ..., c), c channels in `groups`.        Wu and He, 2018

    Parameters without weight decay: gamma (c,), ones, and beta (c,), zeros.
    """

    rows_independent = True

    def __init__(self, groups: int, c: int, eps: float = 1e-5):
        self.groups, self.c = self.whole("groups", groups), self.whole("c", c)
        if c % groups:
            raise ValueError(f"GroupNorm's groups must divide c, got {groups} for {c}")
        self.eps = self.number("eps", eps, "eps > 0", lambda eps: eps > 0)
        self.parameters = {
            "gamma": Parameter((self.c,), Constant(1.0), decay=False),
            "beta": Parameter((self.c,), Zeros(), decay=False),
        }

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.c, theta.gamma, "c")
        if z.ndim < 2:
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels), got z of shape {tuple(z.shape)}; add an axis")
        u, mean, scale = group_norm(z, theta.gamma, theta.beta, self.groups, self.eps)
        return u, (z, mean, scale)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, mean, scale = saved
        return group_norm_backward(z, mean, scale, theta.gamma, v, gradient.gamma, gradient.beta, need_dz)


class Dropout2d(Dropout):
    """Dropout of whole channels: one draw for each of (n, c), the axes between sharing it.        Tompson et al., 2015"""

    def forward(self, theta, z, mode):
        if z.ndim < 2:
            raise ValueError(f"{self.name(theta)} expected (n, ..., channels), got z of shape {tuple(z.shape)}; add an axis")
        self.expect_floats(theta, z)
        if not mode.training or self.p == 0:
            return z, None
        keep = mode.keep(theta, z[:, *(slice(0, 1) for _ in z.shape[1:-1]), :], self.p)
        return dropout(z, keep, self.p), keep
