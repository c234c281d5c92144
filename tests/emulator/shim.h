// CUDA C++ on a CPU, for tests: a block's threads are fibers that take turns at barriers and warp shuffles, in an order that
// changes; blocks run one after another. Included before a kernel's source; emulator/cupy.py appends an entry for each kernel.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

typedef _Float16 __half;
struct dim3 { unsigned x, y, z; };

// Shared variables lie in a section of their own, which is filled with NaN before each block.
#define __shared__ static __attribute__((section("shared_variables")))
#define __device__ __attribute__((unused)) static
#define __constant__
#define __restrict__ __restrict
#define __launch_bounds__(...)
extern "C" char __start_shared_variables[] __attribute__((weak)), __stop_shared_variables[] __attribute__((weak));

template <class X> static inline X max(X a, X b) { return a > b ? a : b; }
template <class X> static inline X min(X a, X b) { return a < b ? a : b; }

namespace emulator {

constexpr size_t STACK = 1 << 16;
enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
    jmp_buf place;
    ucontext_t start;
    bool started = false;
    State state = DONE;
    dim3 index;
    unsigned long long offered[2];  // to the warp: this shuffle's and the one before, which others may not have read yet
    unsigned shuffles = 0;
};

static std::vector<Fiber *> fibers;
static jmp_buf scheduler;
static ucontext_t unused;
static std::function<void()> body;
static unsigned current, threads;
static const char *failure;

}  // namespace emulator

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

static void pause(State state)
{
    Fiber *self = fibers[current];
    self->state = state;
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void thread_main()
{
    for (;;) {
        body();
        pause(DONE);
    }
}

static void resume(unsigned i)
{
    Fiber *fiber = fibers[i];
    current = i;
    threadIdx = fiber->index;
    fiber->state = READY;
    if (_setjmp(scheduler)) return;
    if (fiber->started) _longjmp(fiber->place, 1);
    fiber->started = true;
    setcontext(&fiber->start);
}

static void release(unsigned from, unsigned to, State state)
{
    for (unsigned i = from; i < to; i++)
        if (fibers[i]->state == state) fibers[i]->state = READY;
}

static unsigned count(unsigned from, unsigned to, State state)
{
    unsigned n = 0;
    for (unsigned i = from; i < to; i++) n += fibers[i]->state == state;
    return n;
}

// Run a warp as far as it comes, while the others stand still; whether it came anywhere.
static bool run_warp(unsigned from, unsigned to, unsigned turn)
{
    bool ran = false;
    for (;;) {
        const unsigned ready = count(from, to, READY), waiting = count(from, to, AT_SHUFFLE);
        for (unsigned k = 0; ready && k < to - from; k++) {
            unsigned i = from + ((turn % 2 ? to - from - 1 - k : k) + turn) % (to - from);
            if (fibers[i]->state == READY) resume(i), ran = true;
        }
        if (ready) continue;
        if (waiting == 32) release(from, to, AT_SHUFFLE);
        else if (waiting) return failure = "a warp shuffle that not all 32 threads of the warp come to", false;
        else return ran;
    }
}

static bool run_block(unsigned turn)
{
    if (__start_shared_variables) memset(__start_shared_variables, 0xff, __stop_shared_variables - __start_shared_variables);
    for (unsigned i = 0; i < threads; i++) {
        fibers[i]->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        fibers[i]->state = READY;
        fibers[i]->shuffles = 0;
    }
    const unsigned warps = (threads + 31) / 32;
    for (;; turn++) {
        bool ran = false;
        for (unsigned k = 0; k < warps; k++) {  // forwards, then backwards, and from another start each time
            unsigned w = ((turn % 2 ? warps - 1 - k : k) + turn * 37) % warps;
            ran |= run_warp(32 * w, min(threads, 32 * w + 32), turn);
            if (failure) return false;
        }
        if (count(0, threads, DONE) == threads) return true;
        if (count(0, threads, AT_BARRIER) == threads) release(0, threads, AT_BARRIER), ran = true;
        if (!ran) return failure = "a barrier or shuffle that not all threads of the block come to", false;
    }
}

static const char *run(std::function<void()> kernel, const unsigned *grid, const unsigned *block, unsigned turn)
{
    body = kernel;
    failure = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    while (fibers.size() < threads) {
        Fiber *fiber = new Fiber;
        getcontext(&fiber->start);
        fiber->start.uc_stack.ss_sp = malloc(STACK);
        fiber->start.uc_stack.ss_size = STACK;
        fiber->start.uc_link = &unused;
        makecontext(&fiber->start, thread_main, 0);
        fibers.push_back(fiber);
    }
    unsigned long long blocks = (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    for (unsigned long long k = 0; k < blocks; k++) {
        unsigned long long b = turn % 2 ? blocks - 1 - k : k;  // no block may count on another having run
        blockIdx = {unsigned(b % gridDim.x), unsigned(b / gridDim.x % gridDim.y), unsigned(b / gridDim.x / gridDim.y)};
        if (!run_block(turn + unsigned(k))) return failure;
    }
    return nullptr;
}

template <class X> static X shuffle(X x, unsigned lane)
{
    static_assert(sizeof(X) <= 8, "one register");
    Fiber *self = fibers[current];
    unsigned slot = self->shuffles++ & 1, warp = current / 32 * 32;
    memcpy(&self->offered[slot], &x, sizeof x);
    pause(AT_SHUFFLE);
    memcpy(&x, &fibers[warp + lane % 32]->offered[slot], sizeof x);
    return x;
}

template <class... P, size_t... I> static void call(void (*kernel)(P...), void **args, std::index_sequence<I...>)
{
    kernel(*(std::remove_const_t<P> *)args[I]...);
}

template <class... P>
static const char *launch(void (*kernel)(P...), void **args, const unsigned *grid, const unsigned *block, unsigned turn)
{
    return run([=] { call(kernel, args, std::index_sequence_for<P...>()); }, grid, block, turn);
}

}  // namespace emulator

static inline void __syncthreads() { emulator::pause(emulator::AT_BARRIER); }
static inline void __threadfence() {}
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

static inline float __int_as_float(int bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
