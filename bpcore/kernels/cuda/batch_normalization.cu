// Normalisation of each feature over a batch, from its statistics.

extern "C" __global__ void batch_norm(Int count, Int n, const T *z, const A *mean, const A *variance, const T *gamma,
                                      const T *beta, double eps, T *u)
{
    EACH(i, count) {
        const Int j = i % n;
        const A factor = A(gamma[j]) / sqrt(A(variance[j]) + A(eps));
        u[i] = T((A(z[i]) - A(mean[j])) * factor + A(beta[j]));
    }
}

// z is null if mean and variance are constants.
extern "C" __global__ void batch_norm_backward(Int count, Int n, const T *z, const A *mean, const A *variance, const T *gamma,
                                               const T *v, double eps, const T *dgamma, const T *dbeta, T *dz)
{
    const A rows = A(count / n);
    EACH(i, count) {
        const Int j = i % n;
        const A scale = 1 / sqrt(A(variance[j]) + A(eps));
        A w = A(v[i]);
        if (z) w -= A(dbeta[j]) / rows + (A(z[i]) - A(mean[j])) * scale * (A(dgamma[j]) / rows);
        dz[i] = T(w * (A(gamma[j]) * scale));
    }
}
