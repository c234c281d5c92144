// T is the type of arrays, A the type of computation (float for half). Indices are long long. A block has 32, 64, ... threads.

typedef long long Int;

#define INFINITE A(__int_as_float(0x7f800000))

#define EACH(i, n) for (Int i = blockIdx.x * (Int)blockDim.x + threadIdx.x; i < n; i += (Int)gridDim.x * blockDim.x)

__device__ inline A flush(A x) { return fabs(x) < A(FLUSH) ? A(0) : x; }

__device__ inline A number(double value, const T *at) { return at ? A(*at) : A(value); }

// y[i] for an array of integers. kind: bytes of an integer, negative for unsigned types.
__device__ inline Int index_at(const void *y, Int kind, Int i)
{
    switch (kind) {
    case 1: return ((const signed char *)y)[i];
    case -1: return ((const unsigned char *)y)[i];
    case 2: return ((const short *)y)[i];
    case -2: return ((const unsigned short *)y)[i];
    case 4: return ((const int *)y)[i];
    case -4: return ((const unsigned *)y)[i];
    default: return ((const Int *)y)[i];
    }
}

// Sum and maximum over a team, the blockDim.x threads that share a row; each of them gets the result. All threads of the block
// must call. blockDim.x is a power of two; if it is above 32, the block has one row.
template <class X> __device__ inline X team_sum(X x)
{
    __shared__ X part[32];
    for (int k = min((int)blockDim.x, 32) / 2; k > 0; k /= 2) x += __shfl_xor_sync(0xffffffffu, x, k);
    if (blockDim.x > 32) {
        __syncthreads();  // all threads have read the parts of the sum before this one
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
        __syncthreads();
        x = part[0];
        for (int k = 1; k < (int)blockDim.x / 32; k++) x += part[k];
    }
    return x;
}

__device__ inline A team_max(A x)
{
    __shared__ A part[32];
    for (int k = min((int)blockDim.x, 32) / 2; k > 0; k /= 2) x = fmax(x, __shfl_xor_sync(0xffffffffu, x, k));
    if (blockDim.x > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
        __syncthreads();
        x = part[0];
        for (int k = 1; k < (int)blockDim.x / 32; k++) x = fmax(x, part[k]);
    }
    return x;
}

// Whether `yes` in a thread of the warp.
__device__ inline bool any_in_warp(bool yes)
{
    float count = yes;
    for (int k = 16; k > 0; k /= 2) count += __shfl_xor_sync(0xffffffffu, count, k);
    return count > 0;
}

// The row of this thread's team, and the team's loop over the n entries of its row.
__device__ inline Int team_row() { return blockIdx.x * (Int)blockDim.y + threadIdx.y; }

#define TEAM(j, n) for (Int j = threadIdx.x; j < n; j += blockDim.x)
