// T is the type of arrays, A the type of computation (float for half). Indices are long long. A block has 32, 64, ... threads.

typedef long long Int;

#define INFINITE A(__int_as_float(0x7f800000))

#define EACH(i, n) for (Int i = blockIdx.x * (Int)blockDim.x + threadIdx.x; i < n; i += (Int)gridDim.x * blockDim.x)

// Loads and stores of 16 bytes: WIDE entries of an array of T, and WIDE of another type beside them.
#define WIDE (16 / (int)sizeof(T))
#define WITHIN(k) for (int k = 0; k < WIDE; k++)

template <class X> struct alignas(sizeof(X) * WIDE < 16 ? sizeof(X) * WIDE : 16) Pack { X at[WIDE]; };

// Whether all arrays begin at a multiple of 16 bytes; a null pointer does.
template <class... X> __device__ inline bool aligned(const X *...x) { return ((unsigned long long)x | ... | 0ULL) % 16 == 0; }

// WIDE entries out of n, which a thread takes together. If `wide`, they are neighbours at a multiple of 16 bytes, and all of them
// exist. Else they are `step` apart, so that neighbouring threads take neighbours, and those from n on do not exist.
template <bool wide> struct Entries { Int first, step, n; };

template <bool wide> __device__ inline Int at(const Entries<wide> &e, int k) { return wide ? e.first + k : e.first + k * e.step; }

template <bool wide> __device__ inline bool has(const Entries<wide> &e, int k) { return wide || at(e, k) < e.n; }

// These entries of x; 0 for those that do not exist.
template <bool wide, class X> __device__ inline Pack<A> read(const Entries<wide> &e, const X *x)
{
    Pack<A> a = {};
    if (wide) {
        const Pack<X> p = *(const Pack<X> *)(x + e.first);
        WITHIN(k) a.at[k] = A(p.at[k]);
    } else
        WITHIN(k) if (has(e, k)) a.at[k] = A(x[at(e, k)]);
    return a;
}

template <bool wide, class X> __device__ inline void write(const Entries<wide> &e, X *x, const Pack<A> &a)
{
    if (wide) {
        Pack<X> p;
        WITHIN(k) p.at[k] = X(a.at[k]);
        *(Pack<X> *)(x + e.first) = p;
    } else
        WITHIN(k) if (has(e, k)) x[at(e, k)] = X(a.at[k]);
}

// f(w), where w.value is `wide` as a constant: the loops of f are compiled for each.
template <bool x> struct Constant { static constexpr bool value = x; };
template <class F> __device__ inline void widely(bool wide, F f)
{
    if (wide)
        f(Constant<true>());
    else
        f(Constant<false>());
}

template <class F, class... P> __device__ inline Pack<A> mapped(F f, const P &...p)
{
    Pack<A> u;
    WITHIN(k) u.at[k] = f(p.at[k]...);
    return u;
}

// u[i] = f(x[i], ...) for i < n, in a launch by `each_wide`: by 16 bytes if all arrays are aligned, except for what is left over.
template <class F, class... X> __device__ inline void map(Int n, T *u, F f, const X *...x)
{
    const Int thread = blockIdx.x * (Int)blockDim.x + threadIdx.x, threads = gridDim.x * (Int)blockDim.x;
    const Int whole = aligned(u, x...) ? n / WIDE * WIDE : 0;
    for (Entries<true> e = {thread * WIDE, 0, whole}; e.first < whole; e.first += threads * WIDE)
        write(e, u, mapped(f, read(e, x)...));
    for (Int i = whole + thread; i < n; i += threads) u[i] = T(f(A(x[i])...));
}

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

// The same for Entries<wide> of the row.
#define TEAM_WIDE(e, n) \
    for (Entries<wide> e = {threadIdx.x * Int(wide ? WIDE : 1), blockDim.x, n}; e.first < n; e.first += blockDim.x * WIDE)

// In a launch by `each_row`: the columns out of n that a thread has, and its loop over the rows.
template <bool wide> __device__ inline Entries<wide> columns_of_thread(Int n)
{
    return {blockIdx.x * (Int)blockDim.x * WIDE + threadIdx.x * Int(wide ? WIDE : 1), blockDim.x, n};
}

#define ROWS(i, rows) for (Int i = blockIdx.y * (Int)blockDim.y + threadIdx.y; i < rows; i += gridDim.y * (Int)blockDim.y)
