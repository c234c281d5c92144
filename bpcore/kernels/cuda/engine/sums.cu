// Sums over the rows of a matrix and over a vector, in two passes: blocks sum parts, then the parts are added in a fixed order.

// part (gridDim.y, n), or (gridDim.y, 2 n) if z is not null: the sums over some of the rows of v (rows, n), and of v x with
// x = (z - mean) scale. `span` rows and `width` columns share one number of mean and scale; mean may be null. eps >= 0: `scale`
// is a variance; eps < 0: mean is measured from the first entry of z of the rows and columns that share it. If u is not null, v
// counts as 0 where u <= 0, and v with all other entries set to 0 is written to dt. A block has
// 32 x 8 threads and sums 32 columns.
extern "C" __global__ void columns(Int rows, Int n, const T *v, const T *z, const A *mean, const A *scale, double eps, Int span,
                                   Int width, const T *u, T *dt, A *part)
{
    __shared__ A sums[2][8][32];
    const Int j = blockIdx.x * 32LL + threadIdx.x, groups = n / width;
    A v_sum = 0, x_sum = 0;
    if (j < n)
        for (Int i = blockIdx.y * 8LL + threadIdx.y; i < rows; i += gridDim.y * 8LL) {
            const A v_ij = u && A(u[i * n + j]) <= 0 ? A(0) : A(v[i * n + j]);
            if (u) dt[i * n + j] = T(v_ij);
            v_sum += v_ij;
            if (z) {
                const Int at = i / span * groups + j / width;
                const A start = mean && eps < 0 ? A(z[i / span * span * n + j / width * width]) : A(0);
                const A centre = mean ? A(mean[at]) : A(0);
                const A factor = eps >= 0 ? 1 / sqrt(A(scale[at]) + A(eps)) : A(scale[at]);
                x_sum += v_ij * ((A(z[i * n + j]) - start - centre) * factor);
            }
        }
    sums[0][threadIdx.y][threadIdx.x] = v_sum;
    sums[1][threadIdx.y][threadIdx.x] = x_sum;
    __syncthreads();
    if (threadIdx.y < 2 && j < n && (threadIdx.y == 0 || z)) {
        A total = 0;
        for (int k = 0; k < 8; k++) total += sums[threadIdx.y][k][threadIdx.x];
        part[blockIdx.y * (z ? 2 * n : n) + threadIdx.y * n + j] = total;
    }
}

// Adds up part (parts, n), or (parts, 2 n) if dgamma is not null, and writes the sums to dbeta and dgamma, each null or (n,).
extern "C" __global__ void finish_columns(Int count, Int parts, Int n, const A *part, T *dbeta, T *dgamma)
{
    const Int stride = dgamma ? 2 * n : n;
    EACH(j, count) {
        A total = 0;
        for (Int k = 0; k < parts; k++) total += part[k * stride + j];
        if (j >= n)
            dgamma[j - n] = T(total);
        else if (dbeta)
            dbeta[j] = T(total);
    }
}

// part (blocks,): for each block, its part of the sum of x.
extern "C" __global__ void total(Int n, const T *x, A *part)
{
    A sum = 0;
    EACH(i, n) sum += A(x[i]);
    sum = team_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// Writes the sum of the parts to out, but at least `least`. Launched with one block.
extern "C" __global__ void finish_total(Int parts, const A *part, double least, T *out)
{
    A sum = 0;
    TEAM(i, parts) sum += part[i];
    sum = team_sum(sum);
    if (threadIdx.x == 0) *out = T(sum < A(least) ? A(least) : sum);  // NaN stays NaN
}

// u = u + b in each row, b null or (n,); then max(u, 0) if `relu`.
extern "C" __global__ void add_rows(Int count, Int n, const T *b, Int relu, T *u)
{
    EACH(i, count) {
        const A x = b ? A(u[i]) + A(b[i % n]) : A(u[i]);
        u[i] = T(relu && x < 0 ? A(0) : x);
    }
}
