"""The module MM: the bias is added in place."""

from __future__ import annotations

import numpy as np

from bpcore.functional.linear import linear, linear_add, linear_backward, linear_relu
from bpcore.functional.numerics import PART, sum_over
from bpcore.kernels.numpy.engine.blocks import ONES, ZEROS
from bpcore.primitive import twin

SMALL = 8192  # entries of a product up to which a.dot, which calls BLAS sooner, is faster than np.matmul


def product(a, b, out):
    """Writes a @ b to out. a.dot does not take every out."""
    if out.size <= SMALL and out.flags.carray and out.dtype == a.dtype:
        a.dot(b, out)
    else:
        np.matmul(a, b, out=out)


def fresh_product(a, b):
    """a @ b, in a new array."""
    return a.dot(b) if len(a) * b.shape[1] <= SMALL else np.matmul(a, b)


def add_rows(v, db):
    """Writes the sum of the rows of v to db."""
    ones = ONES.get(v.dtype)
    if len(v) <= PART and ones is not None:
        product(ones[: len(v)], v, db)
    else:
        db[...] = sum_over(v, 0)


@twin(linear)
def _linear(z, W, b):
    u = fresh_product(z if z.ndim == 2 else z.reshape(-1, z.shape[-1]), W)
    if b is not None:
        np.add(u, b, out=u)
    return u if z.ndim == 2 else u.reshape(*z.shape[:-1], W.shape[1])


def like_u(z, W, b, x):
    """Whether the sum of x and u = z W + b has u's shape and dtype."""
    return x.shape == (*z.shape[:-1], W.shape[1]) and x.dtype == z.dtype == W.dtype


@twin(linear_add, serves=like_u)
def _(z, W, b, x):
    u = linear(z, W, b)
    return np.add(x, u, out=u)


@twin(linear_backward)
def _(z, W, v, dW, db, need_dz):
    shape = z.shape
    if z.ndim != 2:
        z, v = z.reshape(-1, shape[-1]), v.reshape(-1, v.shape[-1])
    product(z.T, v, dW)
    if db is not None:
        add_rows(v, db)
    if not need_dz:
        return None
    dz = fresh_product(v, W.T)
    return dz if len(shape) == 2 else dz.reshape(shape)


@twin(linear_relu)
def _(z, W, b):
    u = _linear(z, W, b)
    return np.maximum(u, ZEROS.get(u.dtype, 0), out=u)
