// Statistics of each feature over a batch, and normalisation from them.

// part (gridDim.y, 2 n): the sums over some of the rows of x = z - z[0] - mean, and of x squared; mean may be null. A block has
// 32 x 8 threads and sums 32 columns.
extern "C" __global__ void moments(Int rows, Int n, const T *z, const A *mean, A *part)
{
    __shared__ A sums[2][8][32];
    const Int j = blockIdx.x * 32LL + threadIdx.x;
    const A start = j < n ? A(z[j]) : A(0), centre = mean && j < n ? mean[j] : A(0);
    A sum = 0, square = 0;
    if (j < n)
        for (Int i = blockIdx.y * 8LL + threadIdx.y; i < rows; i += gridDim.y * 8LL) {
            const A x = A(z[i * n + j]) - start - centre;
            sum += x;
            square += x * x;
        }
    sums[0][threadIdx.y][threadIdx.x] = sum;
    sums[1][threadIdx.y][threadIdx.x] = square;
    __syncthreads();
    if (threadIdx.y < 2 && j < n) {
        A total = 0;
        for (int k = 0; k < 8; k++) total += sums[threadIdx.y][k][threadIdx.x];
        part[(blockIdx.y * 2 + threadIdx.y) * n + j] = total;
    }
}

// From part (parts, 2 n): the mean of x, to mean if variance is null; else the mean of x squared, to variance, and the mean of z:
// z[0] and the mean of x are added to mean, from which x was measured.
extern "C" __global__ void finish_moments(Int n, Int parts, Int rows, const A *part, const T *z, A *mean, A *variance)
{
    EACH(j, n) {
        A sum = 0, square = 0;
        for (Int k = 0; k < parts; k++) {
            sum += part[k * 2 * n + j];
            square += part[(k * 2 + 1) * n + j];
        }
        mean[j] = variance ? A(z[j]) + (mean[j] + sum / rows) : sum / rows;
        if (variance) variance[j] = square / rows;
    }
}

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
