"""Recurrent modules over sequences (n, tokens, features), and evaluating again instead of remembering."""

from __future__ import annotations

from bpcore.functional.recurrent import gru, gru_backward, lstm, lstm_backward
from bpcore.initializers import GlorotUniform, Orthogonal, Zeros
from bpcore.module import Module, Parameter


class LSTM(Module):
    """h = o tanh(c), c = f c + i g, from gates i, f, g, o of z W + h U + b.        Hochreiter and Schmidhuber, 1997

    z (n, tokens, n_in), u (n, tokens, n_out), the state after each token; before the first it is zero. Parameters, the
    gates in the order i, f, g, o: W (n_in, 4 n_out), U (n_out, 4 n_out) and b (4 n_out,). Saved for the backward pass: z,
    h, c and the gates, 6 n_out numbers a token beyond z.
    """

    rows_independent = True

    def __init__(self, n_in: int, n_out: int):
        self.n_in, self.n_out = self.whole("n_in", n_in), self.whole("n_out", n_out)
        self.parameters = {
            "W": Parameter((self.n_in, 4 * self.n_out), GlorotUniform()),
            "U": Parameter((self.n_out, 4 * self.n_out), Orthogonal()),
            "b": Parameter((4 * self.n_out,), Zeros(), decay=False),
        }

    def forward(self, theta, z, mode):
        expect_sequences(self, theta, z)
        u, gates, c = lstm(z, theta.W, theta.U, theta.b)
        return u, (z, u, gates, c)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u, gates, c = saved
        return lstm_backward(z, theta.W, theta.U, u, gates, c, v, gradient.W, gradient.U, gradient.b, need_dz)


class GRU(Module):
    """h = (1 - s) g + s h from gates r, s and g = tanh(z W + b + r (h U + d)).        Cho et al., 2014

    z (n, tokens, n_in), u (n, tokens, n_out), the state after each token; before the first it is zero. Parameters, the
    gates in the order r, s, g: W (n_in, 3 n_out), U (n_out, 3 n_out), b and d (3 n_out,). Saved for the backward pass:
    z, h, the gates and h U + d of g, 5 n_out numbers a token beyond z.
    """

    rows_independent = True

    def __init__(self, n_in: int, n_out: int):
        self.n_in, self.n_out = self.whole("n_in", n_in), self.whole("n_out", n_out)
        self.parameters = {
            "W": Parameter((self.n_in, 3 * self.n_out), GlorotUniform()),
            "U": Parameter((self.n_out, 3 * self.n_out), Orthogonal()),
            "b": Parameter((3 * self.n_out,), Zeros(), decay=False),
            "d": Parameter((3 * self.n_out,), Zeros(), decay=False),
        }

    def forward(self, theta, z, mode):
        expect_sequences(self, theta, z)
        u, gates = gru(z, theta.W, theta.U, theta.b, theta.d)
        return u, (z, u, gates)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, u, gates = saved
        windows = gradient.W, gradient.U, gradient.b, gradient.d
        return gru_backward(z, theta.W, theta.U, u, gates, v, *windows, need_dz)


def expect_sequences(module, theta, z):
    """An error unless z is (n, tokens, n_in) with a token at least."""
    if z.ndim != 3 or z.shape[1] == 0:
        got = f"z of shape {tuple(z.shape)}"
        raise ValueError(f"{module.name(theta)} expected (n, tokens, {module.n_in}), got {got}; reshape the data")
    module.expect_features(theta, z, module.n_in, theta.W, "n_in")


class Recompute(Module):
    """u = M(z), remembering z alone: the backward pass evaluates M again. The child is "body".        Chen et al., 2016

    Randomness is a function of the mode, so the masks are the same; buffers are tracked by the first evaluation only.
    """

    def __init__(self, body: Module):
        if not isinstance(body, Module):
            raise TypeError(f"Recompute expected a module, got {body!r}; e.g. Recompute(TransformerBlock(64, 4))")
        self.body = body
        self.children = {"body": body}
        self.rows_independent = body.rows_independent

    def forward(self, theta, *z, mode):
        u, _ = self.children["body"].forward(theta.children[0], *z, mode=mode.forgetting())
        return u, (z, mode)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        z, mode = saved
        body = self.children["body"]
        _, again = body.forward(theta.children[0], *z, mode=mode.again())
        return body.backward(theta.children[0], again, v, gradient.children[0], need_dz)
