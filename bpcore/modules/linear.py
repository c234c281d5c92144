"""The module MM, and a parameter as a module."""

from __future__ import annotations

from bpcore.arguments import flag, show, whole
from bpcore.array import Array
from bpcore.expect import expect_features
from bpcore.functional.activations import gelu, gelu_again
from bpcore.functional.linear import linear, linear_add, linear_backward, linear_gelu_backward, linear_relu, linear_relu_backward
from bpcore.initializers import HeNormal, Zeros
from bpcore.module import Initializer, Mode, Module, Parameter, Windows

__all__ = ["Linear", "Weight"]


class Linear(Module):
    """MM: u = z W + b over the last axis.

    z (..., n_in), u (..., n_out). Parameters: W (n_in, n_out), drawn by `initializer` (by default He's normal), and b
    (n_out,), zeros, without weight decay; `bias=False` leaves b out.

    Section 7.4.3, rows as in 7.5
    """

    rows_independent = True

    def __init__(self, n_in: int, n_out: int, bias: bool = True, initializer: Initializer | None = None):
        self.n_in = whole("n_in", n_in, of=self)
        self.n_out = whole("n_out", n_out, of=self)
        self.bias = flag("bias", bias, of=self)
        self.initializer = initializer
        self.parameters = {
            "W": Parameter((self.n_in, self.n_out), HeNormal() if initializer is None else initializer),
            "b": Parameter((self.n_out,), Zeros(), decay=False) if self.bias else None,
        }

    def _adds(self, mode: Mode | None) -> bool:
        return mode is not None

    def forward(self, theta: Windows, z: Array, mode: Mode, *, plus: Array | None = None) -> tuple[Array, Array]:
        z = expect_features(self, theta, z, self.n_in, theta.W, "n_in")
        return linear(z, theta.W, theta.b) if plus is None else linear_plus(z, theta.W, theta.b, plus), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        return linear_backward(saved, theta.W, v, gradient.W, gradient.b, need_dz)


def linear_plus(z: Array, W: Array, b: Array | None, plus: Array | None) -> Array:
    """u = z W + b, or plus + u if there is an array `plus` of u's shape."""
    if plus is None or tuple(plus.shape) != (*z.shape[:-1], W.shape[1]):
        return linear(z, W, b)
    return linear_add(z, W, b, plus)


class LinearStep(Module):
    """Base of a Linear and a neighbour of it as one step, with the Linear's windows. See `fused`, in containers."""

    def __init__(self, linear: Linear):
        self.linear = linear


class LinearReLU(LinearStep):
    """u = max(z W + b, 0)."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, Array]]:
        z = expect_features(self.linear, theta, z, self.linear.n_in, theta.W, "n_in")
        u = linear_relu(z, theta.W, theta.b)
        return u, (z, u)

    def backward(
        self, theta: Windows, saved: tuple[Array, Array], v: Array, gradient: Windows, need_dz: bool = True
    ) -> Array | None:
        z, u = saved
        return linear_relu_backward(z, theta.W, u, v, gradient.W, gradient.b, need_dz)


class LinearGELU(LinearStep):
    """u = GELU(z W + b), the exact one."""

    def forward(self, theta: Windows, z: Array, mode: Mode) -> tuple[Array, tuple[Array, Array]]:
        z = expect_features(self.linear, theta, z, self.linear.n_in, theta.W, "n_in")
        t = linear(z, theta.W, theta.b)
        return gelu(t), (z, t)

    def backward(
        self, theta: Windows, saved: tuple[Array, Array], v: Array, gradient: Windows, need_dz: bool = True
    ) -> Array | None:
        z, t = saved
        return linear_gelu_backward(z, theta.W, t, v, gradient.W, gradient.b, need_dz)


class GELULinear(LinearStep):
    """u = GELU(z) W + b, the exact GELU. It saves z alone: the backward pass, which computes Φ(z) anyway, has GELU(z) from it."""

    def _adds(self, mode: Mode | None) -> bool:
        return mode is not None

    def forward(self, theta: Windows, z: Array, mode: Mode, *, plus: Array | None = None) -> tuple[Array, Array]:
        z = expect_features(self.linear, theta, z, self.linear.n_in, theta.W, "n_in")
        return linear_plus(gelu(z), theta.W, theta.b, plus), z

    def backward(self, theta: Windows, saved: Array, v: Array, gradient: Windows, need_dz: bool = True) -> Array | None:
        dz = linear(v, theta.W.T, None)
        u = gelu_again(saved, dz)
        linear_backward(u, theta.W, v, gradient.W, gradient.b, False)
        return dz


class Weight(Module):
    """u = W: a parameter of this shape as a module without inputs, for circuits.

    initializer: by default He's normal. decay: whether weight decay applies to W. B[Weight, W](v) = v.
    """

    def __init__(self, shape: tuple[int, ...], initializer: Initializer | None = None, decay: bool = True):
        if not isinstance(shape, (tuple, list)):
            raise ValueError(f"Weight's shape must be a tuple, got {show(shape)}; e.g. (64, 10)")
        self.shape = tuple(whole("shape", n, of=self) for n in shape)
        self.initializer = initializer
        self.decay = flag("decay", decay, of=self)
        self.parameters = {"W": Parameter(self.shape, HeNormal() if initializer is None else initializer, decay)}

    def forward(self, theta: Windows, mode: Mode) -> tuple[Array, None]:
        return theta.W, None

    def backward(self, theta: Windows, saved: None, v: Array, gradient: Windows, need_dz: bool = True) -> tuple[()]:
        gradient.W[...] = v
        return ()
