// Sums over the rows of a matrix with n columns, in two passes. Launched by `by_columns`, 256 threads sum some of the rows of their
// columns; then blocks of 32 x 32 threads add up the parts of 32 columns each. The order is fixed, and the same at all addresses.

__shared__ A column_sums[2][256 * (WIDE + 1)];

template <int W> __device__ inline void add_to(Pack<W, A> &sum, const Pack<W, A> &x) { WITHIN(k) sum.at[k] += x.at[k]; }

// Of row threadIdx.y and column c of a block. WIDE neighbours, then a gap: threads write to different banks.
__device__ inline int slot(int c) { return threadIdx.y * blockDim.x * (WIDE + 1) + c + c / WIDE; }

// Keep a thread's sum for its columns j ...
template <int W> __device__ inline void keep_sum(int which, Int j, const Pack<W, A> &sum)
{
    const int c = int(j - blockIdx.x * ACROSS);
    WITHIN(k) column_sums[which][slot(c + k)] = sum.at[k];
}

// part[j] = the sum of what the threads of the block have kept for column j. All threads of the block must call.
__device__ inline void sum_block(int which, Int n, A *part)
{
    __syncthreads();
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int c = thread; c < ACROSS && blockIdx.x * ACROSS + c < n; c += 256) {
        A total = 0;
        for (int y = 0; y < (int)blockDim.y; y++) total += column_sums[which][y * blockDim.x * (WIDE + 1) + c + c / WIDE];
        part[blockIdx.x * ACROSS + c] = total;
    }
}

// The column that a thread gets from `sum_parts`: the sum over the rows of part (parts, n). All threads of the block must call.
__device__ inline Int finished_column() { return blockIdx.x * 32LL + threadIdx.y; }

__device__ inline A sum_parts(const A *part, Int parts, Int n)
{
    __shared__ A sums[32][33];
    const Int j = blockIdx.x * 32LL + threadIdx.x;
    A total = 0;
    if (j < n)
        for (Int k = threadIdx.y; k < parts; k += 32) total += part[k * n + j];
    sums[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    return team_sum(sums[threadIdx.x][threadIdx.y]);
}
