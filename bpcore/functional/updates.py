"""Updates of optimisers: arithmetic on whole vectors. They write θ and the moments, which are passed last.

g is the gradient, which counts as `times(g, factor)`, and λ (`decay`) the weight decay; each docstring says how it enters. First
moments are flushed below the square root of the smallest normal number of the dtype. Second moments, whose root divides, are
flushed only close to that number.
"""

from __future__ import annotations

import math
from typing import Any

from bpcore.array import Array, device, namespace
from bpcore.functional.numerics import flush, masked, smallest_normal
from bpcore.library import is_array
from bpcore.primitive import primitive

__all__ = ["adagrad", "adam", "clip_factor", "gathered", "lion", "nadam", "rescale", "rmsprop", "sgd", "squared_norm", "times"]

Scalar = Any  # a Python number, or a scalar array on the device

WITHOUT_FLOAT64 = ("mps", "xpu")  # devices of PyTorch that have no float64, or not always
SQUARES = 2.0**10  # second moments below this multiple of the smallest normal number are set to 0


def flush_square(v: Array) -> Array:
    """A second moment v >= 0 with entries that would soon be subnormal set to 0."""
    return v * namespace(v).astype(v >= SQUARES * smallest_normal(v), v.dtype)


def times(g: Array, factor: Scalar) -> Array:
    """g times a factor, rounded to the dtype of g. With a factor of 0 it is 0, even where g is infinite or NaN."""
    if type(factor) is not float and is_array(factor):
        return masked(g, factor != 0) * scalar_like(factor, g)
    if factor == 1:
        return g
    return g * factor if factor else namespace(g).zeros_like(g)


def scalar_like(number: Scalar, vector: Array) -> Array:
    """A number of the host or of the device as an array without axes, of the dtype and on the device of `vector`."""
    xp = namespace(vector)
    if is_array(number):
        return xp.astype(number, vector.dtype)
    return xp.full((), number, dtype=vector.dtype, device=device(vector))


@primitive(writes=("theta", "m"))
def sgd(
    g: Array, factor: Scalar, lr: Scalar, momentum: float, nesterov: bool, decay: float, theta: Array, m: Array | None
) -> None:
    """m = μ m + (g + λ θ); θ -= lr m, or lr (g + μ m) with Nesterov's momentum. m is None where μ = 0."""
    g = times(g, factor)
    if decay:
        g = g + decay * theta
    if m is not None:
        m[...] = flush(momentum * m + g)
        g = g + momentum * m if nesterov else m
    theta[...] = theta - lr * g


@primitive(writes=("theta", "v"))
def rmsprop(g: Array, factor: Scalar, lr: Scalar, rho: float, eps: float, decay: float, theta: Array, v: Array) -> None:
    """v = ρ v + (1 - ρ) g²; θ -= lr g / (√v + ε), where g + λ θ replaces g.

    Tieleman and Hinton, 2012
    """
    g = times(g, factor)
    if decay:
        g = g + decay * theta
    v[...] = flush_square(rho * v + (1 - rho) * (g * g))
    theta[...] = theta - lr * g / (namespace(g).sqrt(v) + eps)


@primitive(writes=("theta", "v"))
def adagrad(g: Array, factor: Scalar, lr: Scalar, eps: float, decay: float, theta: Array, v: Array) -> None:
    """v += g²; θ -= lr g / (√v + ε), where g + λ θ replaces g.

    Duchi et al., 2011
    """
    g = times(g, factor)
    if decay:
        g = g + decay * theta
    v[...] = flush_square(v + g * g)
    theta[...] = theta - lr * g / (namespace(g).sqrt(v) + eps)


@primitive(writes=("theta", "m", "v"))
def adam(
    g: Array,
    factor: Scalar,
    step: Scalar,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    decoupled: bool,
    theta: Array,
    m: Array,
    v: Array,
) -> None:
    """m = β₁ m + (1 - β₁) g; v = β₂ v + (1 - β₂) g²; θ -= lr m̂ / (√v̂ + ε), m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ), t the step.

    The first step is 1. λ: if decoupled, θ -= lr λ θ before that, else g + λ θ replaces g.

    Kingma and Ba, 2015
    Loshchilov and Hutter, 2019
    """
    g = times(g, factor)
    if decay and decoupled:
        theta[...] = theta - (lr * decay) * theta
    elif decay:
        g = g + decay * theta
    m[...] = flush(beta1 * m + (1 - beta1) * g)
    v[...] = flush_square(beta2 * v + (1 - beta2) * (g * g))
    corrected = namespace(g).sqrt(v) / (1 - beta2**step) ** 0.5 + eps
    theta[...] = theta - (lr / (1 - beta1**step)) * m / corrected


