// The exact GELU, z Phi(z), by the tails of the normal distribution.

#define FAR 38  // Phi(-38) is below the smallest normal double

__device__ inline A bounded_abs(A z) { return fabs(z) > FAR ? A(FAR) : fabs(z); }

// exp(-a a / 2), and Phi(-a) with it, for a >= 0. erfc takes longer than memory: for arrays of 2 bytes, a polynomial in
// t = 1 / (1 + a / 4), fitted to Phi(-a) exp(a a / 2) / t, is right to 1e-6 of the value.
__device__ inline A bell(A a) { return sizeof(T) == 2 ? A(__expf(float(A(-0.5) * a * a))) : exp(A(-0.5) * a * a); }

__device__ inline A tail(A a, A bell)
{
    if (sizeof(T) > 2) return A(0.5) * erfc(a * A(0.7071067811865476));
    const A t = __fdividef(1, float(1 + a / 4));
    const A fitted[8] = {A(0.099729899), A(0.099861108), A(0.09255355),  A(0.083588187),
                         A(0.065708662), A(0.016452883), A(0.079858814), A(-0.037753572)};
    A sum = fitted[7];
    for (int i = 6; i >= 0; i--) sum = sum * t + fitted[i];
    return sum * t * bell;
}

// Phi(-a) - a phi(a)
__device__ inline A tail_slope(A a) { return tail(a, bell(a)) - a * (bell(a) * A(0.3989422804014327)); }

__device__ inline A gelu_slope(A z) { return z < 0 ? tail_slope(bounded_abs(z)) : 1 - tail_slope(bounded_abs(z)); }
