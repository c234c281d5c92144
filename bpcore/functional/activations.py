"""Activations σ, applied elementwise. B[σ, z](v) = σ'(z) ⊙ v.

Saturating activations flush their results: entries below the square root of the smallest normal number become 0 (see `flush`).

(7.69)
"""

from __future__ import annotations

import math

from bpcore.array import Array, device, namespace
from bpcore.functional.numerics import flush
from bpcore.primitive import primitive

__all__ = [
    "elu",
    "elu_backward",
    "erf",
    "gelu",
    "gelu_again",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "mish",
    "mish_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
]

TANH_SCALE = math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715
FAR = 38.0  # Φ(-38) is below the smallest normal float64
BOUND = 1000.0  # the sigmoid of -1000 is 0, of 1000 it is 1: beyond, also at ±∞, it takes the place of z where ∞ · 0 would be NaN

# Rational approximations of erf(x) / x near 0 and of e^(x²) erfc(x) beyond, coefficients from the highest power down; relative
# error below 6e-19 in each interval. Cody, "Rational Chebyshev approximations for the error function", 1969
NEAR_NUMERATOR = (
    1.85777706184603153e-1,
    3.16112374387056560,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
NEAR_DENOMINATOR = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
FAR_NUMERATOR = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
    8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
)  # fmt: skip
FAR_DENOMINATOR = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
)  # fmt: skip


@primitive()
def relu(z: Array) -> Array:
    """max(z, 0)."""
    xp = namespace(z)
    return xp.maximum(z, xp.zeros((), dtype=z.dtype, device=device(z)))


@primitive()
def relu_backward(u: Array, v: Array) -> Array:
    """B[ReLU, z](v) = 1{u > 0} ⊙ v; the derivative at 0 is taken as 0, where u is NaN as 1."""
    xp = namespace(v)
    return xp.where(u <= 0, xp.zeros((), dtype=v.dtype, device=device(v)), v)


@primitive()
def leaky_relu(z: Array, slope: float) -> Array:
    """z where z > 0, slope · z elsewhere, 0 <= slope < 1."""
    return z * one_or(slope, z)


@primitive()
def leaky_relu_backward(u: Array, v: Array, slope: float) -> Array:
    """B[σ, z](v) = v where u > 0, slope · v elsewhere."""
    return v * one_or(slope, u)


def one_or(slope: float, u: Array) -> Array:
    """1 where u > 0, `slope` elsewhere, 0 <= slope < 1."""
    xp = namespace(u)
    return xp.maximum(xp.astype(u > 0, u.dtype), xp.full((), slope, dtype=u.dtype, device=device(u)))


@primitive()
def elu(z: Array, alpha: float) -> Array:
    """z where z > 0, α (eᶻ - 1) elsewhere.

    Clevert et al., 2016
    """
    xp = namespace(z)
    zero = xp.zeros_like(z)
    return xp.maximum(z, zero) + alpha * xp.expm1(xp.minimum(z, zero))


@primitive()
def elu_backward(u: Array, v: Array, alpha: float) -> Array:
    """B[σ, z](v) = v where u > 0, (u + α) v elsewhere."""
    xp = namespace(v)
    zero = xp.zeros_like(u)
    positive = xp.astype(u > 0, v.dtype)
    return flush(v * (positive + (1 - positive) * (xp.minimum(u, zero) + alpha)))


def bounded(z: Array) -> Array:
    """z between -BOUND and BOUND; NaN stays NaN."""
    xp = namespace(z)
    bound = xp.full((), BOUND, dtype=z.dtype, device=device(z))
    return xp.maximum(xp.minimum(z, bound), -bound)


@primitive()
def sigmoid(z: Array) -> Array:
    """1 / (1 + e⁻ᶻ), computed from e^-|z|, which cannot overflow."""
    xp = namespace(z)
    e = xp.exp(-xp.abs(z))
    return flush(xp.where(z >= 0, xp.ones_like(e), e) / (1 + e))


@primitive()
def sigmoid_backward(u: Array, v: Array) -> Array:
    """B[σ, z](v) = u (1 - u) v."""
    return flush(v * u * (1 - u))


@primitive()
def tanh(z: Array) -> Array:
    """tanh(z)."""
    return flush(namespace(z).tanh(z))


@primitive()
def tanh_backward(u: Array, v: Array) -> Array:
    """B[tanh, z](v) = (1 - u²) v."""
    return flush(v * (1 - u * u))


@primitive()
def softplus(z: Array) -> Array:
    """log(1 + eᶻ) = max(z, 0) + log(1 + e^-|z|)."""
    xp = namespace(z)
    return flush(xp.maximum(z, xp.zeros_like(z)) + xp.log1p(xp.exp(-xp.abs(z))))


@primitive()
def softplus_backward(z: Array, v: Array) -> Array:
    """B[softplus, z](v) = sigmoid(z) v."""
    return flush(sigmoid(z) * v)


