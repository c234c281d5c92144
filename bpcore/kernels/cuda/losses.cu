// Losses: J = (sum of w l) / (sum of w) over the examples; w = 1 where weights is null.

// The number of blocks that have finished; the last one resets it to 0. So only one stream at a time may compute losses.
__device__ unsigned finished = 0;

// Writes J, where the first thread of each team has its part of both sums. part (2, gridDim.x) is scratch for the sums of each
// block, which the last block to finish adds up in a fixed order. All threads of all blocks must call.
__device__ inline void finish_mean(Int examples, A ell_sum, A weight_sum, const T *weights, A *part, T *J)
{
    __shared__ A ell[128], weight[128];  // one for each team of the block
    __shared__ unsigned before;
    if (threadIdx.x == 0) {
        ell[threadIdx.y] = ell_sum;
        weight[threadIdx.y] = weight_sum;
    }
    __syncthreads();
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread == 0) {
        for (unsigned i = 1; i < blockDim.y; i++) {
            ell_sum += ell[i];
            weight_sum += weight[i];
        }
        part[blockIdx.x] = ell_sum;
        part[gridDim.x + blockIdx.x] = weight_sum;
        __threadfence();  // the parts are written before this block counts as finished
        before = atomicInc(&finished, gridDim.x - 1);
    }
    __syncthreads();
    if (before != gridDim.x - 1) return;
    __threadfence();
    const unsigned threads = blockDim.x * blockDim.y;
    const volatile A *parts = part;
    ell_sum = weight_sum = 0;
    for (unsigned i = thread; i < gridDim.x; i += threads) {
        ell_sum += parts[i];
        weight_sum += parts[gridDim.x + i];
    }
    __shared__ A ells[1024], sums[1024];
    ells[thread] = ell_sum;
    sums[thread] = weight_sum;
    for (unsigned half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) {
            ells[thread] += ells[thread + half];
            sums[thread] += sums[thread + half];
        }
    }
    const A sum = weights ? sums[0] : A(examples);
    if (thread == 0) *J = T(ells[0] / (sum < A(SMALLEST) ? A(SMALLEST) : sum));  // NaN stays NaN
}

// Cross-entropy for rows t (rows, k) and class indices y (rows,). Writes phi = softmax(t) and J. kind: the integer type of y, see
// index_at() in common.cu. part: see finish_mean.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy(Int rows, Int k, const T *t, const void *y, Int kind,
                                                                 const T *weights, double smoothing, A *part, T *phi, T *J)
{
    A ell_sum = 0, weight_sum = 0;
    for (Int from_row = blockIdx.x * (Int)blockDim.y; from_row < rows; from_row += gridDim.x * (Int)blockDim.y) {
        const Int row = from_row + threadIdx.y, m = row < rows ? k : 0, from = row * k;
        A largest = -INFINITE, total = 0, sum = 0;
        widely(k % WIDE == 0 && aligned(t, phi), [&](auto w) {
            constexpr int W = w.value;
            largest = largest_of<W>(t + from, m);
            TEAM_WIDE(j, m) {
                const Pack<W, A> x = read<W>(t + from + j);
                WITHIN(i) {
                    total += exp(x.at[i] - largest);
                    sum += x.at[i] - largest;
                }
            }
            total = team_sum(total);
            if (smoothing != 0) sum = team_sum(sum);
            const auto probability = [&](A x) { return exp(x - largest) / total; };
            TEAM_WIDE(j, m) write(phi + from + j, mapped(probability, read<W>(t + from + j)));
        });
        if (threadIdx.x == 0 && row < rows) {
            const Int own = index_at(y, kind, row);
            const A w = weights ? A(weights[row]) : A(1), log_total = log(total);
            A l = own >= 0 && own < k ? A(1 - smoothing) * (log_total - (A(t[from + own]) - largest)) : A(0);
            if (smoothing != 0) l += A(smoothing / k) * (k * log_total - sum);
            ell_sum += w != 0 ? w * l : A(0);
            weight_sum += w;
        }
    }
    finish_mean(rows, ell_sum, weight_sum, weights, part, J);
}

