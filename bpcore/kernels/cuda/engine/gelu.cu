// The exact GELU, z Phi(z), by the tails of the normal distribution.

#define FAR 38  // Phi(-38) is below the smallest normal double

__device__ inline A bounded_abs(A z) { return fabs(z) > FAR ? A(FAR) : fabs(z); }

// Phi(-a), a >= 0, and Phi(-a) - a phi(a)
__device__ inline A tail(A a) { return A(0.5) * erfc(a * A(0.7071067811865476)); }

__device__ inline A tail_slope(A a) { return tail(a) - a * (exp(A(-0.5) * a * a) * A(0.3989422804014327)); }

__device__ inline A gelu_slope(A z) { return z < 0 ? tail_slope(bounded_abs(z)) : 1 - tail_slope(bounded_abs(z)); }
