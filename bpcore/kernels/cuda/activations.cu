// Activations: one formula each, for one entry of each array.

#define TANH_SCALE A(0.7978845608028654)  // sqrt(2 / pi)
#define TANH_CUBE A(0.044715)
#define BOUND 1000  // as in functional/activations.py

#define UNARY(name, formula) \
    extern "C" __global__ void name(Int n, const T *z_, T *u_) \
    { map(n, u_, [](A z) { return formula; }, z_); }
#define BINARY(name, x, formula) \
    extern "C" __global__ void name(Int n, const T *x_, const T *v_, T *u_) \
    { map(n, u_, [](A x, A v) { return formula; }, x_, v_); }
#define UNARY_WITH(name, constant, formula) \
    extern "C" __global__ void name(Int n, const T *z_, double constant##_, T *u_) \
    { map(n, u_, [constant = A(constant##_)](A z) { return formula; }, z_); }
#define BINARY_WITH(name, x, constant, formula) \
    extern "C" __global__ void name(Int n, const T *x_, const T *v_, double constant##_, T *u_) \
    { map(n, u_, [constant = A(constant##_)](A x, A v) { return formula; }, x_, v_); }

__device__ inline A positive(A z) { return z < 0 ? A(0) : z; }  // NaN stays NaN

// For gelu_tanh(z) = z s: s = sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3)), and the derivative of z s
__device__ inline A gate(A z) { return logistic(2 * TANH_SCALE * (z + TANH_CUBE * (z * z * z))); }

__device__ inline A gate_slope(A z, A s) { return s + 2 * z * s * (1 - s) * (TANH_SCALE * (1 + 3 * TANH_CUBE * (z * z))); }

// z, but at least -BOUND, and at most BOUND: with it -infinity times a gate of 0 is 0. NaN stays NaN.
__device__ inline A above(A z) { return z < -BOUND ? A(-BOUND) : z; }
__device__ inline A bounded(A z) { return z > BOUND ? A(BOUND) : above(z); }

// log(1 + e^z)
__device__ inline A soft_positive(A z) { return positive(z) + log1p(exp(-fabs(z))); }

// The derivative of silu(z) = z s, s = logistic(z).
__device__ inline A silu_slope(A z) { return logistic(z) * (1 + z * (1 - logistic(z))); }

// The derivative of mish(z) = z t, t = tanh(log(1 + e^z)).
__device__ inline A mish_slope(A z, A t) { return t + z * logistic(z) * (1 - t * t); }

UNARY(relu, positive(z))
BINARY(relu_backward, u, u <= 0 ? A(0) : v)
UNARY_WITH(leaky_relu, slope, z > 0 ? z : slope * z)
BINARY_WITH(leaky_relu_backward, u, slope, u > 0 ? v : slope * v)
UNARY_WITH(elu, alpha, z > 0 ? z : alpha * expm1(z))
BINARY_WITH(elu_backward, u, alpha, flush(v * (u > 0 ? A(1) : u + alpha)))
UNARY(sigmoid, logistic(z))
BINARY(sigmoid_backward, u, flush(v * u * (1 - u)))
UNARY(tanh_, flush(tanh(z)))
BINARY(tanh_backward, u, flush(v * (1 - u * u)))
UNARY(softplus, flush(soft_positive(z)))
BINARY(softplus_backward, z, flush(logistic(z) * v))
UNARY(silu, flush(above(z) * logistic(z)))
BINARY(silu_backward, z, flush(v * silu_slope(bounded(z))))
UNARY(mish, flush(above(z) * tanh(soft_positive(z))))
BINARY(mish_backward, z, flush(v * mish_slope(bounded(z), tanh(soft_positive(z)))))
UNARY(gelu, flush(positive(z) - bounded_abs(z) * tail(bounded_abs(z), bell(bounded_abs(z)))))
BINARY(gelu_backward, z, flush(v * gelu_slope(z)))
UNARY(gelu_tanh, flush(above(z) * gate(z)))
BINARY(gelu_tanh_backward, z, flush(v * gate_slope(bounded(z), gate(z))))
UNARY(erf_, erf(z))

// u = gelu(z), and v = v gelu'(z)
extern "C" __global__ void gelu_again(Int n, const T *z, T *v, T *u)
{
    const auto gelu = [](A z) { return flush(positive(z) - bounded_abs(z) * tail(bounded_abs(z), bell(bounded_abs(z)))); };
    const auto backward = [](A z, A v) { return flush(v * gelu_slope(z)); };
    each_wide(n, aligned(z, v, u), [&](auto w, Int i) {
        const auto z_i = read<w.value>(z + i);
        write(u + i, mapped(gelu, z_i));
        write(v + i, mapped(backward, z_i, read<w.value>(v + i)));
    });
}
