// Updates of optimisers, each in one pass over theta. A rate or a step comes by value, or from the device if its pointer is not
// null: then a captured graph can be launched again with other rates. Both ways give the same bits.

#define RATE double lr_value, const double *lr_at
#define LR (lr_at ? *lr_at : lr_value)

__device__ inline A flush_square(A v) { return v >= A(1024.0 * SMALLEST) ? v : A(0) * v; }

extern "C" __global__ void sgd(Int n, const T *g_, RATE, double momentum, Int nesterov, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = A(g_[i]);
        if (decay != 0) g += A(decay) * theta;
        if (m_) {
            const A m = flush(A(momentum) * A(m_[i]) + g);
            m_[i] = T(m);
            g = nesterov ? g + A(momentum) * m : m;
        }
        theta_[i] = T(theta - lr * g);
    }
}

extern "C" __global__ void rmsprop(Int n, const T *g_, RATE, double rho, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = A(g_[i]);
        if (decay != 0) g += A(decay) * theta;
        const A v = flush_square(A(rho) * A(v_[i]) + A(1 - rho) * (g * g));
        v_[i] = T(v);
        theta_[i] = T(theta - lr * g / (sqrt(v) + A(eps)));
    }
}

extern "C" __global__ void adagrad(Int n, const T *g_, RATE, double eps, double decay, T *theta_, T *v_)
{
    const A lr = A(LR);
    EACH(i, n) {
        const A theta = A(theta_[i]);
        A g = A(g_[i]);
        if (decay != 0) g += A(decay) * theta;
        const A v = flush_square(A(v_[i]) + g * g);
        v_[i] = T(v);
        theta_[i] = T(theta - lr * g / (sqrt(v) + A(eps)));
    }
}

extern "C" __global__ void adam(Int n, const T *g_, Int step_value, const Int *step_at, RATE, double beta1, double beta2,
                                double eps, double decay, Int decoupled, T *theta_, T *m_, T *v_)
{
    __shared__ double shared[2];  // computed once for the block, because powers in double are slow
    if (threadIdx.x == 0) {
        const double step = double(step_at ? *step_at : step_value);
        shared[0] = LR / (1 - pow(beta1, step));
        shared[1] = sqrt(1 - pow(beta2, step));
    }
    __syncthreads();
    const A rate = A(shared[0]), root = A(shared[1]), shrink = A(LR * decay);
    EACH(i, n) {
        A theta = A(theta_[i]), g = A(g_[i]);
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

extern "C" __global__ void lion(Int n, const T *g_, RATE, double beta1, double beta2, double decay, T *theta_, T *m_)
{
    const A lr = A(LR);
    EACH(i, n) {
        const A theta = A(theta_[i]), g = A(g_[i]), m = A(m_[i]), mixed = A(beta1) * m + A(1 - beta1) * g;
        const A direction = mixed > 0 ? A(1) : mixed < 0 ? A(-1) : mixed;
        theta_[i] = T(theta - lr * (decay != 0 ? direction + A(decay) * theta : direction));
        m_[i] = T(flush(A(beta2) * m + A(1 - beta2) * g));
    }
}

extern "C" __global__ void clip_norm(Int n, const T *g, double square_value, const double *square_at, double largest,
                                     T *clipped)
{
    const double norm = sqrt(square_at ? *square_at : square_value), factor = largest / (norm < largest ? largest : norm);
    EACH(i, n) clipped[i] = T(A(double(A(g[i])) * factor));  // in float, factors below 1e-38 would be 0
}
