"""Twins for NumPy arrays: results written in place (`out=`), and passes over long vectors in blocks that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bpcore.backend import is_half
from bpcore.functional import activations, losses, sequences, updates
from bpcore.functional.arithmetic import smallest_normal
from bpcore.kernels import serves
from bpcore.kernels.numpy_images import (  # noqa: F401  twins are found here by name
    avg_pool2d,
    avg_pool2d_backward,
    conv2d,
    conv2d_backward,
    max_pool2d,
    max_pool2d_backward,
)

ARRAY = np.ndarray


def report():
    """For `bp.backend_info()`."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"products": f"NumPy's BLAS, {blas.get('name')} {blas.get('version')}, with threads of its own"}


def wide(first, *others):
    """Whether the first array is not float16, in which NumPy adds up too coarsely: definitions go over float32."""
    return not is_half(first)


BLOCK = 32768  # numbers: θ, g and two moments of it, and the scratch, lie in a second-level cache together
FLUSH_EVERY = 16  # steps: from the threshold, a moment takes longer than that to become subnormal


def flush_in_place(x):
    """`flush`, on an array that the caller made."""
    return x if is_half(x) else np.multiply(x, np.abs(x) >= math.sqrt(smallest_normal(x)), out=x)


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
        np.add.reduce(v, axis=0, dtype=np.float32 if is_half(v) else None, out=db)
    if not need_dz:
        return None
    dz = np.matmul(v, W.T)
    return dz if len(shape) == 2 else dz.reshape(shape)


def relu(z):
    return np.maximum(z, 0)


def relu_backward(u, v):
    return np.multiply(v, u > 0)


def linear_relu(z, W, b):
    u = linear(z, W, b)
    return np.maximum(u, 0, out=u)


# Φ(-a) = e^(-a²/2) t P(t) with t = 1 / (1 + TAIL_RATE a), a from 0 to FAR; P, highest power first, was fitted by weighted
# least squares for an error below 1.2e-7 of Φ(-a): that of float32's rounding.
TAIL_RATE, FAR = 0.3, 12.5  # beyond FAR, what is left is flushed to zero
TAIL = (0.0361950307, -0.159378986, 0.210119467, -0.0571682769, 0.130416898, 0.099347, 0.120845549, 0.119623262)


def gaussian_tail(z, a, e, q):
    """Writes a = min(|z|, FAR), e = e^(-a²/2) and q = Φ(-a). float32."""
    np.clip(np.abs(z, out=a), 0, FAR, out=a)
    t = np.multiply(a, TAIL_RATE, out=e)
    np.add(t, 1, out=t)
    np.divide(1, t, out=t)
    np.multiply(t, TAIL[0], out=q)
    for c in TAIL[1:]:
        np.add(q, c, out=q)
        np.multiply(q, t, out=q)
    np.multiply(a, a, out=e)
    np.multiply(e, -0.5, out=e)
    np.exp(e, out=e)
    np.multiply(q, e, out=q)


def elementwise(in_block, definition):
    """The twin that runs `in_block(*inputs, u, a, e)`, a and e being scratch, on blocks of float32; the definition on others'."""

    def twin(*inputs):
        flat, u = [x.reshape(-1) for x in inputs], np.empty(inputs[0].size, inputs[0].dtype)
        second = np.empty(min(u.size, BLOCK), u.dtype)
        for *piece, u_block, first in blocks(*flat, u):
            if u.dtype == np.float32:
                in_block(*piece, u_block, first, second[: first.size])
            else:
                u_block[...] = definition(*piece)
        return u.reshape(inputs[0].shape)

    return twin


def gelu_block(z, u, a, e):
    """z Φ(z) = max(z, 0) - a Φ(-a)."""
    gaussian_tail(z, a, e, u)
    np.multiply(u, a, out=u)
    np.clip(z, 0, None, out=a)
    flush_in_place(np.subtract(a, u, out=u))


def gelu_backward_block(z, v, u, a, e):
    """(Φ(z) + z φ(z)) v = (½ + ½ s - s (Φ(-a) - a φ(a))) v, s = sign(z)."""
    gaussian_tail(z, a, e, u)
    np.multiply(a, e, out=a)
    np.multiply(a, 1 / math.sqrt(2 * math.pi), out=a)
    np.subtract(u, a, out=u)
    s = np.sign(z, out=a)
    np.multiply(u, s, out=u)
    np.multiply(s, 0.5, out=s)
    np.add(s, 0.5, out=s)
    np.subtract(s, u, out=u)
    flush_in_place(np.multiply(u, v, out=u))


gelu = elementwise(gelu_block, activations.gelu.definition)
gelu_backward = elementwise(gelu_backward_block, activations.gelu_backward.definition)


@serves(wide)
def layer_norm(z, gamma, beta, eps):
    n = z.shape[-1]
    mean = np.add.reduce(z, axis=-1, keepdims=True)
    np.divide(mean, n, out=mean)
    u = np.subtract(z, mean)
    scale = np.vecdot(u, u)[..., None]
    np.divide(scale, n, out=scale)
    np.add(scale, eps, out=scale)
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)
    for factor in (scale, gamma):
        np.multiply(u, factor, out=u)
    return np.add(u, beta, out=u), mean, scale


