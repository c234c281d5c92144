"""Updates of optimisers in blocks, and the norm of the gradient."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.numerics import smallest_normal
from bpcore.functional.updates import SQUARES, adagrad, adam, clip_factor, lion, rmsprop, sgd, squared_norm, times
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


def register_in_blocks(update):
    """Register a twin that runs the definition of an update on blocks: intermediate results stay in the cache."""
    run = definition(update)

    @twin(update)
    def _(g, /, *rest):
        for i in range(0, len(g), BLOCK):
            run(g[i : i + BLOCK], *(x[i : i + BLOCK] if isinstance(x, np.ndarray) else x for x in rest))


for _update in (sgd, rmsprop, adagrad, lion):
    register_in_blocks(_update)


def flush_square_in_place(v):
    """`flush_square` of v, in place."""
    np.multiply(v, v >= SQUARES * smallest_normal(v), out=v)


@twin(adam)
def _(g, factor, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    # θ -= lr / (1 - β₁ᵗ) · m / (√v / root + ε), with numerator and denominator multiplied by root
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)
    eps = eps * root
    for g, theta, m, v, s in blocks(g, theta, m, v):
        if factor != 1:
            g = times(g, factor)
        if decay and decoupled:
            np.multiply(theta, lr * decay, out=s)
            np.subtract(theta, s, out=theta)
        elif decay:
            np.multiply(theta, decay, out=s)
            g = np.add(g, s)
        np.multiply(m, beta1, out=m)
        np.multiply(g, 1 - beta1, out=s)
        np.add(m, s, out=m)
        np.multiply(v, beta2, out=v)
        np.multiply(g, g, out=s)
        np.multiply(s, 1 - beta2, out=s)
        np.add(v, s, out=v)
        if step % FLUSH_EVERY == 0:
            flush_in_place(m)
            flush_square_in_place(v)
        np.sqrt(v, out=s)
        np.add(s, eps, out=s)
        np.divide(m, s, out=s)
        np.multiply(s, rate, out=s)
        np.subtract(theta, s, out=theta)
