// CUDA C++ on a CPU, for tests. Included before a kernel's source; emulator/cupy.py appends an entry for each kernel, which calls
// run() of runtime.cpp. A standard header more would cost each family's compilation a third of a second.
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef _Float16 __half;
#define __expf expf  // glibc declares a function of this name, and has none
static inline float __fdividef(float x, float y) { return x / y; }
struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x)
    {
        unsigned all;
        memcpy(&all, &x, sizeof x);
        bits = x != x ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;  // to the nearest, ties to even
    }
    operator float() const
    {
        unsigned all = (unsigned)bits << 16;
        float x;
        memcpy(&x, &all, sizeof x);
        return x;
    }
};
struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// Shared variables lie in a section of their own, which is filled with NaN before each block.
#define __shared__ static __attribute__((section("shared_variables")))
#define __device__ __attribute__((unused)) static
#define __constant__
#define __restrict__ __restrict
#define __launch_bounds__(...)
extern "C" char __start_shared_variables[] __attribute__((weak, visibility("hidden"))),
    __stop_shared_variables[] __attribute__((weak, visibility("hidden")));

template <class X> static inline X max(X a, X b) { return a > b ? a : b; }
template <class X> static inline X min(X a, X b) { return a < b ? a : b; }

namespace emulator {

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

extern unsigned current;  // the number of the thread in its block
void pause(State state);  // until the other threads come to the same place
unsigned long long exchange(unsigned long long offered, unsigned lane);  // what the warp's thread `lane` offers
const char *run(void (*kernel)(void **), void **args, const unsigned *grid, const unsigned *block, unsigned turn, char *shared,
                char *shared_end);  // null, or what went wrong

template <class X> static X shuffle(X x, unsigned lane)
{
    static_assert(sizeof(X) <= 8, "one register");
    unsigned long long bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = exchange(bits, lane);
    memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace emulator

static inline void __syncthreads() { emulator::pause(emulator::AT_BARRIER); }
static inline void __threadfence() {}
static inline void __stwb(uint4 *at, uint4 x) { *at = x; }
template <class X> static inline X __shfl_xor_sync(unsigned, X x, int by) { return emulator::shuffle(x, emulator::current % 32 ^ by); }
template <class X> static inline X __shfl_sync(unsigned, X x, int lane) { return emulator::shuffle(x, lane); }

static inline unsigned __ballot_sync(unsigned, int vote)
{
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; lane++) all |= (emulator::shuffle(vote != 0, lane) ? 1u : 0u) << lane;
    return all;
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }

static inline unsigned atomicInc(unsigned *at, unsigned last)
{
    unsigned old = *at;
    *at = old >= last ? 0 : old + 1;
    return old;
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

static inline double __dmul_rn(double x, double y) { return x * y; }

static inline float __int_as_float(int bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
