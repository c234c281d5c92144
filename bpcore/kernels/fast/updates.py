"""Updates of optimisers in one pass over the vectors, and the norm of the gradient."""

from __future__ import annotations

import math

import numpy as np
from numba.extending import register_jitable

from bpcore.functional.numerics import smallest_normal
from bpcore.functional.updates import SQUARES, adagrad, adam, lion, nadam, rmsprop, sgd, squared_norm
from bpcore.kernels.conditions import COMPILED
from bpcore.kernels.fast.engine.arrays import flush_threshold, flushed
from bpcore.kernels.fast.engine.threads import compiled, share, team
from bpcore.kernels.numpy.updates import checked_square
from bpcore.primitive import twin

BLOCK = 1 << 14  # numbers that one thread sums: the sum does not depend on the number of threads


def flush_square_threshold(g):
    """The number below which second moments are set to 0, in the dtype of g."""
    return g.dtype.type(SQUARES * smallest_normal(g))


def in_dtype_of(g, *values):
    """The values in the dtype of g: with a wider one, the whole pass would compute in the wider dtype."""
    return tuple(map(g.dtype.type, values))


@register_jitable
def decayed(g, decay, theta):
    """g + λ θ; g where λ = 0, since 0 times an infinite θ is NaN. The compiler takes the branch out of the loop."""
    return g + decay * theta if decay != 0 else g


@register_jitable(fastmath=False)  # the product is rounded before it is used, as if it had been stored
def times(g, factor):
    """g times a factor of its dtype; 0 where the factor is 0."""
    return g * factor if factor != 0 else factor


@compiled
def _sgd(start, stop, g, factor, theta, lr, decay):
    g, theta = g[start:stop], theta[start:stop]
    for i in range(g.shape[0]):
        theta[i] -= lr * decayed(times(g[i], factor), decay, theta[i])


@compiled
def _momentum(start, stop, g, factor, theta, m, lr, decay, mu, factor_g, factor_m, least):
    g, theta, m = g[start:stop], theta[start:stop], m[start:stop]
    for i in range(g.shape[0]):
        d = decayed(times(g[i], factor), decay, theta[i])
        new = flushed(mu * m[i] + d, least)
        m[i] = new
        theta[i] -= lr * decayed(factor_m * new, factor_g, d)


@compiled
def _run_sgd(g, factor, theta, lr, decay):
    share(_sgd, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, lr, decay))


@compiled
def _run_momentum(g, factor, theta, m, lr, decay, mu, factor_g, factor_m, least):
    share(_momentum, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, m, lr, decay, mu, factor_g, factor_m, least))


@twin(sgd, serves=COMPILED.dense)
def _(g, factor, lr, momentum, nesterov, decay, theta, m):
    if m is None:
        _run_sgd(g, factor, theta, *in_dtype_of(g, lr, decay))
    else:  # θ -= lr (g + μ m) with Nesterov's momentum, else lr m
        factor_g, factor_m = (1.0, momentum) if nesterov else (0.0, 1.0)
        _run_momentum(g, factor, theta, m, *in_dtype_of(g, lr, decay, momentum, factor_g, factor_m), flush_threshold(g))


@compiled
def _adaptive(start, stop, g, factor, theta, v, lr, decay, rho, fresh, eps, least):
    g, theta, v = g[start:stop], theta[start:stop], v[start:stop]
    for i in range(g.shape[0]):
        d = decayed(times(g[i], factor), decay, theta[i])
        v[i] = flushed(rho * v[i] + fresh * (d * d), least)
        theta[i] -= lr * d / (np.sqrt(v[i]) + eps)


@compiled
def _run_adaptive(g, factor, theta, v, lr, decay, rho, fresh, eps, least):
    share(_adaptive, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, v, lr, decay, rho, fresh, eps, least))


@twin(rmsprop, serves=COMPILED.dense)
def _(g, factor, lr, rho, eps, decay, theta, v):
    _run_adaptive(g, factor, theta, v, *in_dtype_of(g, lr, decay, rho, 1 - rho, eps), flush_square_threshold(g))


@twin(adagrad, serves=COMPILED.dense)
def _(g, factor, lr, eps, decay, theta, v):
    _run_adaptive(g, factor, theta, v, *in_dtype_of(g, lr, decay, 1.0, 1.0, eps), flush_square_threshold(g))


@compiled
def _adam(start, stop, g, factor, theta, m, v, rate, fade, decay, beta1, fresh1, beta2, fresh2, eps, least_m, least_v):
    g, theta, m, v = g[start:stop], theta[start:stop], m[start:stop], v[start:stop]
    for i in range(g.shape[0]):
        d = decayed(times(g[i], factor), decay, theta[i])
        first = flushed(beta1 * m[i] + fresh1 * d, least_m)
        second = flushed(beta2 * v[i] + fresh2 * (d * d), least_v)
        m[i] = first
        v[i] = second
        theta[i] -= decayed(rate * first / (np.sqrt(second) + eps), fade, theta[i])