@primitive(writes=("theta", "m", "v", "c"))
def nadam(
    g: Array,
    factor: Scalar,
    step: Scalar,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    momentum_decay: float,
    theta: Array,
    m: Array,
    v: Array,
    c: Array,
) -> None:
    """Adam with Nesterov's momentum, at step t = 1, 2, ...: its factors are μ_t = β₁ (1 - ½ 0.96^(t ψ)), ψ = momentum_decay.

    θ -= lr m̂ / (√v̂ + ε), where m̂ = μ_{t+1} m / (1 - μ_1 ⋯ μ_{t+1}) + (1 - μ_t) g / (1 - μ_1 ⋯ μ_t), with g + λ θ for g.
    c is 1 - μ_1 ⋯ μ_t, the same number in each entry: the product has no formula in t. Before the first step it is zero.

    Dozat, 2016
    """
    g = times(g, factor)
    xp = namespace(g)
    if decay:
        g = g + decay * theta
    # On the device whether or not the step is recorded for replay: the same arithmetic gives the same bits.
    t, rate = scalar_like(step, g), scalar_like(lr, g)
    mu, mu_next = (beta1 * (1 - 0.5 * xp.exp(momentum_decay * math.log(0.96) * i)) for i in (t, t + 1))
    m[...] = flush(beta1 * m + (1 - beta1) * g)
    v[...] = flush_square(beta2 * v + (1 - beta2) * (g * g))
    c[...] = mu * c + (1 - mu)
    corrected = mu_next * m / (mu_next * c + (1 - mu_next)) + (1 - mu) * g / c
    correction = -xp.expm1(math.log(beta2) * t) if beta2 else 1.0  # 1 - β₂ᵗ, which float32 would round
    theta[...] = theta - rate * corrected / (xp.sqrt(v) / correction**0.5 + eps)


@primitive(writes=("theta", "m"))
def lion(g: Array, factor: Scalar, lr: Scalar, beta1: float, beta2: float, decay: float, theta: Array, m: Array) -> None:
    """θ -= lr (sign(β₁ m + (1 - β₁) g) + λ θ); m = β₂ m + (1 - β₂) g.

    Chen et al., 2023
    """
    g = times(g, factor)
    direction = namespace(g).sign(beta1 * m + (1 - beta1) * g)
    theta[...] = theta - lr * (direction + decay * theta if decay else direction)
    m[...] = flush(beta2 * m + (1 - beta2) * g)


def scaled_square(g: Array) -> tuple[Array, Array]:
    """(a, b), scalars with ‖g‖² = a² b: a is max |g|, but neither 0 nor infinite, so b is ∞ or NaN where an entry is."""
    xp, least = namespace(g), smallest_normal(g)
    size = xp.clip(xp.max(xp.abs(g)) if g.shape[0] else xp.sum(g), least, 1 / least)
    x = g / size
    return size, xp.sum(x * x)


@primitive()
def squared_norm(g: Array) -> Array:
    """‖g‖², a scalar on the device: float64 where the device has it, since float32 ends at (2e19)²."""
    xp = namespace(g)
    size, square = scaled_square(g)
    if getattr(device(g), "type", "") not in WITHOUT_FLOAT64:
        size, square = xp.astype(size, xp.float64), xp.astype(square, xp.float64)
    return size * size * square


@primitive(writes=("gradient",))
def gathered(scaled: Array, S: Scalar, gradient: Array) -> Array:
    """Writes scaled / S to `gradient`, which may be `scaled`, in its dtype. Returns ‖gradient‖², see `squared_norm`."""
    gradient[...] = namespace(scaled).astype(scaled, gradient.dtype) / S
    return squared_norm(gradient)


@primitive()
def clip_factor(g: Array, square: Scalar, largest: float) -> Scalar:
    """The factor that scales g to a norm of at most `largest`; NaN if the norm is not finite. square: ‖g‖², a scalar."""
    xp = namespace(g)
    norm = xp.sqrt(square)
    if square.dtype == g.dtype:  # `square` may overflow where the norm does not
        size, relative = scaled_square(g)
        norm = xp.where(xp.isfinite(norm), norm, size * xp.sqrt(relative))
    factor = largest / xp.maximum(norm, xp.full_like(norm, largest))
    return xp.where(xp.isfinite(norm), factor, xp.full_like(norm, math.nan))


@primitive(writes=("state",))
def rescale(square: Array, factor: Scalar, interval: int, least: float, most: float, state: Array) -> Array:
    """`factor`, or 0 if `square` is not finite, a scalar. Writes the next scale of the loss to `state`.

    state: the scale S, and the number of steps in a row whose `square` was finite. S is halved if it is not, and doubled after
    `interval` steps, between `least` and `most`.
    """
    xp = namespace(state)
    S, good, finite = state[0, ...], state[1, ...], xp.isfinite(square)
    count = masked(good + 1, finite)
    double = count >= interval
    up = xp.where(double, xp.minimum(S * 2, xp.full_like(S, most)), S)
    state[0, ...] = xp.where(finite, up, xp.maximum(S / 2, xp.full_like(S, least)))
    state[1, ...] = masked(count, ~double)
    return masked(factor if is_array(factor) else xp.full_like(square, factor), finite)
