// Cross-entropy for rows t (rows, k) and class indices y (rows,). kind: the integer type of y, see index_at() in common.cu.

// The number of blocks that have finished; the last one resets it to 0. So only one stream at a time may compute losses.
__device__ unsigned finished = 0;

// Writes phi = softmax(t) and J = (sum of w l) / (sum of w). part (2, gridDim.x) is scratch for the sums of each block, which the
// last block to finish adds up in a fixed order.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy(Int rows, Int k, const T *t, const void *y, Int kind,
                                                                 const T *weights, double smoothing, A *part, T *phi, T *J)
{
    __shared__ A ell[128], weight[128];  // one for each team of the block
    __shared__ unsigned before;
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
    const A sum = weights ? sums[0] : A(rows);
    if (thread == 0) *J = T(ells[0] / (sum < A(SMALLEST) ? A(SMALLEST) : sum));  // NaN stays NaN
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
