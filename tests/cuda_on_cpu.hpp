// Enough of CUDA C++ to run a kernel on the CPU, a block of threads after another. Each thread is a fiber, which hands
// over to the next where it has to wait for the others; so all of them must get to every barrier and every shuffle.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

using std::exp, std::fmax, std::isfinite, std::log;

#define __global__
#define __device__
#define __shared__ static
#define __align__(n) alignas(n)

struct Place { unsigned x = 0, y = 0, z = 0; };
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {
constexpr int most_threads = 1024, stack_bytes = 1 << 16;
ucontext_t scheduler, start[most_threads];
jmp_buf scheduled, left[most_threads];  // jumps cost less than changes of context, which ask the kernel
char* stacks = new char[(size_t)most_threads * stack_bytes];
bool is_started[most_threads], is_done[most_threads];
double slots[most_threads];
void (*body)();

void enter() {
    body();
    is_done[threadIdx.x] = true;
    _longjmp(scheduled, 1);
}

void wait_for_all() {  // the scheduler goes round all threads, so when it comes back all others have got here
    const unsigned thread = threadIdx.x;
    if (!_setjmp(left[thread])) _longjmp(scheduled, 1);
}

void resume(int i) {
    threadIdx.x = i;
    if (_setjmp(scheduled)) return;
    if (is_started[i]) _longjmp(left[i], 1);
    is_started[i] = true;
    start[i].uc_stack.ss_sp = stacks + (size_t)i * stack_bytes;
    start[i].uc_stack.ss_size = stack_bytes;
    makecontext(&start[i], enter, 0);
    setcontext(&start[i]);
}

void run_block(int n_threads) {
    getcontext(&scheduler);
    for (int i = 0; i < n_threads; ++i) {
        start[i] = scheduler;
        is_started[i] = is_done[i] = false;
    }
    for (bool is_any_left = true; is_any_left;) {
        is_any_left = false;
        for (int i = 0; i < n_threads; ++i)
            if (!is_done[i]) {
                resume(i);
                is_any_left = true;
            }
    }
}

template <typename... P, size_t... I>
void launch(void (*kernel)(P...), int grid, int threads, void** arguments, std::index_sequence<I...>) {
    static std::tuple<P...> given;
    static void (*chosen)(P...);
    given = std::tuple<P...>(*(P*)arguments[I]...);
    chosen = kernel;
    body = [] { std::apply(chosen, given); };
    gridDim.x = grid, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block(threads);
}

template <typename... P>
void launch(void (*kernel)(P...), int grid, int threads, void** arguments) {
    launch(kernel, grid, threads, arguments, std::index_sequence_for<P...>());
}
}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait_for_all(); }

inline void __syncwarp() { on_cpu::wait_for_all(); }

template <typename T>
T __shfl_xor_sync(unsigned, T own, int step) {
    on_cpu::slots[threadIdx.x] = own;
    on_cpu::wait_for_all();
    const T other = (T)on_cpu::slots[threadIdx.x ^ step];
    on_cpu::wait_for_all();
    return other;
}

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
