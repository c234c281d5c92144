"""Recurrent modules over sequences (n, tokens, features)."""

from __future__ import annotations

from bpcore.arguments import whole
from bpcore.array import Array
from bpcore.expect import expect_entries, expect_features
from bpcore.functional.recurrent import gru, gru_backward, lstm, lstm_backward
from bpcore.initializers import GlorotUniform, Orthogonal, Zeros
from bpcore.module import Mode, Module, Parameter, Windows

__all__ = ["GRU", "LSTM"]


class Recurrent(Module):
    """Base of LSTM and GRU: the sizes, and the check of a sequence."""

    rows_independent = True

    def __init__(self, n_in: int, n_out: int):
        self.n_in = whole("n_in", n_in, of=self)
        self.n_out = whole("n_out", n_out, of=self)

    def expect_sequences(self, theta: Windows, z: Array) -> Array:
        """z as floats, or an error unless it is (n, tokens, n_in), with at least one token."""
        if z.ndim != 3:
            got = f"z of shape {tuple(z.shape)}"
            raise ValueError(f"{self.name(theta)} expected (n, tokens, {self.n_in}), got {got}; reshape the data")
        expect_entries(self, theta, z, (1,))
        return expect_features(self, theta, z, self.n_in, theta.W, "n_in")


class LSTM(Recurrent):
    """h = o tanh(c), c = f c + i g, with gates i, f, g, o from z W + h U + b.

    z (n, tokens, n_in), u (n, tokens, n_out): the state h after each token; it starts at zero. Parameters, with the gates in
    the order i, f, g, o: W (n_in, 4 n_out), U (n_out, 4 n_out) and b (4 n_out,). Saved for the backward pass: z,
    h, c and the gates, 6 n_out numbers a token beyond z.

    Hochreiter and Schmidhuber, 1997
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out)
        self.parameters = {
            "W": Parameter((self.n_in, 4 * self.n_out), GlorotUniform()),
            "U": Parameter((self.n_out, 4 * self.n_out), Orthogonal()),
            "b": Parameter((4 * self.n_out,), Zeros(), decay=False),
        }

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, ...]]:
        z = self.expect_sequences(theta, z)
        u, gates, c = lstm(z, theta.W, theta.U, theta.b)
        return u, (z, u, gates, c)

    def backward(
        self, theta: Windows, saved: tuple[Array, ...], v: Array, gradient: Windows, need_dz: bool = True
    ) -> Array | None:
        z, u, gates, c = saved
        return lstm_backward(z, theta.W, theta.U, u, gates, c, v, gradient.W, gradient.U, gradient.b, need_dz)


class GRU(Recurrent):
    """h = (1 - s) g + s h with gates r, s and g = tanh(z W + b + r (h U + d)).

    z (n, tokens, n_in), u (n, tokens, n_out): the state h after each token; it starts at zero. Parameters, with the gates in
    the order r, s, g: W (n_in, 3 n_out), U (n_out, 3 n_out), b and d (3 n_out,). Saved for the backward pass:
    z, h, the gates and h U + d of g, 5 n_out numbers a token beyond z.

    Cho et al., 2014
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out)
        self.parameters = {
            "W": Parameter((self.n_in, 3 * self.n_out), GlorotUniform()),
            "U": Parameter((self.n_out, 3 * self.n_out), Orthogonal()),
            "b": Parameter((3 * self.n_out,), Zeros(), decay=False),
            "d": Parameter((3 * self.n_out,), Zeros(), decay=False),
        }

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, ...]]:
        z = self.expect_sequences(theta, z)
        u, gates = gru(z, theta.W, theta.U, theta.b, theta.d)
        return u, (z, u, gates)

    def backward(
        self, theta: Windows, saved: tuple[Array, ...], v: Array, gradient: Windows, need_dz: bool = True
    ) -> Array | None:
        z, u, gates = saved
        return gru_backward(z, theta.W, theta.U, u, gates, v, gradient.W, gradient.U, gradient.b, gradient.d, need_dz)
