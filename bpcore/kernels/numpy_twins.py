"""Twins for NumPy arrays: results written in place (`out=`), and passes over long vectors in blocks that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bpcore.functional import losses, updates
from bpcore.functional.arithmetic import smallest_normal

ARRAY = np.ndarray
BLOCK = 32768  # numbers: θ, g and two moments of it, and the scratch, lie in a second-level cache together
FLUSH_EVERY = 16  # steps: from the threshold, a moment takes longer than that to become subnormal


def flush_in_place(x):
    """`flush`, on an array that the caller made."""
    np.multiply(x, np.abs(x) >= math.sqrt(smallest_normal(x)), out=x)
    return x


def linear(z, W, b):
    u = np.matmul(z if z.ndim == 2 else z.reshape(-1, z.shape[-1]), W)
    if b is not None:
        np.add(u, b, out=u)
    return u if z.ndim == 2 else u.reshape(*z.shape[:-1], W.shape[1])


def linear_backward(z, W, v, dW, db, need_dz):
    shape = z.shape
    if z.ndim != 2:
        z, v = z.reshape(-1, shape[-1]), v.reshape(-1, v.shape[-1])
    np.matmul(z.T, v, out=dW)
    if db is not None:
        np.add.reduce(v, axis=0, out=db)
    if not need_dz:
        return None
    dz = np.matmul(v, W.T)
    return dz if len(shape) == 2 else dz.reshape(shape)


def relu(z):
    return np.maximum(z, 0)


def relu_backward(u, v):
    return np.multiply(v, u > 0)


def cross_entropy(t, y, weights, smoothing):
    if t.ndim != 2 or y.ndim != 1 or smoothing:
        return losses.cross_entropy.definition(t, y, weights, smoothing)
    phi = np.subtract(t, np.maximum.reduce(t, axis=1, keepdims=True))
    own = phi[np.arange(len(y)), y]
    np.exp(phi, out=phi)
    total = np.add.reduce(phi, axis=1, keepdims=True)
    np.divide(phi, total, out=phi)
    ell = np.log(total[:, 0])
    np.subtract(ell, own, out=ell)
    return (np.add.reduce(ell) / len(ell) if weights is None else losses.weighted_mean(ell, weights)), phi


def cross_entropy_backward(phi, y, weights, smoothing, v):
    if phi.ndim != 2 or y.ndim != 1 or smoothing:
        return losses.cross_entropy_backward.definition(phi, y, weights, smoothing, v)
    dt = phi.copy()
    dt[np.arange(len(y)), y] -= 1
    np.multiply(dt, losses.share(v, weights, y.shape, 2), out=dt)
    return flush_in_place(dt)


def squared_norm(g):
    return np.dot(g, g)


def clip_norm(g, square, largest, clipped):
    np.multiply(g, largest / max(math.sqrt(square), largest), out=clipped)


def in_blocks(update):
    """The definition of an update, a block of its vectors at a time: what it computes on the way stays in cache."""

    def twin(*args):
        for i in range(0, len(args[0]), BLOCK):
            update.definition(*(x[i : i + BLOCK] if isinstance(x, np.ndarray) else x for x in args))

    return twin


sgd, rmsprop, adagrad, lion = map(in_blocks, (updates.sgd, updates.rmsprop, updates.adagrad, updates.lion))


def blocks(*vectors) -> Iterator[tuple]:
    """The vectors in pieces of BLOCK numbers, with a scratch array of that length last."""
    n = len(vectors[0])
    scratch = np.empty(min(n, BLOCK), vectors[0].dtype)
    if n <= BLOCK:
        yield (*vectors, scratch)
        return
    for i in range(0, n, BLOCK):
        piece = slice(i, i + BLOCK)
        yield (*(x[piece] for x in vectors), scratch[: n - i])


def flush_square_in_place(v):
    """`flush_square`, in place."""
    np.multiply(v, v >= updates.SQUARES * smallest_normal(v), out=v)


def adam(g, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
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
