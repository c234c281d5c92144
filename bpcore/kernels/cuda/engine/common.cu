// T is the type of arrays, A the type of computation (float for half). Indices are long long. A block has 32, 64, ... threads.

typedef long long Int;

#define INFINITE A(__int_as_float(0x7f800000))

#define EACH(i, n) for (Int i = blockIdx.x * (Int)blockDim.x + threadIdx.x; i < n; i += (Int)gridDim.x * blockDim.x)

// Loads and stores of 16 bytes: WIDE entries of an array of T. A kernel is written for W entries at once, neighbours in one row,
// and compiled for W = WIDE and for W = 1; `widely` chooses.
#define WIDE (16 / (int)sizeof(T))
#define WITHIN(k) for (int k = 0; k < W; k++)

template <int W, class X> struct alignas(sizeof(X) * W < 16 ? sizeof(X) * W : 16) Pack { X at[W]; };

// Whether all arrays begin at a multiple of 16 bytes; a null pointer does.
template <class... X> __device__ inline bool aligned(const X *...x) { return ((unsigned long long)x | ... | 0ULL) % 16 == 0; }

template <int W, class X> __device__ inline Pack<W, A> read(const X *x)
{
    const Pack<W, X> p = *(const Pack<W, X> *)x;
    Pack<W, A> a;
    WITHIN(k) a.at[k] = A(p.at[k]);
    return a;
}

template <int W, class X> __device__ inline void write(X *x, const Pack<W, A> &a)
{
    Pack<W, X> p;
    WITHIN(k) p.at[k] = X(a.at[k]);
    if constexpr (sizeof p % sizeof(uint4) == 0)  // by __stwb, because NVRTC splits an ordinary store of 16 bytes
        for (int q = 0; q < int(sizeof p / sizeof(uint4)); q++) __stwb((uint4 *)x + q, ((const uint4 *)p.at)[q]);
    else
        *(Pack<W, X> *)x = p;
}

template <int W, class F, class... X> __device__ inline Pack<W, A> mapped(F f, const Pack<W, A> &first, const X &...others)
{
    Pack<W, A> u;
    WITHIN(k) u.at[k] = f(first.at[k], others.at[k]...);
    return u;
}

// f(w), where w.value is WIDE or 1 as a constant.
template <int x> struct Constant { static constexpr int value = x; };
template <class F> __device__ inline void widely(bool wide, F f)
{
    if (wide)
        f(Constant<WIDE>());
    else
        f(Constant<1>());
}

// f(w, i) for the w.value entries from i on, until all n have had their turn, in a launch by `each_wide`. If `wide`, 16 bytes at a
// time, and what they leave over entry by entry.
template <class F> __device__ inline void each_wide(Int n, bool wide, F f)
{
    const Int thread = blockIdx.x * (Int)blockDim.x + threadIdx.x, threads = gridDim.x * (Int)blockDim.x;
    const Int whole = wide ? n / WIDE * WIDE : 0;
    for (Int i = thread * WIDE; i < whole; i += threads * WIDE) f(Constant<WIDE>(), i);
    for (Int i = whole + thread; i < n; i += threads) f(Constant<1>(), i);
}

// u[i] = f(x[i], ...) for i < n.
template <class F, class... X> __device__ inline void map(Int n, T *u, F f, const X *...x)
{
    each_wide(n, aligned(u, x...), [&](auto w, Int i) { write(u + i, mapped(f, read<w.value>(x + i)...)); });
}

// f(g[i], x[i], ...) for i < n, which writes to x[i], ...
template <class F, class... X> __device__ inline void update(Int n, F f, const T *g, X *...x)
{
    each_wide(n, aligned(g, x...), [&](auto w, Int i) {
        constexpr int W = w.value;
        const auto step = [&](const Pack<W, A> &g_i, auto... x_i) {
            WITHIN(k) f(g_i.at[k], x_i.at[k]...);
            (write(x + i, x_i), ...);
        };
        step(read<W>(g + i), read<W>(x + i)...);
    });
}

__device__ inline A flush(A x) { return fabs(x) < A(FLUSH) ? A(0) : x; }

__device__ inline A logistic(A z)
{
    const A e = exp(-fabs(z));
    return flush((z >= 0 ? A(1) : e) / (1 + e));
}

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

// The same for W entries at once.
#define TEAM_WIDE(j, n) for (Int j = threadIdx.x * Int(W); j < n; j += blockDim.x * Int(W))

// The largest of the n entries of a team's row x.
template <int W> __device__ inline A largest_of(const T *x, Int n)
{
    A largest = -INFINITE;
    TEAM_WIDE(j, n) {
        const Pack<W, A> at = read<W>(x + j);
        WITHIN(k) largest = fmax(largest, at.at[k]);
    }
    return team_max(largest);
}

// In a launch by `by_columns`: a thread's loops over its columns out of n, W at once, and over its rows.
#define ACROSS (blockDim.x * Int(WIDE))
#define COLUMNS(j, n) \
    for (Int j = blockIdx.x * ACROSS + threadIdx.x * Int(W); j < min(Int(n), (blockIdx.x + 1) * ACROSS); j += blockDim.x * Int(W))
#define ROWS(i, rows) for (Int i = blockIdx.y * (Int)blockDim.y + threadIdx.y; i < rows; i += gridDim.y * (Int)blockDim.y)
