// Attention without a (tokens x tokens) matrix in global memory: the softmax is computed online, one tile of keys at a time. The
// backward pass computes it again from L, the logarithm of the sum of exponentials.
//
// Dao et al., 2022
//
// D: the features of a head, rounded up to 16, 32, 64 or 128. TILE: the rows of a tile. LANES threads (threadIdx.x) share the
// features of a row; each holds every LANES-th chunk of four. A block has blockDim.y rows. There are `tiles` blocks for each head
// of each example.

#define CHUNKS (D / 4)
#define FORWARD (D > 32 ? D / 32 : 1)  // lanes, so that a thread holds in registers 32 features of two arrays
#define BACKWARD (D / 16)  // lanes: 16 features of up to four arrays
#define BATCH 8  // scores between two updates of the maximum

struct alignas(16) Four { A x[4]; };

// The place of a block and a thread: head of an example, first row of the block, own row, and whether that row exists.
#define SIZES Int tiles, Int tokens, Int heads, Int size, Int causal, double scale_, double factor_
#define PLACE \
    const A scale = A(scale_), factor = A(factor_); \
    const Int head = blockIdx.x / tiles, n = head / heads, width = heads * size, stride = 3 * width; \
    const Int first = blockIdx.x % tiles * blockDim.y, row = first + threadIdx.y; \
    const Int from = n * tokens * stride + head % heads * size, from_u = n * tokens * width + head % heads * size; \
    const bool there = row < tokens;

__device__ inline A dot(const Four &a, const Four &b)
{
    return a.x[0] * b.x[0] + a.x[1] * b.x[1] + a.x[2] * b.x[2] + a.x[3] * b.x[3];
}

__device__ inline void add(Four &sum, A factor, const Four &a)
{
    for (int k = 0; k < 4; k++) sum.x[k] += factor * a.x[k];
}

// Chunk c of a row of `size` features; zero beyond the row's end.
__device__ inline Four chunk(const T *row, int c, Int size, bool there)
{
    Four four;
    for (int k = 0; k < 4; k++) four.x[k] = there && 4 * c + k < size ? A(row[4 * c + k]) : A(0);
    return four;
}

template <int LANES> __device__ inline void load_own(const T *row, Int size, bool there, Four (&own)[CHUNKS / LANES])
{
    for (int i = 0; i < CHUNKS / LANES; i++) own[i] = chunk(row, threadIdx.x + LANES * i, size, there);
}

template <int LANES> __device__ inline void store_own(T *row, Int size, bool there, A factor, const Four (&own)[CHUNKS / LANES])
{
    for (int i = 0; i < CHUNKS / LANES; i++)
        for (int k = 0; k < 4; k++) {
            const int feature = 4 * (threadIdx.x + LANES * i) + k;
            if (there && feature < size) row[feature] = T(own[i].x[k] * factor);
        }
}

