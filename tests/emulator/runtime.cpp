// The threads of a block as fibers that take turns at barriers and warp shuffles, in an order that changes; blocks run one after
// another. All kernels of a process share this: 1024 stacks for each of their libraries would be gigabytes.
#include "shim.h"

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 1 << 16;

struct Fiber {
    jmp_buf place;
    ucontext_t start;
    bool started;
    State state;
    dim3 index;
    unsigned long long offered[2];  // to the warp: this shuffle's and the one before, which others may not have read yet
    unsigned shuffles;
};

unsigned current;
static Fiber *fibers[1024];
static jmp_buf scheduler;
static ucontext_t unused;
static void (*body)(void **);
static void **arguments;
static unsigned threads;
static const char *failure;

void pause(State state)
{
    Fiber *self = fibers[current];
    self->state = state;
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void thread_main()
{
    for (;;) {
        body(arguments);
        pause(DONE);
    }
}

static void prepare(Fiber *fiber)
{
    void *stack = fiber->start.uc_stack.ss_sp;
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = stack;
    fiber->start.uc_stack.ss_size = STACK;
    fiber->start.uc_link = &unused;
    makecontext(&fiber->start, thread_main, 0);
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

const char *run(void (*kernel)(void **), void **args, const unsigned *grid, const unsigned *block, unsigned turn, char *shared,
                char *shared_end)
{
    body = kernel;
    arguments = args;
    failure = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    for (unsigned i = 0; i < threads; i++) {
        if (!fibers[i]) fibers[i] = (Fiber *)calloc(1, sizeof(Fiber)), fibers[i]->start.uc_stack.ss_sp = malloc(STACK);
        if (!fibers[i]->started) prepare(fibers[i]);
    }
    unsigned long long blocks = (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    for (unsigned long long k = 0; k < blocks; k++) {
        unsigned long long b = turn % 2 ? blocks - 1 - k : k;  // no block may count on another having run
        blockIdx = {unsigned(b % gridDim.x), unsigned(b / gridDim.x % gridDim.y), unsigned(b / gridDim.x / gridDim.y)};
        if (shared) memset(shared, 0xff, shared_end - shared);
        if (run_block(turn + unsigned(k))) continue;
        for (unsigned i = 0; i < threads; i++) fibers[i]->started = false;  // they stand in the midst of this kernel
        return failure;
    }
    return nullptr;
}

unsigned long long exchange(unsigned long long offered, unsigned lane)
{
    Fiber *self = fibers[current];
    unsigned slot = self->shuffles++ & 1, warp = current / 32 * 32;
    self->offered[slot] = offered;
    pause(AT_SHUFFLE);
    return fibers[warp + lane % 32]->offered[slot];
}

}  // namespace emulator
