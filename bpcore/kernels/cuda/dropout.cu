// Dropout's mask, from Philox4x64-10 (Salmon et al., 2011) as NumPy has it, and its arithmetic.

typedef unsigned long long Word;

// The block of four words at a counter, after ten rounds.
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

// kept (size,): element i is kept where the i-th 32-bit word, low half first, is at least `bound`. The stream's block b is at
// counter (b + 1, step, micro, use): NumPy counts before it draws. A thread draws one block, eight words.
extern "C" __global__ void keep_mask(Int blocks, Int size, Word seed, Word seed_high, Word step_value, const Int *step_at, Word micro,
                                     Word use, Int bound, bool *kept)
{
    const Word step = step_at ? (Word)*step_at : step_value;
    EACH(b, blocks) {
        Word c[4] = {(Word)b + 1, step, micro, use};
        philox(c, seed, seed_high);
        for (int k = 0; k < 8 && 8 * b + k < size; k++) kept[8 * b + k] = Int(c[k / 2] >> (32 * (k % 2)) & 0xFFFFFFFFULL) >= bound;
    }
}

// u = z keep factor; where `inner` is given, keep (n, c) is shared by the inner / c entries between of each of n examples.
extern "C" __global__ void dropout(Int n, Int inner, Int c, const T *z, const bool *keep, double factor, T *u)
{
    EACH(i, n) u[i] = T(A(z[i]) * (keep[inner ? i / inner * c + i % c : i] ? A(factor) : A(0)));
}