@serves(wide)
def layer_norm_backward(z, mean, scale, gamma, v, dgamma, dbeta, need_dz):
    n = z.shape[-1]
    x = np.subtract(z, mean)
    np.multiply(x, scale, out=x)
    w = np.multiply(v, x)
    np.add.reduce(w.reshape(-1, n), axis=0, out=dgamma)
    np.add.reduce(v.reshape(-1, n), axis=0, out=dbeta)
    if not need_dz:
        return None
    np.multiply(x, np.matmul(w, gamma)[..., None] / n, out=x)  # x mean(γ v x)
    np.multiply(v, gamma, out=w)
    np.subtract(w, np.matmul(v, gamma)[..., None] / n, out=w)
    np.subtract(w, x, out=w)
    return np.multiply(w, scale, out=w)


@serves(wide)
def scatter_add(v, index, out):
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))[: index.size]  # of each id that is there
    out[...] = 0
    out[index[starts]] = np.add.reduceat(v[order], starts, axis=0)


def attention_scores(q, k, seen):
    scores = np.matmul(q * (1 / math.sqrt(q.shape[-1])), k.swapaxes(-1, -2))
    return scores if seen is None else np.add(scores, (seen - 1) * 1e9, out=scores)


@serves(wide)
def attention(qkv, heads, causal, padding, keep, p):
    q, k, values = sequences.unpack(qkv, heads)
    seen = sequences.visible(qkv.shape[1], causal, padding, qkv)
    A = attention_scores(q, k, seen)
    largest = np.maximum.reduce(A, axis=-1, keepdims=True)
    np.exp(np.subtract(A, largest, out=A), out=A)
    total = np.add.reduce(A, axis=-1, keepdims=True)
    np.divide(A, total, out=A)
    L = largest + np.log(total)
    if padding is not None:
        some = np.maximum.reduce(seen, axis=-1, keepdims=True)
        np.multiply(L, some, out=L)
        if not some.all():
            np.multiply(A, some, out=A)
    flush_in_place(A)
    if keep is not None:
        drop_in_place(A, keep, p)
    return sequences.join_heads(np.matmul(A, values)), L[..., 0]


@serves(wide)
def attention_backward(qkv, heads, causal, padding, keep, p, u, L, v):
    q, k, values = sequences.unpack(qkv, heads)
    A = attention_scores(q, k, sequences.visible(qkv.shape[1], causal, padding, qkv))
    flush_in_place(np.exp(np.subtract(A, L[..., None], out=A), out=A))
    mean = np.add.reduce(sequences.split_heads(u * v, heads), axis=-1, keepdims=True)
    v = sequences.split_heads(v, heads)
    d = np.matmul(v, values.swapaxes(-1, -2))
    if keep is not None:
        drop_in_place(d, keep, p)
    np.multiply(np.subtract(d, mean, out=d), A, out=d)
    flush_in_place(np.multiply(d, 1 / math.sqrt(q.shape[-1]), out=d))
    if keep is not None:
        drop_in_place(A, keep, p)
    return sequences.pack(np.matmul(d, k), np.matmul(d.swapaxes(-1, -2), q), np.matmul(A.swapaxes(-1, -2), v))


def drop_in_place(A, keep, p):
    """Dropout, on an array that the caller made."""
    np.multiply(A, keep, out=A)
    np.multiply(A, 1 / (1 - p), out=A)


def cross_entropy(t, y, weights, smoothing):
    if t.ndim < 2 or y.ndim != t.ndim - 1 or smoothing:
        return losses.cross_entropy.definition(t, y, weights, smoothing)
    phi = np.subtract(t, np.maximum.reduce(t, axis=-1, keepdims=True))
    rows, y = phi.reshape(-1, t.shape[-1]), y.reshape(-1)
    own = rows[np.arange(len(y)), y]
    np.exp(phi, out=phi)
    total = np.add.reduce(phi, axis=-1, keepdims=True)
    np.divide(phi, total, out=phi)
    ell = np.log(total.reshape(-1))
    np.subtract(ell, own, out=ell)
    return (np.add.reduce(ell) / len(ell) if weights is None else losses.weighted_mean(ell, weights.reshape(-1))), phi


def cross_entropy_backward(phi, y, weights, smoothing, v):
    if phi.ndim < 2 or y.ndim != phi.ndim - 1 or smoothing:
        return losses.cross_entropy_backward.definition(phi, y, weights, smoothing, v)
    dt = phi.reshape(-1, phi.shape[-1]).copy()
    y, weights = y.reshape(-1), None if weights is None else weights.reshape(-1)
    dt[np.arange(len(y)), y] -= 1
    np.multiply(dt, losses.share(v, weights, y.shape, 2), out=dt)
    return flush_in_place(dt).reshape(phi.shape)


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
