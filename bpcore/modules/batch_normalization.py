"""Batch normalization: each feature, over the rows of the batch."""

from __future__ import annotations

from bpcore.arguments import number, whole
from bpcore.array import Array
from bpcore.expect import expect_features
from bpcore.functional.batch_normalization import batch_norm, batch_norm_backward, batch_statistics
from bpcore.functional.linear import rows
from bpcore.initializers import Constant, Zeros
from bpcore.module import Mode, Module, Parameter, Windows

__all__ = ["BatchNorm"]

Saved = tuple[Array, Array, Array, bool]  # z, mean, variance, whether they are those of the batch


class BatchNorm(Module):
    """u = γ ⊙ (z - μ) / √(s² + ε) + β for each of n features: z (..., n).

    In training μ and s² are those of the batch, over all axes but the last, and the running statistics move towards them by the
    fraction `momentum` (with the unbiased variance: N - 1 instead of N rows). In evaluation μ and s² are the running
    statistics, which start at 0 and 1, so that an untrained BatchNorm returns z. Parameters without weight decay: gamma, ones;
    beta, zeros. Buffers: mean and variance.

    Ioffe and Szegedy, 2015
    """

    def __init__(self, n: int, momentum: float = 0.1, eps: float = 1e-5):
        self.n = whole("n", n, of=self)
        self.momentum = number("momentum", momentum, "0 < momentum <= 1", lambda momentum: 0 < momentum <= 1, of=self)
        self.eps = number("eps", eps, "eps > 0", lambda eps: eps > 0, of=self)
        self.parameters = {
            "gamma": Parameter((self.n,), Constant(1.0), decay=False),
            "beta": Parameter((self.n,), Zeros(), decay=False),
            "mean": Parameter((self.n,), Zeros(), trained=False),
            "variance": Parameter((self.n,), Constant(1.0), trained=False),
        }

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Saved]:
        z = expect_features(self, theta, z, self.n, theta.gamma, "n")
        if not mode.training:
            u = batch_norm(z, theta.mean, theta.variance, theta.gamma, theta.beta, self.eps)
            return u, (z, theta.mean, theta.variance, False)
        count = rows(z).shape[0]
        if count < 2:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected two numbers a feature at least in training, got {got}; use more rows")
        mean, variance = batch_statistics(z)
        mode.track(theta.mean, mean, self.momentum)
        mode.track(theta.variance, variance * (count / (count - 1)), self.momentum)
        return batch_norm(z, mean, variance, theta.gamma, theta.beta, self.eps), (z, mean, variance, True)

    def backward(self, theta: Windows, saved: Saved, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        z, mean, variance, of_batch = saved
        return batch_norm_backward(z, mean, variance, theta.gamma, v, self.eps, of_batch, gradient.gamma, gradient.beta, need_dz)
