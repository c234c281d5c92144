// Statistics of each feature over a batch, and normalisation from them.

// part (gridDim.y, 2 n): the sums over some of the rows of x = z - z[0] - mean, and of x squared; mean may be null.
extern "C" __global__ void __launch_bounds__(256, 4) moments(Int rows, Int n, const T *z, const A *mean, A *part)
{
    widely(n % WIDE == 0 && aligned(z, mean), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const Pack<W, A> start = read<W>(z + j), centre = mean ? read<W>(mean + j) : Pack<W, A>{};
            Pack<W, A> sum = {}, square = {};
#pragma unroll 4
            ROWS(i, rows) {
                const Pack<W, A> z_i = read<W>(z + i * n + j);
                WITHIN(k) {
                    const A x = z_i.at[k] - start.at[k] - centre.at[k];
                    sum.at[k] += x;
                    square.at[k] += x * x;
                }
            }
            keep_sum(0, j, sum);
            keep_sum(1, j, square);
        }
    });
    sum_block(0, n, part + blockIdx.y * 2 * n);
    sum_block(1, n, part + (blockIdx.y * 2 + 1) * n);
}

// From part (parts, 2 n): the mean of x, to mean if variance is null; else the mean of x squared, to variance, and the mean of z:
// z[0] and the mean of x are added to mean, from which x was measured.
extern "C" __global__ void __launch_bounds__(1024) finish_moments(Int count, Int parts, Int rows, const A *part, const T *z,
                                                                  A *mean, A *variance)
{
    const A total = sum_parts(part, parts, count) / rows;
    const Int n = count / 2, j = finished_column();
    if (threadIdx.x != 0 || j >= count) return;
    if (j < n)
        mean[j] = variance ? A(z[j]) + (mean[j] + total) : total;
    else if (variance)
        variance[j - n] = total;
}

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm(Int rows, Int n, const T *z, const A *mean, const A *variance,
                                                                const T *gamma, const T *beta, double eps, T *u)
{
    widely(n % WIDE == 0 && aligned(z, mean, variance, gamma, beta, u), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const Pack<W, A> centre = read<W>(mean + j), shift = read<W>(beta + j);
            Pack<W, A> factor = read<W>(gamma + j);
            const Pack<W, A> square = read<W>(variance + j);
            WITHIN(k) factor.at[k] /= sqrt(square.at[k] + A(eps));
            ROWS(i, rows) {
                Pack<W, A> x = read<W>(z + i * n + j);
                WITHIN(k) x.at[k] = (x.at[k] - centre.at[k]) * factor.at[k] + shift.at[k];
                write(u + i * n + j, x);
            }
        }
    });
}

// z is null if mean and variance are constants.
extern "C" __global__ void __launch_bounds__(256, 4) batch_norm_backward(Int rows, Int n, const T *z, const A *mean,
                                                                         const A *variance, const T *gamma, const T *v, double eps,
                                                                         const T *dgamma, const T *dbeta, T *dz)
{
    widely(n % WIDE == 0 && aligned(z, mean, variance, gamma, v, dgamma, dbeta, dz), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const Pack<W, A> centre = read<W>(mean + j), g = read<W>(gamma + j);
            Pack<W, A> scale = read<W>(variance + j), v_mean = read<W>(dbeta + j), vx_mean = read<W>(dgamma + j);
            WITHIN(k) {
                scale.at[k] = 1 / sqrt(scale.at[k] + A(eps));
                v_mean.at[k] /= A(rows);
                vx_mean.at[k] /= A(rows);
            }
            ROWS(i, rows) {
                Pack<W, A> x = read<W>(v + i * n + j);
                if (z) {
                    const Pack<W, A> z_i = read<W>(z + i * n + j);
                    WITHIN(k) x.at[k] -= v_mean.at[k] + (z_i.at[k] - centre.at[k]) * scale.at[k] * vx_mean.at[k];
                }
                WITHIN(k) x.at[k] *= g.at[k] * scale.at[k];
                write(dz + i * n + j, x);
            }
        }
    });
}
