"""The module MM of section 7.4.3, rows as examples.

(7.84)
"""

from __future__ import annotations

from bpcore.array import Array, namespace
from bpcore.functional.activations import gelu_backward, relu, relu_backward
from bpcore.functional.arithmetic import add
from bpcore.functional.numerics import sum_over
from bpcore.primitive import primitive

__all__ = ["linear", "linear_add", "linear_backward", "linear_gelu_backward", "linear_relu", "linear_relu_backward"]


def rows(z: Array) -> Array:
    """Reshapes (..., m) to (n, m): one GEMM serves any leading axes."""
    return z if z.ndim == 2 else namespace(z).reshape(z, (-1, z.shape[-1]))


@primitive()
def linear(z: Array, W: Array, b: Array | None) -> Array:
    """MM: u = z W + b over the last axis.

    z (..., m), W (m, n), b (n,) or None, one real floating dtype. Returns u (..., n).

    section 7.4.3, rows as in (7.84)
    """
    xp = namespace(z)
    u = rows(z) @ W  # (rows, n)
    if b is not None:
        u = u + b
    return xp.reshape(u, (*z.shape[:-1], W.shape[1]))


@primitive(writes=("dW", "db"))
def linear_backward(z: Array, W: Array, v: Array, dW: Array, db: Array | None, need_dz: bool) -> Array | None:
    """B[MM, ·](v) for u = z W + b.

    z (..., m), W (m, n), v (..., n), one real floating dtype. Returns dz (..., m) = v Wᵀ, or None unless need_dz.
    Writes dW (m, n) = zᵀ v and, unless it is None, db (n,) = Σ v, both summed over examples.

    (7.63), (7.65), (7.66), rows as in 7.5
    """
    xp = namespace(z)
    v_rows = rows(v)
    dW[...] = rows(z).T @ v_rows
    if db is not None:
        db[...] = sum_over(v_rows, 0)
    return xp.reshape(v_rows @ W.T, z.shape) if need_dz else None


@primitive()
def linear_add(z: Array, W: Array, b: Array | None, x: Array) -> Array:
    """x + z W + b: MM and the sum with x (..., n) of a residual connection."""
    return add(x, linear(z, W, b))


@primitive()
def linear_relu(z: Array, W: Array, b: Array | None) -> Array:
    """max(z W + b, 0): MM and ReLU. A twin computes both in one pass.

    (7.72)
    """
    return relu(linear(z, W, b))


@primitive(writes=("dW", "db"))
def linear_relu_backward(z: Array, W: Array, u: Array, v: Array, dW: Array, db: Array | None, need_dz: bool) -> Array | None:
    """B[MM, ·](dt) with dt = B[ReLU, t](v) = 1{u > 0} ⊙ v. Shapes, results and written arrays are those of `linear_backward`.

    (7.73)
    """
    return linear_backward(z, W, relu_backward(u, v), dW, db, need_dz)


@primitive(writes=("dW", "db"))
def linear_gelu_backward(z: Array, W: Array, t: Array, v: Array, dW: Array, db: Array | None, need_dz: bool) -> Array | None:
    """B[MM, ·](dt) with dt = B[GELU, t](v), t = z W + b. Shapes, results and written arrays are those of `linear_backward`."""
    return linear_backward(z, W, gelu_backward(t, v), dW, db, need_dz)