@compiled
def _run_adam(g, factor, theta, m, v, rate, fade, decay, beta1, fresh1, beta2, fresh2, eps, least_m, least_v):
    # in the dtype of g: with a wider one, the whole pass would compute in the wider dtype
    number = g.dtype.type
    rates = (number(rate), number(fade), number(decay))
    moments = (number(beta1), number(fresh1), number(beta2), number(fresh2), number(eps), number(least_m), number(least_v))
    share(_adam, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, m, v, *rates, *moments))


@twin(adam, serves=COMPILED.dense)
def _(g, factor, step, lr, beta1, beta2, eps, decay, decoupled, theta, m, v):
    # θ -= lr / (1 - β₁ᵗ) · m / (√v / root + ε), with numerator and denominator multiplied by root
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)
    fade = lr * decay if decoupled else 0.0
    coupled = 0.0 if decoupled else decay
    smallest = smallest_normal(g)
    constants = rate, fade, coupled, beta1, 1 - beta1, beta2, 1 - beta2, eps * root
    _run_adam(g, factor, theta, m, v, *constants, math.sqrt(smallest), SQUARES * smallest)


@compiled
def _nadam(start, stop, g, factor, theta, m, v, c, rates, moments, momenta, least):
    (rate, decay, eps), (beta1, fresh1, beta2, fresh2), (mu, fresh, mu_next, fresh_next) = rates, moments, momenta
    g, theta, m, v, c = g[start:stop], theta[start:stop], m[start:stop], v[start:stop], c[start:stop]
    for i in range(g.shape[0]):
        d = decayed(times(g[i], factor), decay, theta[i])
        first = flushed(beta1 * m[i] + fresh1 * d, least[0])
        second = flushed(beta2 * v[i] + fresh2 * (d * d), least[1])
        passed = mu * c[i] + fresh
        m[i] = first
        v[i] = second
        c[i] = passed
        corrected = mu_next * first / (mu_next * passed + fresh_next) + fresh * d / passed
        theta[i] -= rate * corrected / (np.sqrt(second) + eps)


@compiled
def _run_nadam(g, factor, theta, m, v, c, rates, moments, momenta, least):
    share(_nadam, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, m, v, c, rates, moments, momenta, least))


def dense_vectors(g, /, *others):
    """Whether the vectors are dense; the numbers may be arrays."""
    return COMPILED.dense(g, *others[-4:])


@twin(nadam, serves=dense_vectors)
def _(g, factor, step, lr, beta1, beta2, eps, decay, momentum_decay, theta, m, v, c):
    step, lr = int(step), float(lr)
    # θ -= lr m̂ / (√v / root + ε), with numerator and denominator multiplied by root
    root = math.sqrt(1 - beta2**step)
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (momentum_decay * t)) for t in (step, step + 1))
    rates, moments = in_dtype_of(g, lr * root, decay, eps * root), in_dtype_of(g, beta1, 1 - beta1, beta2, 1 - beta2)
    momenta = in_dtype_of(g, mu, 1 - mu, mu_next, 1 - mu_next)
    _run_nadam(g, factor, theta, m, v, c, rates, moments, momenta, (flush_threshold(g), flush_square_threshold(g)))


@compiled
def _lion(start, stop, g, factor, theta, m, lr, decay, beta1, fresh1, beta2, fresh2, least):
    g, theta, m = g[start:stop], theta[start:stop], m[start:stop]
    for i in range(g.shape[0]):
        d = times(g[i], factor)
        theta[i] -= lr * decayed(np.sign(beta1 * m[i] + fresh1 * d), decay, theta[i])
        m[i] = flushed(beta2 * m[i] + fresh2 * d, least)


@compiled
def _run_lion(g, factor, theta, m, lr, decay, beta1, fresh1, beta2, fresh2, least):
    share(_lion, g.shape[0], team(g, g.size), (g, g.dtype.type(factor), theta, m, lr, decay, beta1, fresh1, beta2, fresh2, least))


@twin(lion, serves=COMPILED.dense)
def _(g, factor, lr, beta1, beta2, decay, theta, m):
    _run_lion(g, factor, theta, m, *in_dtype_of(g, lr, decay, beta1, 1 - beta1, beta2, 1 - beta2), flush_threshold(g))


@compiled
def _squares(start, stop, g, sums):
    for k in range(start, stop):
        block = g[k * BLOCK : (k + 1) * BLOCK]
        total = g.dtype.type(0)
        for i in range(block.shape[0]):
            total += block[i] * block[i]
        sums[k] = total


@compiled
def _squared_norm(g, sums):
    share(_squares, sums.shape[0], team(g, g.size), (g, sums))
    total = g.dtype.type(0)
    for k in range(sums.shape[0]):
        total += sums[k]
    return total


@twin(squared_norm, serves=COMPILED.dense)
def _(g):
    return checked_square(_squared_norm(g, np.empty(-(-g.size // BLOCK), g.dtype)), g)
