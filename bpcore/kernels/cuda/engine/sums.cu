// Sums over the rows of a matrix and over a vector, in two passes: blocks sum parts, then the parts are added in a fixed order.

// part (gridDim.y, n): the sums over some of the rows of v (rows, n).
extern "C" __global__ void __launch_bounds__(256, 4) columns(Int rows, Int n, const T *v, A *part)
{
    widely(n % WIDE == 0 && aligned(v), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            Pack<W, A> sum = {};
#pragma unroll 4
            ROWS(i, rows) add_to(sum, read<W>(v + i * n + j));
            keep_sum(0, j, sum);
        }
    });
    sum_block(0, n, part + blockIdx.y * n);
}

// The same for dt = f(u, v), which is written too.
template <class F> __device__ inline void columns_through(Int rows, Int n, const T *v, const T *u, T *dt, A *part, F f)
{
    widely(n % WIDE == 0 && aligned(v, u, dt), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            Pack<W, A> sum = {};
            ROWS(i, rows) {
                const Pack<W, A> dt_i = mapped(f, read<W>(u + i * n + j), read<W>(v + i * n + j));
                write(dt + i * n + j, dt_i);
                add_to(sum, dt_i);
            }
            keep_sum(0, j, sum);
        }
    });
    sum_block(0, n, part + blockIdx.y * n);
}

#define COLUMNS_THROUGH(name, formula) \
    extern "C" __global__ void __launch_bounds__(256, 4) name(Int rows, Int n, const T *v_, const T *u_, T *dt, A *part) \
    { columns_through(rows, n, v_, u_, dt, part, [](A u, A v) { return formula; }); }

COLUMNS_THROUGH(columns_relu, u <= 0 ? A(0) : v)
COLUMNS_THROUGH(columns_gelu, flush(v * gelu_slope(u)))

// part (gridDim.y, 2 n): the sums of v, and of v x with x = (z - start - mean) scale. `span` rows and `width` columns share one
// number of mean and scale, and start is the first entry of z among these. mean may be null, and counts as 0, as does start.
extern "C" __global__ void __launch_bounds__(256, 4) columns_normalized(Int rows, Int n, const T *v, const T *z, const A *mean,
                                                                        const A *scale, Int span, Int width, A *part)
{
    widely(n % WIDE == 0 && width % WIDE == 0 && aligned(v, z), [&](auto w) {
        constexpr int W = w.value;
        const Int groups = n / width;
        COLUMNS(j, n) {
            const Int group = j / width;
            Pack<W, A> sum = {}, x_sum = {};
#pragma unroll 2
            ROWS(i, rows) {
                const Int example = span == 1 ? i : i / span, shared = example * groups + group;
                const A start = mean ? A(z[example * span * n + group * width]) : A(0), centre = mean ? mean[shared] : A(0);
                const A factor = scale[shared];
                const Pack<W, A> v_i = read<W>(v + i * n + j), z_i = read<W>(z + i * n + j);
                WITHIN(k) x_sum.at[k] += v_i.at[k] * ((z_i.at[k] - start - centre) * factor);
                add_to(sum, v_i);
            }
            keep_sum(0, j, sum);
            keep_sum(1, j, x_sum);
        }
    });
    sum_block(0, n, part + blockIdx.y * 2 * n);
    sum_block(1, n, part + (blockIdx.y * 2 + 1) * n);
}

// The same with x = (z - mean) / sqrt(variance + eps), where each column has its mean and variance.
extern "C" __global__ void __launch_bounds__(256, 4) columns_standardized(Int rows, Int n, const T *v, const T *z, const A *mean,
                                                                          const A *variance, double eps, A *part)
{
    widely(n % WIDE == 0 && aligned(v, z, mean, variance), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const Pack<W, A> centre = read<W>(mean + j);
            Pack<W, A> sum = {}, x_sum = {};
#pragma unroll 2
            ROWS(i, rows) {
                const Pack<W, A> v_i = read<W>(v + i * n + j), z_i = read<W>(z + i * n + j);
                WITHIN(k) x_sum.at[k] += v_i.at[k] * (z_i.at[k] - centre.at[k]);
                add_to(sum, v_i);
            }
            const auto scaled = [&](A sum, A square) { return sum / sqrt(square + A(eps)); };
            keep_sum(0, j, sum);
            keep_sum(1, j, mapped(scaled, x_sum, read<W>(variance + j)));
        }
    });
    sum_block(0, n, part + blockIdx.y * 2 * n);
    sum_block(1, n, part + (blockIdx.y * 2 + 1) * n);
}

// Adds up part (parts, n), or (parts, 2 n) if dgamma is not null, and writes the sums to dbeta and dgamma, each null or (n,).
extern "C" __global__ void __launch_bounds__(1024) finish_columns(Int count, Int n, Int parts, const A *part, T *dbeta, T *dgamma)
{
    const A total = sum_parts(part, parts, count);
    const Int j = finished_column();
    if (threadIdx.x != 0 || j >= count) return;
    if (j >= n)
        dgamma[j - n] = T(total);
    else if (dbeta)
        dbeta[j] = T(total);
}

// part (blocks,): for each block, its part of the sum of x.
extern "C" __global__ void total(Int n, const T *x, A *part)
{
    A sum = 0;
    each_wide(n, aligned(x), [&](auto w, Int i) {
        constexpr int W = w.value;
        const Pack<W, A> x_i = read<W>(x + i);
        WITHIN(k) sum += x_i.at[k];
    });
    sum = team_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// u[i] = the sum of row i of x (rows, n). One team for each row.
extern "C" __global__ void __launch_bounds__(1024) row_sums(Int rows, Int n, const T *x, T *u)
{
    const Int row = team_row(), size = row < rows ? n : 0;
    A sum = 0;
    widely(n % WIDE == 0 && aligned(x), [&](auto w) {
        constexpr int W = w.value;
        TEAM_WIDE(j, size) {
            const Pack<W, A> x_j = read<W>(x + row * n + j);
            WITHIN(k) sum += x_j.at[k];
        }
    });
    sum = team_sum(sum);
    if (threadIdx.x == 0 && row < rows) u[row] = T(sum);
}

// Writes the sum of the parts to out, but at least `least`. Launched with one block.
extern "C" __global__ void finish_total(Int parts, const A *part, double least, T *out)
{
    A sum = 0;
    TEAM(i, parts) sum += part[i];
    sum = team_sum(sum);
    if (threadIdx.x == 0) *out = T(sum < A(least) ? A(least) : sum);  // NaN stays NaN
}

extern "C" __global__ void add(Int n, const T *a, const T *b, T *u)
{
    map(n, u, [](A a, A b) { return a + b; }, a, b);
}

// u = z + b in each row, b null or (n,); then max(u, 0) if `relu`. u may be z.
extern "C" __global__ void add_rows(Int rows, Int n, const T *z, const T *b, Int relu, T *u)
{
    widely(n % WIDE == 0 && aligned(z, b, u), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const Pack<W, A> shift = b ? read<W>(b + j) : Pack<W, A>{};
            ROWS(i, rows) {
                const auto f = [&](A z, A shift) {
                    const A x = b ? z + shift : z;
                    return relu && x < 0 ? A(0) : x;
                };
                write(u + i * n + j, mapped(f, read<W>(z + i * n + j), shift));
            }
        }
    });
}
