// Updates of optimisers, each in one pass over theta. A factor, a rate or a step comes by value, or from the device if its
// pointer is not null: then a captured graph can be launched again with other rates. Both ways give the same bits.

#define RATE double lr_value, const double *lr_at
#define LR (lr_at ? *lr_at : lr_value)
#define FACTOR double factor_value, const double *factor_at
#define FACTOR_NOW (factor_at ? *factor_at : factor_value)

// An entry of the gradient times a factor; 0 if that is 0. The product is double: in float, factors below 1e-38 would be 0.
__device__ inline A times(T g, double factor) { return factor == 0 ? A(0) : A(__dmul_rn(double(A(g)), factor)); }

__device__ inline A flush_square(A v) { return v >= A(1024.0 * SMALLEST) ? v : A(0) * v; }

extern "C" __global__ void sgd(Int n, const T *g_, FACTOR, RATE, double momentum, Int nesterov, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = times(g_[i], factor);
        if (decay != 0) g += A(decay) * theta;
        if (m_) {
            const A m = flush(A(momentum) * A(m_[i]) + g);
            m_[i] = T(m);
            g = nesterov ? g + A(momentum) * m : m;
        }
        theta_[i] = T(theta - lr * g);
    }
}

extern "C" __global__ void rmsprop(Int n, const T *g_, FACTOR, RATE, double rho, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = times(g_[i], factor);
        if (decay != 0) g += A(decay) * theta;
        const A v = flush_square(A(rho) * A(v_[i]) + A(1 - rho) * (g * g));
        v_[i] = T(v);
        theta_[i] = T(theta - lr * g / (sqrt(v) + A(eps)));
    }
}

extern "C" __global__ void adagrad(Int n, const T *g_, FACTOR, RATE, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = times(g_[i], factor);
        if (decay != 0) g += A(decay) * theta;
        const A v = flush_square(A(v_[i]) + g * g);
        v_[i] = T(v);
        theta_[i] = T(theta - lr * g / (sqrt(v) + A(eps)));
    }
}

extern "C" __global__ void adam(Int n, const T *g_, FACTOR, Int step_value, const Int *step_at, RATE, double beta1,
                                double beta2, double eps, double decay, Int decoupled, T *theta_, T *m_, T *v_)
{
    __shared__ double shared[2];  // computed once for the block, because powers in double are slow
    if (threadIdx.x == 0) {
        const double step = double(step_at ? *step_at : step_value);
        shared[0] = LR / (1 - pow(beta1, step));
        shared[1] = sqrt(1 - pow(beta2, step));
    }
    __syncthreads();
    const A rate = A(shared[0]), root = A(shared[1]), shrink = A(LR * decay);
    const double factor = FACTOR_NOW;
    EACH(i, n) {
        A theta = A(theta_[i]), g = times(g_[i], factor);
        if (decay != 0 && decoupled)
            theta -= shrink * theta;
        else if (decay != 0)
            g += A(decay) * theta;
        const A m = flush(A(beta1) * A(m_[i]) + A(1 - beta1) * g);
        const A v = flush_square(A(beta2) * A(v_[i]) + A(1 - beta2) * (g * g));
        m_[i] = T(m);
        v_[i] = T(v);
        theta_[i] = T(theta - rate * m / (sqrt(v) / root + A(eps)));
    }
}

extern "C" __global__ void lion(Int n, const T *g_, FACTOR, RATE, double beta1, double beta2, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    EACH(i, n) {
        const A theta = A(theta_[i]), g = times(g_[i], factor), m = A(m_[i]);
        const A mixed = A(beta1) * m + A(1 - beta1) * g;
        const A direction = mixed > 0 ? A(1) : mixed < 0 ? A(-1) : mixed;
        theta_[i] = T(theta - lr * (decay != 0 ? direction + A(decay) * theta : direction));
        m_[i] = T(flush(A(beta2) * m + A(1 - beta2) * g));
    }
}

// Pass one over the vectors. g = x / S, or only read if g is null; part (blocks,): the sums of the squares of g, in double, which
// float would overflow. A thread takes 16 bytes of x at a time, at any address in the same order.
#define AT_ONCE (16 / (int)sizeof(T))
struct alignas(16) Scaled { T at[AT_ONCE]; };
struct alignas(16) Gathered { A at[AT_ONCE]; };

extern "C" __global__ void gather(Int n, const T *x, double S_value, const A *S_at, A *g, double *part)
{
    const A S = S_at ? *S_at : A(S_value);
    const bool aligned = ((unsigned long long)x | (unsigned long long)g) % 16 == 0;
    double sum = 0;
    EACH(k, (n + AT_ONCE - 1) / AT_ONCE) {
        const Int start = k * AT_ONCE;
        const int count = n - start < AT_ONCE ? int(n - start) : AT_ONCE;
        const bool whole = aligned && count == AT_ONCE;
        Scaled scaled;
        Gathered gathered;
        if (whole)
            scaled = *(const Scaled *)(x + start);
        else
            for (int j = 0; j < AT_ONCE; j++) scaled.at[j] = j < count ? x[start + j] : T(0.0f);
        for (int j = 0; j < AT_ONCE; j++) {
            gathered.at[j] = A(scaled.at[j]) / S;
            if (j < count) sum += double(gathered.at[j]) * double(gathered.at[j]);
        }
        if (g && whole)
            *(Gathered *)(g + start) = gathered;
        else if (g)
            for (int j = 0; j < AT_ONCE; j++)
                if (j < count) g[start + j] = gathered.at[j];
    }
    sum = team_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// The factor that scales a vector whose square of the norm is given to a norm of at most `largest`.
extern "C" __global__ void clip_factor(Int n, double square_value, const double *square_at, double largest, double *factor)
{
    const double norm = sqrt(square_at ? *square_at : square_value);
    EACH(i, n) factor[i] = isfinite(norm) ? largest / (norm < largest ? largest : norm) : norm - norm;  // NaN
}

// The next scale of the loss, in state (S, good steps in a row), and the factor of the gradient, 0 if its square is not finite.
extern "C" __global__ void rescale(Int n, const double *square, FACTOR, double interval, double least, double most, float *state,
                                   double *factor)
{
    EACH(i, n) {
        const bool finite = isfinite(square[i]);
        const float S = state[0], good = finite ? state[1] + 1 : 0;
        const bool twice = good >= interval;
        state[0] = float(!finite ? fmax(S / 2.0, least) : twice ? fmin(S * 2.0, most) : double(S));
        state[1] = twice ? 0 : good;
        factor[i] = finite ? FACTOR_NOW : 0;
    }
}
