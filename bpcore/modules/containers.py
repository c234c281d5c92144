"""Composition: one after another, and around."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from bpcore.initializers import GlorotNormal, HeNormal, LeCunNormal
from bpcore.module import Module
from bpcore.modules import activations as a
from bpcore.modules.linear import Linear, LinearReLU
from bpcore.modules.normalization import Dropout, LayerNorm, RMSNorm


class Sequential(Module):
    """u = M_k(... M_2(M_1(z))): the composition u[i] = M_i(u[i-1]; θ[i]) of section 7.4.2. Children are "0", "1", ..."""

    def __init__(self, *modules: Module):
        for module in modules:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential expected modules, got {module!r}; pass them one by one: Sequential(a, b)")
        self.modules = modules
        self.children = {str(i): module for i, module in enumerate(modules)}
        self.rows_independent = all(module.rows_independent for module in modules)
        # Without dJ/dz of the whole, modules before the first parameter have nothing to compute.
        self.first = next((i for i, module in enumerate(modules) if module.trained), len(modules))
        # What runs, with its place among the children: a Linear and a ReLU after it are one.
        self.steps: list[tuple[int, Module]] = []
        for i, module in enumerate(modules):
            before = modules[i - 1] if i else None
            if type(module) is a.ReLU and isinstance(before, Linear) and type(before) is Linear:
                self.steps[-1] = i - 1, LinearReLU(before)
            else:
                self.steps.append((i, module))

    def with_children(self, children: Mapping[str, Module]) -> Module:
        other = super().with_children(children)
        other.steps = list(enumerate(children.values()))
        return other

    def forward(self, theta, z, mode):
        saved = []
        for i, module in self.steps:
            z, for_backward = module.forward(theta.children[i], z, mode=mode)
            saved.append(for_backward if mode.saving else None)
            for_backward = None  # let go, before the next module needs memory
        return z, saved

    def backward(self, theta, saved, v, gradient, need_dz=True):
        first = 0 if need_dz else self.first
        # dJ/dθ[i] as soon as dJ/du[i] is there; what module i saved is let go on the way.        (7.74), (7.75)
        for i, module in reversed(self.steps):
            if i < first:
                break
            v = module.backward(theta.children[i], saved.pop(), v, gradient.children[i], need_dz or i > first)
        return v if need_dz else None


class Residual(Module):
    """u = z + M(z), for an M that keeps the shape. The child is "body".        He et al., 2016"""

    def __init__(self, body: Module):
        if not isinstance(body, Module):
            raise TypeError(f"Residual expected a module, got {body!r}; e.g. Residual(Linear(4, 4))")
        self.body = body
        self.children = {"body": body}
        self.rows_independent = body.rows_independent

    def forward(self, theta, z, mode):
        u, saved = self.children["body"].forward(theta.children[0], z, mode=mode)
        if tuple(u.shape) != tuple(z.shape):
            got = f"{tuple(z.shape)} to {tuple(u.shape)}"
            raise ValueError(f"{self.name(theta)} expected a body that keeps the shape, got {got}; make its sizes agree")
        return z + u, [saved]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        dz = self.children["body"].backward(theta.children[0], saved.pop(), v, gradient.children[0], need_dz)
        return v + dz if need_dz else None


ACTIVATIONS = {
    "relu": a.ReLU,
    "leaky_relu": a.LeakyReLU,
    "elu": a.ELU,
    "gelu": a.GELU,
    "silu": a.SiLU,
    "sigmoid": a.Sigmoid,
    "tanh": a.Tanh,
    "softplus": a.Softplus,
    "identity": a.Identity,
}
NORMALIZATIONS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


class MLP(Sequential):
    """A multi-layer network (7.72): Linear, then normalization, activation and dropout between layers, Linear last.

    sizes: [n_in, hidden ..., n_out], two or more. activation: the snake_case name of an activation, or a module.
    dropout: its p, 0 for none. normalization: "layer_norm", "rms_norm" or None. The first weights are He's normal before
    the ReLU family, Glorot's before sigmoid and tanh, and LeCun's normal in the last layer.
    """

    def __init__(self, sizes: Any, activation: str | Module = "relu", dropout: float = 0, normalization: str | None = None):
        if isinstance(sizes, (str, int)) or len(sizes) < 2:
            raise ValueError(f"MLP's sizes must have the input's and the output's at least, got {sizes!r}; e.g. [64, 128, 10]")
        sizes = tuple(self.whole("sizes", n) for n in sizes)
        if not isinstance(activation, Module) and activation not in ACTIVATIONS:
            raise ValueError(f"MLP's activation must be a module or one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        if normalization is not None and normalization not in NORMALIZATIONS:
            raise ValueError(f"MLP's normalization must be None or one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
        self.sizes, self.activation, self.normalization = sizes, activation, normalization
        self.dropout = self.number("dropout", dropout, "0 <= dropout < 1", lambda p: 0 <= p < 1)
        sigma = activation if isinstance(activation, Module) else ACTIVATIONS[activation]()
        initializer = GlorotNormal() if isinstance(sigma, (a.Sigmoid, a.Tanh)) else HeNormal()
        layers: list[Module] = []
        for n_in, n_out in pairwise(sizes[:-1]):
            layers.append(Linear(n_in, n_out, initializer=initializer))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](n_out))
            layers.append(sigma)
            if dropout:
                layers.append(Dropout(self.dropout))
        super().__init__(*layers, Linear(sizes[-2], sizes[-1], initializer=LeCunNormal()))
