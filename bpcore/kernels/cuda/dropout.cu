// Dropout: its mask, from Philox4x64-10 as in NumPy, and its arithmetic.
//
// Salmon et al., 2011

typedef unsigned long long Word;

// Replaces the counter c by its block of four random words, in ten rounds.
__device__ inline void philox(Word *c, Word key0, Word key1)
{
    for (int round = 0; round < 10; round++) {
        const Word multiplier0 = 0xD2E7470EE14C6C93ULL, multiplier1 = 0xCA5A826395121157ULL;
        const Word high0 = __umul64hi(multiplier0, c[0]), low0 = multiplier0 * c[0];
        const Word high1 = __umul64hi(multiplier1, c[2]), low1 = multiplier1 * c[2];
        c[0] = high1 ^ c[1] ^ key0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ key1;
        c[3] = low0;
        key0 += 0x9E3779B97F4A7C15ULL;
        key1 += 0xBB67AE8584CAA73BULL;
    }
}

// keep (size,): element i is true if the i-th 32-bit word, low half first, is at least `bound`. Block b of the stream has the
// counter (b + 1, step, micro, use), because NumPy increments the counter before it draws. A thread draws one block, eight words.
extern "C" __global__ void keep_mask(Int blocks, Int size, Word seed, Word seed_high, Word step_value, const Int *step_at,
                                     Word micro, Word use, Int bound, bool *keep)
{
    const Word step = step_at ? (Word)*step_at : step_value;
    EACH(b, blocks) {
        Word c[4] = {(Word)b + 1, step, micro, use};
        philox(c, seed, seed_high);
        for (int k = 0; k < 8 && 8 * b + k < size; k++)
            keep[8 * b + k] = Int(c[k / 2] >> (32 * (k % 2)) & 0xFFFFFFFFULL) >= bound;
    }
}

// u = z factor where keep, else 0.
extern "C" __global__ void dropout(Int n, const T *z, const bool *keep, double factor, T *u)
{
    map(n, u, [factor = A(factor)](A z, A keep) { return keep != 0 ? z * factor : A(0); }, z, keep);
}

// The same with one row of keep for each `span` rows of z (rows, n).
extern "C" __global__ void dropout_rows(Int rows, Int n, const T *z, const bool *keep, Int span, double factor, T *u)
{
    widely(n % WIDE == 0 && aligned(z, keep, u), [&](auto w) {
        constexpr int W = w.value;
        const auto f = [&](A z, A keep) { return keep != 0 ? z * A(factor) : A(0); };
        COLUMNS(j, n)
            ROWS(i, rows) write(u + i * n + j, mapped(f, read<W>(z + i * n + j), read<W>(keep + i / span * n + j)));
    });
}
