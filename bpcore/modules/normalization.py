"""Normalisation, and dropout."""

from __future__ import annotations

from bpcore.functional.dropout import dropout
from bpcore.functional.normalization import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from bpcore.initializers import Constant, Zeros
from bpcore.module import Module, Parameter


class LayerNorm(Module):
    """u = γ ⊙ (z - μ) / √(s² + ε) + β, μ and s² over the last axis of n features.        Ba et al., 2016

    Parameters without weight decay: gamma (n,), ones, and beta (n,), zeros.
    """

    rows_independent = True

    def __init__(self, n: int, eps: float = 1e-5):
        self.n, self.eps = self.whole("n", n), self.number("eps", eps, "eps > 0", lambda eps: eps > 0)
        self.parameters = {
            "gamma": Parameter((self.n,), Constant(1.0), decay=False),
            "beta": Parameter((self.n,), Zeros(), decay=False),
        }

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.n, theta.gamma, "n")
        u, mean, scale = layer_norm(z, theta.gamma, theta.beta, self.eps)
        return u, (z, mean, scale)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, mean, scale = saved
        return layer_norm_backward(z, mean, scale, theta.gamma, v, gradient.gamma, gradient.beta, need_dz)


class RMSNorm(Module):
    """u = γ ⊙ z / √(mean(z²) + ε) over the last axis of n features.        Zhang and Sennrich, 2019

    Parameter without weight decay: gamma (n,), ones.
    """

    rows_independent = True

    def __init__(self, n: int, eps: float = 1e-6):
        self.n, self.eps = self.whole("n", n), self.number("eps", eps, "eps > 0", lambda eps: eps > 0)
        self.parameters = {"gamma": Parameter((self.n,), Constant(1.0), decay=False)}

    def forward(self, theta, z, mode):
        self.expect_features(theta, z, self.n, theta.gamma, "n")
        u, scale = rms_norm(z, theta.gamma, self.eps)
        return u, (z, scale)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, scale = saved
        return rms_norm_backward(z, scale, theta.gamma, v, gradient.gamma, need_dz)


class Dropout(Module):
    """In training each entry is 0 with probability p, else z / (1 - p); in evaluation u = z.        Srivastava et al., 2014

    The mask is a function of the mode's (seed, step, micro) and of this use, the same on every backend; 0 <= p < 1.
    """

    def __init__(self, p: float):
        self.p = self.number("p", p, "0 <= p < 1", lambda p: 0 <= p < 1)

    def forward(self, theta, z, mode):
        self.expect_floats(theta, z)
        if not mode.training or self.p == 0:
            return z, None
        keep = mode.keep(theta, z, self.p)
        return dropout(z, keep, self.p), keep

    def backward(self, theta, saved, v, gradient, need_dz=True):
        return v if saved is None else dropout(v, saved, self.p)