// The product of the thread's own row with a row of a tile, summed over the lanes.
template <int LANES> __device__ inline A product(const Four (&own)[CHUNKS / LANES], const Four *row)
{
    A sum = 0;
    for (int i = 0; i < CHUNKS / LANES; i++) sum += dot(own[i], row[threadIdx.x + LANES * i]);
    for (int k = LANES / 2; k > 0; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
    return sum;
}

template <int LANES> __device__ inline void add_row(Four (&own)[CHUNKS / LANES], A factor, const Four *row)
{
    for (int i = 0; i < CHUNKS / LANES; i++) add(own[i], factor, row[threadIdx.x + LANES * i]);
}

// The block loads the rows from start to start + TILE.
__device__ inline void load_tile(Four (*tile)[CHUNKS], const T *rows, Int stride, Int start, Int tokens, Int size)
{
    for (int e = threadIdx.y * blockDim.x + threadIdx.x; e < TILE * CHUNKS; e += blockDim.x * blockDim.y) {
        const Int row = start + e / CHUNKS;
        tile[e / CHUNKS][e % CHUNKS] = chunk(rows + row * stride, e % CHUNKS, size, row < tokens);
    }
}

// Which keys of the tile at `start` are there to be seen.
__device__ inline void load_seen(bool *seen, const bool *padding, Int n, Int start, Int tokens)
{
    for (int j = threadIdx.y * blockDim.x + threadIdx.x; j < TILE; j += blockDim.x * blockDim.y)
        seen[j] = start + j < tokens && (!padding || padding[n * tokens + start + j]);
}

extern "C" __global__ void attention(SIZES, const T *qkv, const bool *padding, const bool *keep, T *u, A *L)
{
    __shared__ Four keys[TILE][CHUNKS], values[TILE][CHUNKS];
    __shared__ bool seen[TILE];
    PLACE
    Four q[CHUNKS / FORWARD], mixed[CHUNKS / FORWARD] = {};
    load_own<FORWARD>(qkv + from + row * stride, size, there, q);
    for (int i = 0; i < CHUNKS / FORWARD; i++)
        for (int k = 0; k < 4; k++) q[i].x[k] *= scale;
    A largest = -INFINITE, total = 0;
    bool sees_any = false;
    const Int stop = causal ? min(tokens, first + Int(blockDim.y)) : tokens;
    for (Int start = 0; start < stop; start += TILE) {
        __syncthreads();  // all threads have read the tile before
        load_tile(keys, qkv + from + width, stride, start, tokens, size);
        load_tile(values, qkv + from + 2 * width, stride, start, tokens, size);
        load_seen(seen, padding, n, start, tokens);
        __syncthreads();
        for (int j = 0; j < TILE; j += BATCH) {
            A scores[BATCH], best = largest;
            bool any = false;  // whether a visible score is above -infinity, or NaN
            for (int b = 0; b < BATCH; b++) {
                const A score = product<FORWARD>(q, keys[j + b]);
                const bool sees = seen[j + b] && (!causal || start + j + b <= row);
                scores[b] = sees ? score : -INFINITE;
                best = fmax(best, scores[b]);
                sees_any = sees_any || sees;
                any = any || scores[b] != -INFINITE;
            }
            if (!any) continue;
            const A shrink = exp(largest - best);
            total *= shrink;
            for (int i = 0; i < CHUNKS / FORWARD; i++)
                for (int k = 0; k < 4; k++) mixed[i].x[k] *= shrink;
            for (int b = 0; b < BATCH; b++) {
                A weight = exp(scores[b] - best);
                total += weight;
                const Int key = start + j + b;
                if (keep && there && key < tokens) weight = keep[(head * tokens + row) * tokens + key] ? weight * factor : A(0);
                if (weight != 0) add_row<FORWARD>(mixed, weight, values[j + b]);
            }
            largest = best;
        }
    }
    if (sees_any && total == 0) total = A(__int_as_float(0x7fc00000));  // all scores are -infinity
    store_own<FORWARD>(u + from_u + row * width, size, there, sees_any ? 1 / total : A(0), mixed);
    if (there && threadIdx.x == 0) L[head * tokens + row] = sees_any ? largest + log(total) : A(0);
}

// x, 0 where it is larger: of huge scores L is rounded by more than 1.
__device__ inline A at_most_0(A x) { return x > A(0) ? A(0) : x; }

// What has weight 0 is skipped, because 0 times an infinity is NaN.
//
// A, dJ/dS (S: the scores) and the factor of dropout for one query and one key. product: q k; dA: v times the values of the key;
// kept: the factor of dropout.
#define WEIGHT(visible, product, L) ((visible) ? flush(exp(at_most_0((product) * scale - (L)))) : A(0))
#define SLOPE(weight, dA, kept, mean) \
    ((weight) != 0 ? flush((weight) * (((kept) != 0 ? (dA) * (kept) : A(0)) - (mean)) * scale) : A(0))
#define KEPT(visible, query, key) \
    ((keep && (visible) && !keep[(head * tokens + (query)) * tokens + (key)]) ? A(0) : keep ? factor : A(1))

// Writes dq, and for the next kernel means (n, heads, tokens): the sum of A dA over keys, equal to the sum of u v over features.
extern "C" __global__ void backward_queries(SIZES, const T *qkv, const bool *padding, const bool *keep, const T *u, const A *L,
                                            const T *v, A *means, T *dqkv)
{
    __shared__ Four keys[TILE][CHUNKS], values[TILE][CHUNKS];
    __shared__ bool seen[TILE];
    PLACE
    Four q[CHUNKS / BACKWARD], v_own[CHUNKS / BACKWARD], dq[CHUNKS / BACKWARD] = {};
    load_own<BACKWARD>(u + from_u + row * width, size, there, q);
    load_own<BACKWARD>(v + from_u + row * width, size, there, v_own);
    A mean = 0;
    for (int i = 0; i < CHUNKS / BACKWARD; i++) mean += dot(q[i], v_own[i]);
    for (int k = BACKWARD / 2; k > 0; k /= 2) mean += __shfl_xor_sync(0xffffffffu, mean, k);
    if (there && threadIdx.x == 0) means[head * tokens + row] = mean;
    load_own<BACKWARD>(qkv + from + row * stride, size, there, q);
    const A L_own = there ? L[head * tokens + row] : A(0);
    const Int stop = causal ? min(tokens, first + Int(blockDim.y)) : tokens;
    for (Int start = 0; start < stop; start += TILE) {
        __syncthreads();
        load_tile(keys, qkv + from + width, stride, start, tokens, size);
        load_tile(values, qkv + from + 2 * width, stride, start, tokens, size);
        load_seen(seen, padding, n, start, tokens);
        __syncthreads();
        for (int j = 0; j < TILE; j++) {
            const A score = product<BACKWARD>(q, keys[j]), dA = product<BACKWARD>(v_own, values[j]);
            const bool visible = there && seen[j] && (!causal || start + j <= row);
            const A weight = WEIGHT(visible, score, L_own), kept = KEPT(visible, row, start + j);
            const A slope = SLOPE(weight, dA, kept, mean);
            if (slope != 0) add_row<BACKWARD>(dq, slope, keys[j]);
        }
    }
    store_own<BACKWARD>(dqkv + from + row * stride, size, there, A(1), dq);
}

// Writes dk and dvalues. A thread's own row is a key; tiles have queries.
extern "C" __global__ void backward_keys(SIZES, const T *qkv, const bool *padding, const bool *keep, const A *L, const T *v,
                                         const A *means, T *dqkv)
{
    __shared__ Four queries[TILE][CHUNKS], vs[TILE][CHUNKS];
    __shared__ A Ls[TILE], mean[TILE];
    PLACE
    Four k[CHUNKS / BACKWARD], value[CHUNKS / BACKWARD], dk[CHUNKS / BACKWARD] = {}, dvalue[CHUNKS / BACKWARD] = {};
    load_own<BACKWARD>(qkv + from + width + row * stride, size, there, k);
    load_own<BACKWARD>(qkv + from + 2 * width + row * stride, size, there, value);
    const bool seen = there && (!padding || padding[n * tokens + row]);
    for (Int start = causal ? first / TILE * TILE : 0; start < tokens; start += TILE) {
        __syncthreads();
        load_tile(queries, qkv + from, stride, start, tokens, size);
        load_tile(vs, v + from_u, width, start, tokens, size);
        for (int j = threadIdx.y * blockDim.x + threadIdx.x; j < TILE; j += blockDim.x * blockDim.y) {
            Ls[j] = start + j < tokens ? L[head * tokens + start + j] : A(0);
            mean[j] = start + j < tokens ? means[head * tokens + start + j] : A(0);
        }
        __syncthreads();
        for (int j = 0; j < TILE; j++) {
            const A score = product<BACKWARD>(k, queries[j]), dA = product<BACKWARD>(value, vs[j]);
            const bool visible = seen && start + j < tokens && (!causal || row <= start + j);
            const A weight = WEIGHT(visible, score, Ls[j]), kept = KEPT(visible, start + j, row);
            const A slope = SLOPE(weight, dA, kept, mean[j]);
            if (weight != 0 && kept != 0) add_row<BACKWARD>(dvalue, weight * kept, vs[j]);
            if (slope != 0) add_row<BACKWARD>(dk, slope, queries[j]);
        }
    }
    store_own<BACKWARD>(dqkv + from + width + row * stride, size, there, A(1), dk);
    store_own<BACKWARD>(dqkv + from + 2 * width + row * stride, size, there, A(1), dvalue);
}