// dt = (phi - own e_y - every) v w / (sum of w); without weights, w = 1 and the sum is `rows`. One team for each row.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_backward(Int rows, Int k, const T *phi, const void *y, Int kind,
                                                                          const T *weights, const T *weight_sum, double own,
                                                                          double every, double v_value, const T *v_at, T *dt)
{
    const Int row = team_row(), from = row * k;
    if (row >= rows) return;
    const A v = number(v_value, v_at) / (weights ? A(*weight_sum) : A(rows));
    const A weight = weights ? A(weights[row]) : A(1), factor = weight * v;
    const Int label = index_at(y, kind, row);
    widely(k % WIDE == 0 && aligned(phi, dt), [&](auto w) {
        constexpr int W = w.value;
        TEAM_WIDE(j, k) {
            Pack<W, A> x = read<W>(phi + from + j);
            WITHIN(i) {
                const A target = (label == j + i ? A(own) : A(0)) + A(every);
                x.at[i] = weight != 0 ? flush((x.at[i] - target) * factor) : A(0);
            }
            write(dt + from + j, x);
        }
    });
}

// The weight of the example to which entry i of its outputs belongs.
__device__ inline A weight_at(const T *weights, Int width, Int i) { return weights ? A(weights[i / width]) : A(1); }

// J where l is the sum of f(z, y) over the `width` outputs of an example. part: see finish_mean.
template <class F> __device__ inline void mean_loss(Int n, Int width, const T *z, const T *y, const T *weights, A *part, T *J, F f)
{
    A ell_sum = 0, weight_sum = 0;
    each_wide(n, aligned(z, y), [&](auto w, Int i) {
        constexpr int W = w.value;
        const Pack<W, A> ell = mapped(f, read<W>(z + i), read<W>(y + i));
        WITHIN(k) {
            const A weight = weight_at(weights, width, i + k);
            if (weight != 0) ell_sum += weight * ell.at[k];
        }
    });
    if (weights) EACH(i, n / width) weight_sum += A(weights[i]);
    finish_mean(n / width, team_sum(ell_sum), team_sum(weight_sum), weights, part, J);
}

// dz = f(z, y) v w / (sum of w); without weights, w = 1 and the sum is the number of examples.
template <class F> __device__ inline void mean_loss_backward(Int n, Int width, const T *z, const T *y, const T *weights,
                                                             const T *weight_sum, A v, T *dz, F f)
{
    v /= weights ? A(*weight_sum) : A(n / width);
    each_wide(n, aligned(z, y, dz), [&](auto w, Int i) {
        constexpr int W = w.value;
        Pack<W, A> d = mapped(f, read<W>(z + i), read<W>(y + i));
        WITHIN(k) {
            const A weight = weight_at(weights, width, i + k);
            d.at[k] = weight != 0 ? flush(d.at[k] * (weight * v)) : A(0);
        }
        write(dz + i, d);
    });
}

// A loss by its l for one output and the derivative of that, with one constant.
#define LOSS(name, ell, slope) \
    extern "C" __global__ void name(Int n, Int width, const T *z_, const T *y_, const T *weights, double constant, A *part, T *J) \
    { mean_loss(n, width, z_, y_, weights, part, J, [c = A(constant)](A z, A y) { return ell; }); } \
    extern "C" __global__ void name##_backward(Int n, Int width, const T *z_, const T *y_, const T *weights, const T *weight_sum, \
                                               double v_value, const T *v_at, double constant, T *dz) \
    { \
        const auto f = [c = A(constant)](A z, A y) { return slope; }; \
        mean_loss_backward(n, width, z_, y_, weights, weight_sum, number(v_value, v_at), dz, f); \
    }

// x, but at least -c and at most c. NaN stays NaN.
__device__ inline A within(A x, A c) { return x > c ? c : x < -c ? -c : x; }

// log(1 + e^z) - y z
__device__ inline A logistic_loss(A z, A y)
{
    const A wrong = z >= 0 ? 1 - y : y;  // the part of the label that disagrees with the sign of z
    return (wrong != 0 ? wrong * fabs(z) : A(0)) + log1p(exp(-fabs(z)));
}

LOSS(squared_error, A(0.5) * ((z - y) * (z - y)), z - y)
LOSS(huber, within(fabs(z - y), c) * (fabs(z - y) - A(0.5) * within(fabs(z - y), c)), within(z - y, c))
LOSS(logistic, logistic_loss(z, y), logistic(z) - y)
