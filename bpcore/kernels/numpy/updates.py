"""Updates of optimisers in blocks, and the norm of the gradient."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.numerics import smallest_normal
from bpcore.functional.updates import SQUARES, adagrad, adam, clip_factor, lion, nadam, rmsprop, sgd, squared_norm, times
from bpcore.kernels.numpy.engine.blocks import BLOCK, blocks, flush_in_place
from bpcore.primitive import definition, twin

LEAST = 1e-30  # sums of squares below it are computed again: squares may have underflowed
FLUSH_EVERY = 16  # steps: a moment at the threshold needs more steps than that to decay to a subnormal number


def checked_square(square, g):
    """`square`, ‖g‖² computed in the dtype of g, as float64; computed again if it overflowed, or lost digits of small numbers."""
    square = float(square)
    return np.float64(square) if LEAST < square < math.inf else definition(squared_norm)(g)


@twin(squared_norm)
def _(g):
    return checked_square(np.dot(g, g), g)


def finite_square(g, square, largest):
    """Whether `square` did not overflow."""
    return square < math.inf


@twin(clip_factor, serves=finite_square)
def _(g, square, largest):
    return largest / max(math.sqrt(square), largest)


@twin(nadam)
def _(g, /, *rest):
    run = definition(nadam)
    for i in range(0, len(g), BLOCK):
        run(g[i : i + BLOCK], *(x[i : i + BLOCK] if isinstance(x, np.ndarray) and x.ndim else x for x in rest))


def blocks_with_two(*vectors):
    """`blocks` with two scratch arrays."""
    second = np.empty(min(len(vectors[0]), BLOCK), vectors[0].dtype)
    for *block, s in blocks(*vectors):
        yield *block, s, second[: len(s)]


def decayed(g, factor, decay, theta, s):
    """g times the factor, plus λ θ, which is written to s."""
    if factor != 1:
        g = times(g, factor)
    return np.add(g, np.multiply(theta, decay, out=s), out=s) if decay else g


def flush_square_in_place(v):
    """`flush_square` of v, in place, in one pass where there is nothing to flush."""
    least = SQUARES * smallest_normal(v)
    if not np.minimum.reduce(v, initial=least) >= least:
        np.multiply(v, v >= least, out=v)


@twin(sgd)
def _(g, factor, lr, momentum, nesterov, decay, theta, m):
    for g, theta, *moments, s, t in blocks_with_two(g, theta, *(() if m is None else (m,))):
        g = decayed(g, factor, decay, theta, s)
        for m in moments:
            flush_in_place(np.add(np.multiply(m, momentum, out=m), g, out=m), t)
            g = np.add(g, np.multiply(m, momentum, out=t), out=t) if nesterov else m
        np.subtract(theta, np.multiply(g, lr, out=s), out=theta)


def step_over_root(g, lr, eps, theta, v, s, t):
    """θ -= lr g / (√v + ε). s, which may be g, and t are scratch."""
    np.add(np.sqrt(v, out=t), eps, out=t)
    np.subtract(theta, np.divide(np.multiply(g, lr, out=s), t, out=s), out=theta)


@twin(rmsprop)
def _(g, factor, lr, rho, eps, decay, theta, v):
    for g, theta, v, s, t in blocks_with_two(g, theta, v):
        g = decayed(g, factor, decay, theta, s)
        np.multiply(np.multiply(g, g, out=t), 1 - rho, out=t)
        np.add(np.multiply(v, rho, out=v), t, out=v)
        flush_square_in_place(v)
        step_over_root(g, lr, eps, theta, v, s, t)


@twin(adagrad)
def _(g, factor, lr, eps, decay, theta, v):
    for g, theta, v, s, t in blocks_with_two(g, theta, v):
        g = decayed(g, factor, decay, theta, s)
        np.add(v, np.multiply(g, g, out=t), out=v)
        flush_square_in_place(v)
        step_over_root(g, lr, eps, theta, v, s, t)


@twin(lion)
def _(g, factor, lr, beta1, beta2, decay, theta, m):
    for g, theta, m, s, t in blocks_with_two(g, theta, m):
        g = decayed(g, factor, 0.0, theta, s)
        np.add(np.multiply(m, beta1, out=t), np.multiply(g, 1 - beta1, out=s), out=t)
        direction = np.sign(t, out=s)  # in place it takes five times as long
        if decay:
            np.add(direction, np.multiply(theta, decay, out=t), out=direction)
        np.subtract(theta, np.multiply(direction, lr, out=direction), out=theta)
        flush_in_place(np.add(np.multiply(m, beta2, out=m), np.multiply(g, 1 - beta2, out=s), out=m), s)


@twin(adam)
def _(g, factor, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    # θ -= lr / (1 - β₁ᵗ) · m / (√v / root + ε), with numerator and denominator multiplied by root
    # outputs go by position: a call takes 0.05 us less
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)
    eps = eps * root
    for g, theta, m, v, s in blocks(g, theta, m, v):
        if factor != 1:
            g = times(g, factor)
        if decay and decoupled:
            np.multiply(theta, lr * decay, s)
            np.subtract(theta, s, theta)
        elif decay:
            np.multiply(theta, decay, s)
            g = np.add(g, s)
        np.multiply(m, beta1, m)
        np.multiply(g, 1 - beta1, s)
        np.add(m, s, m)
        np.multiply(v, beta2, v)
        np.multiply(g, g, s)
        np.multiply(s, 1 - beta2, s)
        np.add(v, s, v)
        if step % FLUSH_EVERY == 0:
            flush_in_place(m)
            flush_square_in_place(v)
        np.sqrt(v, s)
        np.add(s, eps, s)
        np.divide(m, s, s)
        np.multiply(s, rate, s)
        np.subtract(theta, s, theta)
