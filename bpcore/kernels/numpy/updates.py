"""Optimisers' updates in blocks, and the norm of the gradient."""

from __future__ import annotations

import math

import numpy as np

from bpcore.functional.numerics import smallest_normal
from bpcore.functional.updates import SQUARES, adagrad, adam, clip_norm, lion, rmsprop, sgd, squared_norm
from bpcore.kernels.numpy.blocks import BLOCK, blocks, flush_in_place
from bpcore.primitive import definition, twin

FLUSH_EVERY = 16  # steps: from the threshold, a moment takes longer than that to become subnormal


@twin(squared_norm)
def _(g):
    return np.dot(g, g)


@twin(clip_norm)
def _(g, square, largest, clipped):
    np.multiply(g, largest / max(math.sqrt(square), largest), out=clipped)


def in_blocks(update):
    """Register an update's definition, run block by block: what it computes on the way stays in the cache."""
    run = definition(update)

    @twin(update)
    def _(g, /, *rest):
        for i in range(0, len(g), BLOCK):
            run(g[i : i + BLOCK], *(x[i : i + BLOCK] if isinstance(x, np.ndarray) else x for x in rest))


for _update in (sgd, rmsprop, adagrad, lion):
    in_blocks(_update)


def flush_square_in_place(v):
    """`flush_square`, in place."""
    np.multiply(v, v >= SQUARES * smallest_normal(v), out=v)


@twin(adam)
def _(g, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    root = math.sqrt(1 - beta2**step)
    # θ -= lr / c₁ · m / (√v / root + ε), with numerator and denominator times root
    rate, eps = lr * root / (1 - beta1**step), eps * root
    for g, theta, m, v, s in blocks(g, theta, m, v):
        if decay and decoupled:
            np.multiply(theta, 1 - lr * decay, out=theta)
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
