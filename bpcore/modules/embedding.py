"""Embedding of ids, and the output layer that shares its matrix."""

from __future__ import annotations

from bpcore.arguments import show, whole
from bpcore.array import Array, kind
from bpcore.expect import expect_features
from bpcore.functional.embedding import embedding, embedding_backward
from bpcore.functional.linear import linear, linear_backward
from bpcore.initializers import Normal
from bpcore.module import Initializer, Mode, Module, Parameter, Windows

__all__ = ["Embedding", "Unembed"]


class Embedding(Module):
    """u = the rows of W with these ids: ids (...), integers from 0 to n - 1, u (..., d).

    Parameter: W (n, d), by default normal with standard deviation 0.02. Ids out of range raise an error with
    Mode(look=True): when `fit` starts, when a network is called, in `evaluate`, and on a CPU in every step.
    """

    rows_independent = True

    def __init__(self, n: int, d: int, initializer: Initializer | None = None):
        self.n = whole("n", n, of=self)
        self.d = whole("d", d, of=self)
        self.initializer = initializer
        self.parameters = {"W": Parameter((self.n, self.d), Normal(0.02) if initializer is None else initializer)}

    def forward(self, theta: Windows, ids: Array, mode: Mode) -> tuple[Array, Array]:
        if kind(ids) != "integral":
            raise TypeError(f"{self.name(theta)} expected ids of an integer dtype, got {ids.dtype}; convert: ids.astype('int64')")
        mode.expect_range(self.name(theta), ids, self.n)
        return embedding(ids, theta.W), ids

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> None:
        embedding_backward(saved, v, gradient.W)


class Unembed(Module):
    """The output layer that shares an embedding's parameter: t = z Wᵀ, z (..., d), t (..., n). Their gradients for W add up."""

    rows_independent = True

    def __init__(self, embedding: Embedding):
        if not isinstance(embedding, Embedding):
            raise TypeError(f"Unembed expected the Embedding whose parameter it shares, got {show(embedding)}")
        self.embedding = embedding
        self.parameters = {"W": embedding.parameters["W"]}

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, Array]:
        z = expect_features(self, theta, z, self.embedding.d, theta.W, "d")
        return linear(z, theta.W.T, None), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        return linear_backward(saved, theta.W.T, v, gradient.W.T, None, need_dz)
