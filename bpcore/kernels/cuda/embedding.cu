// Looks up rows of a table, and adds up gradients of rows.

// u (rows, d): for each id, that row of W (n, d). NaN for an id that is out of range, because the host does not check ids.
extern "C" __global__ void gather(Int count, Int d, Int n, const void *ids, Int kind, const T *W, T *u)
{
    EACH(i, count) {
        const Int id = index_at(ids, kind, i / d);
        u[i] = id >= 0 && id < n ? W[id * d + i % d] : T(A(__int_as_float(0x7fc00000)));
    }
}

#define TABLE 16  // the most rows of `out` that a block sums

// out (n, d): row r is the sum of v[k] over all k with index[k] = r, in the order of k. A block of 128 threads sums `block_rows`
// rows and 128 columns. It reads 128 entries of the index at a time, and lists those that point to its rows.
extern "C" __global__ void scatter(Int rows, Int d, Int n, Int block_rows, const T *v, const void *index, Int kind, T *out)
{
    __shared__ A sums[TABLE][128];
    __shared__ int listed[128], row_of[128], places[4];
    const int thread = threadIdx.x;
    const Int from = blockIdx.x * block_rows, j = blockIdx.y * 128LL + thread;
    for (int r = 0; r < block_rows; r++) sums[r][thread] = 0;
    for (Int start = 0; start < rows; start += 128) {
        const Int row = start + thread < rows ? index_at(index, kind, start + thread) - from : Int(-1);
        const bool own = row >= 0 && row < block_rows;
        const unsigned voters = __ballot_sync(0xffffffffu, own);
        if (thread % 32 == 0) places[thread / 32] = __popc(voters);
        __syncthreads();
        int place = __popc(voters & ((1u << thread % 32) - 1)), count = 0;
        for (int w = 0; w < 4; w++) {
            if (w < thread / 32) place += places[w];
            count += places[w];
        }
        if (own) {
            listed[place] = thread;
            row_of[place] = int(row);
        }
        __syncthreads();
        if (j < d)
            for (int k = 0; k < count; k++) sums[row_of[k]][thread] += A(v[(start + listed[k]) * d + j]);
    }
    for (int r = 0; r < block_rows && from + r < n; r++)
        if (j < d) out[(from + r) * d + j] = T(sums[r][thread]);
}
