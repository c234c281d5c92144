"""GELU's two passes over blocks, and e^x by the faster of NumPy's functions."""

from __future__ import annotations

import math
import sys

import numpy as np

from bpcore.kernels.numpy.engine.blocks import flush_in_place

# Φ(-a) = e^(-a²/2) t P(t) with t = 1 / (1 + TAIL_RATE a) for 0 <= a <= FAR. The coefficients of P, from the highest power down,
# were fitted by weighted least squares; the relative error is below 1.2e-7, as large as rounding to float32.
TAIL_RATE = 0.3
FAR = 14.5  # beyond, e^(-a²/2) is 0 in float32
TAIL = (0.0361950307, -0.159378986, 0.210119467, -0.0571682769, 0.130416898, 0.099347, 0.120845549, 0.119623262)
# For 0 <= a <= NEAR, in fewer passes: Φ(-a) = e^L(a) and Φ(-a) - a φ(a) = (ROOT - a) e^M(a), with relative errors below 6e-6.
NEAR = 6.0
L = (-1.2717507e-6, 4.26958635e-5, -6.44984583e-4, 5.89719785e-3, -0.0374022249, -0.317783346, -0.797986397, -0.693143921)
ROOT = 0.75179152469
M = (
    5.50770198e-7, -1.68784327e-5, 2.27962511e-4, -1.8119691e-3, 9.62631806e-3, -0.0371431266, -0.389186907, -0.265475498,
    -0.407856049,
)  # fmt: skip
SIGN = np.int32(-(2**31))  # the bit of a float32's sign


def fast_exp2() -> bool:
    """Whether NumPy's exp2 of float32 takes vectors here: then it is faster than its exp."""
    try:
        current = np.lib.introspect.opt_func_info("^exp2$", "float32")["exp2"]["ff"]["current"]
    except (AttributeError, KeyError):  # before NumPy 2.2
        return False
    return sys.platform == "linux" and not current.startswith("baseline")  # elsewhere one by one all the same


EXP, PER_E = (np.exp2, math.log2(math.e)) if fast_exp2() else (np.exp, 1.0)  # e^x is EXP(PER_E x)


def exp_minus(z, out):
    """Writes e⁻ᶻ, infinite where that overflows, to out."""
    with np.errstate(over="ignore"):
        return EXP(np.multiply(z, -PER_E, out=out), out=out)


def gaussian_tail(a, e, q):
    """Brings a >= 0 down to FAR, and writes e^(-a²/2) to e and Φ(-a) to q. float32."""
    np.minimum(a, FAR, out=a)
    t = np.multiply(a, TAIL_RATE, out=e)
    np.reciprocal(np.add(t, 1, out=t), out=t)
    np.multiply(t, TAIL[0], out=q)
    for c in TAIL[1:]:
        np.multiply(np.add(q, c, out=q), t, out=q)
    np.multiply(a, a, out=e)
    np.multiply(q, np.exp(np.multiply(e, -0.5, out=e), out=e), out=q)


def near(a):
    """Whether all a are at most NEAR."""
    return np.maximum.reduce(a, axis=None, initial=0) <= NEAR


def exp_polynomial(a, coefficients, out):
    """Writes e^p(a) to out, p the polynomial with these coefficients, from the highest power down."""
    first, *between, last = (PER_E * c for c in coefficients)
    np.multiply(a, first, out=out)
    for c in between:
        np.multiply(np.add(out, c, out=out), a, out=out)
    return EXP(np.add(out, last, out=out), out=out)


def gelu_block(z, u, a, e):
    """z Φ(z) = max(z, 0) - a Φ(-a), a = |z|. float32."""
    if near(np.abs(z, out=a)):
        exp_polynomial(a, L, u)
    else:
        gaussian_tail(a, e, u)
    np.multiply(u, a, out=u)
    flush_in_place(np.subtract(np.maximum(z, 0, out=a), u, out=u), a)


def gelu_backward_block(z, v, dz, a, e):
    """(Φ(z) + z φ(z)) v = (½ + s (½ - Φ(-a) + a φ(a))) v, a = |z|, s = sign(z). float32."""
    if near(np.abs(z, out=a)):
        exp_polynomial(a, M, dz)
        np.multiply(np.subtract(a, ROOT, out=a), dz, out=dz)
    else:
        gaussian_tail(a, e, dz)
        np.subtract(np.multiply(np.multiply(a, e, out=a), 1 / math.sqrt(2 * math.pi), out=a), dz, out=dz)
    sign = np.bitwise_and(z.view(np.int32), SIGN, out=a.view(np.int32))
    np.bitwise_or(np.add(dz, 0.5, out=dz).view(np.int32), sign, out=dz.view(np.int32))
    flush_in_place(np.multiply(np.add(dz, 0.5, out=dz), v, out=dz), a)
