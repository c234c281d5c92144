"""The multi-layer network of the notes."""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from itertools import pairwise

from bpcore.arguments import number, show, whole
from bpcore.initializers import GlorotNormal, HeNormal, LeCunNormal
from bpcore.module import Module
from bpcore.modules import activations
from bpcore.modules.activations import Elementwise, Sigmoid, Tanh
from bpcore.modules.containers import Sequential
from bpcore.modules.dropout import Dropout
from bpcore.modules.linear import Linear
from bpcore.modules.normalization import LayerNorm, RMSNorm

__all__ = ["MLP"]


def snake_case(name: str) -> str:
    """The name of a class in snake_case: leaky_relu for LeakyReLU."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower()


# every elementwise activation by its name, in the order of activations.py
ACTIVATIONS: dict[str, type[Elementwise]] = {
    snake_case(name): cls
    for name, cls in vars(activations).items()
    if name in activations.__all__ and issubclass(cls, Elementwise)
}
NORMALIZATIONS: dict[str, type[LayerNorm | RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


class MLP(Sequential):
    """A multi-layer network: Linear layers, with normalization, activation and dropout between them.

    sizes: [n_in, hidden ..., n_out], at least two. activation: the snake_case name of an activation, or a module. dropout: the
    p of Dropout, 0 for none. normalization: "layer_norm", "rms_norm" or None. Initial weights: LeCun's normal in the last
    layer; in the others Glorot's normal before sigmoid and tanh, He's normal before other activations.

    (7.72)
    """

    def __init__(
        self, sizes: Sequence[int], activation: str | Module = "relu", dropout: float = 0, normalization: str | None = None
    ):
        if isinstance(sizes, (str, Module)) or not isinstance(sizes, Sized) or len(sizes) < 2:
            raise ValueError(f"MLP needs at least two sizes, input and output, got {show(sizes)}; e.g. [64, 128, 10]")
        self.sizes = tuple(whole("sizes", n, of=self) for n in sizes)
        if not isinstance(activation, Module) and not (isinstance(activation, str) and activation in ACTIVATIONS):
            raise ValueError(f"MLP's activation must be a module or one of {', '.join(ACTIVATIONS)}; got {show(activation)}")
        if normalization is not None and not (isinstance(normalization, str) and normalization in NORMALIZATIONS):
            raise ValueError(f"MLP's normalization must be None or one of {', '.join(NORMALIZATIONS)}; got {show(normalization)}")
        self.activation = activation
        self.normalization = normalization
        self.dropout = number("dropout", dropout, "0 <= dropout < 1", lambda p: 0 <= p < 1, of=self)
        sigma = activation if isinstance(activation, Module) else ACTIVATIONS[activation]()
        initializer = GlorotNormal() if isinstance(sigma, (Sigmoid, Tanh)) else HeNormal()
        layers: list[Module] = []
        for n_in, n_out in pairwise(self.sizes[:-1]):
            layers.append(Linear(n_in, n_out, initializer=initializer))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](n_out))
            layers.append(sigma)
            if dropout:
                layers.append(Dropout(self.dropout))
        super().__init__(*layers, Linear(self.sizes[-2], self.sizes[-1], initializer=LeCunNormal()))
