// Updates of optimisers, each in one pass over theta. A factor, a rate or a step comes by value, or from the device if its
// pointer is not null: then a captured graph can be launched again with other rates. Both ways give the same bits.

#define RATE double lr_value, const double *lr_at
#define LR (lr_at ? *lr_at : lr_value)
#define FACTOR double factor_value, const double *factor_at
#define FACTOR_NOW (factor_at ? *factor_at : factor_value)

// An entry of the gradient times a factor; 0 if that is 0. The product is double: in float, factors below 1e-38 would be 0.
__device__ inline A times(A g, double factor) { return factor == 0 ? A(0) : A(__dmul_rn(double(g), factor)); }

// The same, with weight decay.
__device__ inline A decayed(A g, double factor, double decay, A theta)
{
    return decay != 0 ? times(g, factor) + A(decay) * theta : times(g, factor);
}

// beta x + (1 - beta) y. Which of the products is rounded is said here: a compiler chooses another one in each copy of a loop.
__device__ inline A average(double beta, A x, A y) { return fma(A(beta), x, A(1 - beta) * y); }

__device__ inline A flush_square(A v) { return v >= A(1024.0 * SMALLEST) ? v : A(0) * v; }

extern "C" __global__ void sgd(Int n, const T *g_, FACTOR, RATE, double momentum, Int nesterov, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    const auto plain = [&](A g, A &theta) { theta -= lr * decayed(g, factor, decay, theta); };
    const auto with_momentum = [&](A g, A &theta, A &m) {
        g = decayed(g, factor, decay, theta);
        m = flush(A(momentum) * m + g);
        theta -= lr * (nesterov ? g + A(momentum) * m : m);
    };
    if (m_)
        update(n, with_momentum, g_, theta_, m_);
    else
        update(n, plain, g_, theta_);
}

extern "C" __global__ void rmsprop(Int n, const T *g_, FACTOR, RATE, double rho, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    const auto step = [&](A g, A &theta, A &v) {
        g = decayed(g, factor, decay, theta);
        v = flush_square(average(rho, v, g * g));
        theta -= lr * g / (sqrt(v) + A(eps));
    };
    update(n, step, g_, theta_, v_);
}

extern "C" __global__ void adagrad(Int n, const T *g_, FACTOR, RATE, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    const auto step = [&](A g, A &theta, A &v) {
        g = decayed(g, factor, decay, theta);
        v = flush_square(v + g * g);
        theta -= lr * g / (sqrt(v) + A(eps));
    };
    update(n, step, g_, theta_, v_);
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
    const auto step = [&](A g, A &theta, A &m, A &v) {
        if (decay != 0 && decoupled) theta -= shrink * theta;
        g = decayed(g, factor, decoupled ? 0 : decay, theta);
        m = flush(average(beta1, m, g));
        v = flush_square(average(beta2, v, g * g));
        theta -= rate * m / (sqrt(v) / root + A(eps));
    };
    update(n, step, g_, theta_, m_, v_);
}

extern "C" __global__ void nadam(Int n, const T *g_, FACTOR, Int step_value, const Int *step_at, RATE, double beta1, double beta2,
                                 double eps, double decay, double momentum_decay, T *theta_, T *m_, T *v_, T *c_)
{
    __shared__ double shared[3];
    if (threadIdx.x == 0) {
        const double step = double(step_at ? *step_at : step_value), power = log(0.96) * momentum_decay;
        shared[0] = beta1 * (1 - 0.5 * exp(power * step));
        shared[1] = beta1 * (1 - 0.5 * exp(power * (step + 1)));
        shared[2] = sqrt(1 - pow(beta2, step));
    }
    __syncthreads();
    const double mu = shared[0], mu_next = shared[1], factor = FACTOR_NOW;
    const A lr = A(LR), root = A(shared[2]);
    const auto step = [&](A g, A &theta, A &m, A &v, A &c) {
        g = decayed(g, factor, decay, theta);
        m = flush(average(beta1, m, g));
        v = flush_square(average(beta2, v, g * g));
        c = average(mu, c, 1);
        theta -= lr * (A(mu_next) * m / average(mu_next, c, 1) + A(1 - mu) * g / c) / (sqrt(v) / root + A(eps));
    };
    update(n, step, g_, theta_, m_, v_, c_);
}

extern "C" __global__ void lion(Int n, const T *g_, FACTOR, RATE, double beta1, double beta2, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    const double factor = FACTOR_NOW;
    const auto step = [&](A g, A &theta, A &m) {
        g = times(g, factor);
        const A mixed = fma(A(1 - beta1), g, A(beta1) * m);
        const A direction = mixed > 0 ? A(1) : mixed < 0 ? A(-1) : mixed;
        theta -= lr * (decay != 0 ? direction + A(decay) * theta : direction);
        m = flush(fma(A(1 - beta2), g, A(beta2) * m));
    };
    update(n, step, g_, theta_, m_);
}

// Pass one over the vectors. g = x / S, or only read if g is null; part (blocks,): the sums of the squares of g, in double, which
// float would overflow. A thread takes WIDE entries of x at a time, at any address in the same order.
extern "C" __global__ void gather(Int n, const T *x, double S_value, const A *S_at, A *g, double *part)
{
    const A S = S_at ? *S_at : A(S_value);
    double sum = 0;
    const auto take = [&](auto w, Int i) {
        constexpr int W = w.value;
        const Pack<W, A> g_i = mapped([&](A x) { return x / S; }, read<W>(x + i));
        if (g) write(g + i, g_i);
        WITHIN(k) sum += double(g_i.at[k]) * double(g_i.at[k]);
    };
    const bool wide = aligned(x, g);
    EACH(k, (n + WIDE - 1) / WIDE) {
        const Int from = k * WIDE, to = min(n, from + WIDE);
        if (wide && to == from + WIDE)
            take(Constant<WIDE>(), from);
        else
            for (Int i = from; i < to; i++) take(Constant<1>(), i);
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