def gated(z: Array, s: Array) -> Array:
    """z s for a gate s that is 0 below -BOUND: 0 for z = -∞, where -∞ · 0 would be NaN."""
    xp = namespace(z)
    return xp.maximum(z, xp.full((), -BOUND, dtype=z.dtype, device=device(z))) * s


@primitive()
def silu(z: Array) -> Array:
    """z · sigmoid(z).

    Elfwing et al., 2018
    """
    return flush(gated(z, sigmoid(z)))


@primitive()
def silu_backward(z: Array, v: Array) -> Array:
    """B[SiLU, z](v) = s (1 + z (1 - s)) v with s = sigmoid(z)."""
    z = bounded(z)
    s = sigmoid(z)
    return flush(v * s * (1 + z * (1 - s)))


@primitive(float32=True)
def mish(z: Array) -> Array:
    """z tanh(log(1 + eᶻ)).

    Misra, 2020
    """
    return flush(gated(z, tanh(softplus(z))))


@primitive(float32=True)
def mish_backward(z: Array, v: Array) -> Array:
    """B[Mish, z](v) = (t + z s (1 - t²)) v with t = tanh(log(1 + eᶻ)) and s = sigmoid(z)."""
    z = bounded(z)
    t = tanh(softplus(z))
    return flush(v * (t + z * sigmoid(z) * (1 - t * t)))


@primitive(float32=True)
def gelu(z: Array) -> Array:
    """z Φ(z) = max(z, 0) - |z| Φ(-|z|), Φ the standard normal distribution function.

    Hendrycks and Gimpel, 2016
    """
    xp = namespace(z)
    a = xp.minimum(xp.abs(z), xp.full_like(z, FAR))
    return flush(xp.maximum(z, xp.zeros_like(z)) - a * gaussian_tail(a))


@primitive(float32=True)
def gelu_backward(z: Array, v: Array) -> Array:
    """B[GELU, z](v) = (Φ(z) + z φ(z)) v, φ the standard normal density."""
    xp = namespace(v)
    a = xp.minimum(xp.abs(z), xp.full_like(z, FAR))
    slope = gaussian_tail(a) - a * (xp.exp(-0.5 * a * a) / math.sqrt(2 * math.pi))  # at -a; at a it is 1 - slope
    return flush(v * xp.where(z < 0, slope, 1 - slope))


@primitive(float32=True, writes=("v",))
def gelu_again(z: Array, v: Array) -> Array:
    """GELU(z), for a backward pass that did not save it. Overwrites v with B[GELU, z](v). A twin computes both in one pass."""
    v[...] = gelu_backward(z, v)
    return gelu(z)


@primitive(float32=True)
def gelu_tanh(z: Array) -> Array:
    """½ z (1 + tanh(√(2/π) (z + 0.044715 z³))): an approximation of GELU.

    ½ (1 + tanh(x)) is computed as sigmoid(2 x), where no digits cancel.
    """
    return flush(gated(z, sigmoid(2 * TANH_SCALE * (z + TANH_CUBE * (z * z * z)))))


@primitive(float32=True)
def gelu_tanh_backward(z: Array, v: Array) -> Array:
    """B[σ, z](v) = (s + 2 z s (1 - s) √(2/π) (1 + 3 · 0.044715 z²)) v with the sigmoid s of `gelu_tanh`."""
    z = bounded(z)
    s = sigmoid(2 * TANH_SCALE * (z + TANH_CUBE * (z * z * z)))
    slope = TANH_SCALE * (1 + 3 * TANH_CUBE * (z * z))
    return flush(v * (s + 2 * z * s * (1 - s) * slope))


@primitive(float32=True)
def erf(z: Array) -> Array:
    """The error function 2/√π ∫₀ᶻ e^(-t²) dt, which the Array API lacks.

    Cody, 1969
    """
    xp = namespace(z)
    x = xp.minimum(xp.abs(z), xp.full_like(z, 6.0))  # beyond 6, erf is 1 in float64; NaN stays NaN
    return xp.where(x < 0.46875, z * erf_over_z(x), xp.sign(z) * (1 - erfc_far(x)))


def polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """A polynomial in x by Horner's rule; coefficients from the highest power down."""
    total = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


def erf_over_z(x: Array) -> Array:
    """erf(x) / x for 0 <= x < 0.46875. For larger x the result is finite but wrong."""
    xp = namespace(x)
    square = xp.minimum(x * x, xp.full_like(x, 0.25))
    return polynomial(NEAR_NUMERATOR, square) / polynomial(NEAR_DENOMINATOR, square)


def erfc_far(x: Array) -> Array:
    """1 - erf(x) for x >= 0.46875. For smaller x the error is up to 5e-12."""
    return namespace(x).exp(-x * x) * (polynomial(FAR_NUMERATOR, x) / polynomial(FAR_DENOMINATOR, x))


def gaussian_tail(a: Array) -> Array:
    """Φ(-a) = ½ (1 - erf(a / √2)) for a >= 0. No digits cancel where it is small."""
    x = a / math.sqrt(2)
    return 0.5 * namespace(a).where(x < 0.46875, 1 - x * erf_over_z(x), erfc_far(x))
