// Runs CUDA C on the host's processor, one thread after another, so that kernels can be tested without a GPU.
//
// A block's threads are fibers (contexts of this one thread) that run until they meet a barrier or an operation
// of their warp; then the next one runs. So every run is the same. What the hardware leaves undefined is an
// error here where it can be seen: lanes of a warp that meet different operations, or a barrier that some
// threads never reach. Blocks run one after another, each with its own shared memory.

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define OPTPIPE_EMULATE 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) alignas(n)
// Tests may run kernels of one library in several threads.
#define __shared__ static thread_local

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
static constexpr int warpSize = 32;

namespace emulate {

enum class Waits { No, Barrier, Warp, Over };

// To shared memory: so many bytes, zeros but for those given.
struct Copy {
    unsigned char *to;
    const void *from;
    unsigned bytes, given;
};

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool started = false;
    Waits waits = Waits::No;
    dim3 index;
    // What the lane brings to its warp's operation.
    const char *operation = nullptr;
    unsigned mask = 0;
    alignas(16) unsigned char value[64];
    std::unique_ptr<unsigned char[]> stack;
    // Copies that the thread has started and not waited for.
    std::vector<Copy> copies;
};
constexpr size_t STACK_BYTES = 64 << 10;

// What the lanes brought to the operation that was last released. A lane reads it before its next operation,
// which is only released once all its lanes have come to it.
struct Warp {
    alignas(16) unsigned char gathered[32][64];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    Fiber *current = nullptr;
    ucontext_t back;
    jmp_buf scheduler;
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
};

static thread_local Block block;

// Hands over to the scheduler until the fiber may go on.
__attribute__((noinline)) inline void wait(Waits reason) {
    Fiber *self = block.current;
    self->waits = reason;
    if (_setjmp(self->at) == 0) _longjmp(block.scheduler, 1);
}

inline void enter() {
    block.body(block.argument);
    block.current->waits = Waits::Over;
    _longjmp(block.scheduler, 1);
}

// Runs a fiber until it waits or is over.
__attribute__((noinline)) inline void resume(Fiber &fiber) {
    block.current = &fiber;
    fiber.waits = Waits::No;
    threadIdx = fiber.index;
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
    setcontext(&fiber.start);
}

// Lets lanes go on of which all wait for the same operation. False where they wait for different ones.
inline bool release_warp(size_t warp, bool &released) {
    const size_t first = warp * 32;
    const size_t count = block.fibers.size() - first < 32 ? block.fibers.size() - first : 32;
    unsigned waiting = 0;
    for (size_t i = 0; i < count; ++i) waiting |= unsigned(block.fibers[first + i].waits == Waits::Warp) << i;
    for (size_t i = 0; i < count; ++i) {
        const Fiber &one = block.fibers[first + i];
        // Lanes of the mask that run, wait at a barrier or are over: seen as a deadlock, if it stays so.
        if (one.waits != Waits::Warp || (one.mask & ~waiting) != 0) continue;
        const unsigned mask = one.mask;
        for (size_t j = 0; j < count; ++j) {
            const Fiber &lane = block.fibers[first + j];
            if ((mask >> j & 1) && (lane.mask != mask || strcmp(lane.operation, one.operation) != 0)) return false;
        }
        for (size_t j = 0; j < count; ++j) {
            if (!(mask >> j & 1)) continue;
            Fiber &lane = block.fibers[first + j];
            memcpy(block.warps[warp].gathered[j], lane.value, sizeof lane.value);
            lane.waits = Waits::No;
        }
        released = true;
    }
    return true;
}

// Runs one block to its end; what went wrong, or an empty text.
//
// A warp runs as far as it can before the next one does: where a barrier is missing, the others then find what it
// has overwritten. Warps and lanes take turns in one order and then in the other, so that it shows whoever has to
// come first.
inline std::string run_block(bool reversed) {
    const size_t count = block.fibers.size(), warps = block.warps.size();
    for (;; reversed = !reversed) {
        bool any = false;
        for (size_t i = 0; i < warps; ++i) {
            const size_t warp = reversed ? warps - 1 - i : i, first = warp * 32;
            const size_t lanes = count - first < 32 ? count - first : 32;
            bool released = true;
            for (bool backwards = reversed; released; backwards = !backwards) {
                for (size_t j = 0; j < lanes; ++j) {
                    Fiber &fiber = block.fibers[first + (backwards ? lanes - 1 - j : j)];
                    if (fiber.waits == Waits::No) resume(fiber);
                }
                released = false;
                if (!release_warp(warp, released)) return "lanes of a warp meet different operations or masks";
                any = any || released;
            }
        }
        size_t barrier = 0, over = 0;
        for (auto &fiber : block.fibers) {
            barrier += fiber.waits == Waits::Barrier;
            over += fiber.waits == Waits::Over;
        }
        if (over == count) return "";
        if (barrier + over == count) {
            // Unlike the hardware, which counts the threads that are left: a barrier is for all.
            if (over != 0) return "a barrier that some threads never reach";
            for (auto &fiber : block.fibers) fiber.waits = Waits::No;
        } else if (!any) {
            return "threads wait for others that never come";
        }
    }
}

inline void *dynamic_shared() { return block.shared.data(); }

// Every lane of `mask` brings `value` (at most 64 bytes); all see the values of all lanes by index.
template <typename T> struct Lanes {
    T operator[](int lane) const {
        T value;
        memcpy(&value, block.warps[(block.current - block.fibers.data()) / 32].gathered[lane], sizeof(T));
        return value;
    }
};
template <typename T> inline Lanes<T> gather(const char *operation, unsigned mask, const T &value) {
    static_assert(sizeof(T) <= 64, "a lane brings at most 64 bytes");
    Fiber *self = block.current;
    memcpy(self->value, &value, sizeof(T));
    self->operation = operation;
    self->mask = mask;
    wait(Waits::Warp);
    return {};
}
inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31; }

// cp.async, cp.async.wait_all: what is copied is not there before it is waited for, and what was there is lost.
inline void copy_async(unsigned char *to, const void *from, unsigned bytes, unsigned given) {
    memset(to, 0xff, bytes);
    block.current->copies.push_back({to, from, bytes, given});
}
inline void wait_for_copies() {
    for (const Copy &copy : block.current->copies) {
        memset(copy.to, 0, copy.bytes);
        if (copy.given != 0) memcpy(copy.to, copy.from, copy.given);
    }
    block.current->copies.clear();
}

// ldmatrix.m8n8.x4.b16: lane 8 i + j gives the address of row j of matrix i; lane 4 r + c gets the columns 2 c and
// 2 c + 1 of row r of each matrix or, transposed, rows 2 c and 2 c + 1 of column r.
inline void load_matrices(unsigned (&to)[4], const unsigned char *row, bool transposed) {
    const auto rows = gather(transposed ? "ldmatrix transposed" : "ldmatrix", 0xffffffffu, row);
    const int first = lane() / 4, second = lane() % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
        to[matrix] = 0;
        for (int i = 0; i < 2; ++i) {
            uint16_t number;
            const unsigned char *from = transposed ? rows[8 * matrix + second + i] + 2 * first
                                                   : rows[8 * matrix + first] + 2 * (second + i);
            memcpy(&number, from, 2);
            to[matrix] |= unsigned(number) << (16 * i);
        }
    }
}

// mma.m16n8k16.row.col.f32.bf16.bf16.f32, by the tables of the PTX ISA: of a (16 x 16) lane 4 g + t holds in
// register i row g + 8 (i & 1), columns 2 t + 8 (i >> 1) and the next; of b (16 x 8) column g, rows 2 t + 8 i and the
// next; of c (16 x 8) in i row g + 8 (i >> 1), column 2 t + (i & 1).
struct Operands {
    unsigned a[4], b[2];
};
inline void multiply_add_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const auto all = gather("mma", 0xffffffffu, Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const auto widen = [](unsigned pair, int k) {
        const unsigned bits = k % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + 8 * (i / 2), column = lane() % 4 * 2 + i % 2;
        float sum = 0.0f;
        for (int pair = 0; pair < 8; ++pair) {
            const unsigned x = all[row % 8 * 4 + pair % 4].a[row / 8 + 2 * (pair / 4)];
            const unsigned y = all[column * 4 + pair % 4].b[pair / 4];
            sum += widen(x, 0) * widen(y, 0) + widen(x, 1) * widen(y, 1);
        }
        c[i] += sum;
    }
}

template <typename... A, size_t... I>
inline void unpack(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*reinterpret_cast<A *>(arguments[I])...);
}

// Launches a kernel; `arguments` point to its arguments, as for cuLaunchKernel. Returns what went wrong, or null.
template <typename... A>
inline const char *launch(void (*kernel)(A...), const unsigned *grid, const unsigned *size, unsigned shared,
                          void **arguments, size_t count) {
    static thread_local std::string error;
    if (count != sizeof...(A)) return "the number of arguments differs from the kernel's";
    struct Call {
        void (*kernel)(A...);
        void **arguments;
    } call{kernel, arguments};
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {size[0], size[1], size[2]};
    const size_t threads = size_t(size[0]) * size[1] * size[2];
    if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
    if (size_t(grid[0]) * grid[1] * grid[2] == 0) return "a grid without blocks";
    block.fibers.resize(threads);
    block.warps.resize((threads + 31) / 32);
    for (auto &fiber : block.fibers) {
        if (!fiber.stack) fiber.stack.reset(new unsigned char[STACK_BYTES]);
    }
    block.argument = &call;
    block.body = [](void *argument) {
        Call *call = static_cast<Call *>(argument);
        unpack(call->kernel, call->arguments, std::index_sequence_for<A...>{});
    };
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                // NaN in every format: reading what nobody wrote shows.
                block.shared.assign(shared + 16, 0xff);
                for (size_t i = 0; i < threads; ++i) {
                    Fiber &fiber = block.fibers[i];
                    fiber.started = false;
                    fiber.waits = Waits::No;
                    fiber.copies.clear();
                    fiber.index = {unsigned(i % size[0]), unsigned(i / size[0] % size[1]), unsigned(i / size[0] / size[1])};
                }
                error = run_block((x + y + z) % 2 == 1);
                if (!error.empty()) {
                    error += " (block " + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
                    return error.c_str();
                }
            }
    return nullptr;
}

} // namespace emulate

inline void __syncthreads() { emulate::wait(emulate::Waits::Barrier); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulate::gather("syncwarp", mask, 0); }
template <typename T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const auto all = emulate::gather("shfl_xor", mask, value);
    const int from = emulate::lane() ^ lanes;
    return from / width == emulate::lane() / width ? all[from] : value;
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const auto all = emulate::gather("shfl_down", mask, value);
    const int from = emulate::lane() + int(delta);
    return from / width == emulate::lane() / width ? all[from] : value;
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const auto all = emulate::gather("shfl_up", mask, value);
    const int from = emulate::lane() - int(delta);
    return from >= 0 && from / width == emulate::lane() / width ? all[from] : value;
}
template <typename T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    const auto all = emulate::gather("shfl", mask, value);
    return all[emulate::lane() / width * width + (lane & (width - 1))];
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    const auto all = emulate::gather("ballot", mask, int(predicate));
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned((mask >> i & 1) && all[i]) << i;
    return bits;
}

inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }

template <typename T> inline T atomicAdd(T *to, T value) {
    const T before = *to;
    *to = before + value;
    return before;
}
template <typename T> inline T __ldg(const T *from) { return *from; }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
#define OPTPIPE_EXTREMES(type)                                    \
    inline type min(type a, type b) { return a < b ? a : b; }     \
    inline type max(type a, type b) { return a > b ? a : b; }
OPTPIPE_EXTREMES(int)
OPTPIPE_EXTREMES(unsigned)
OPTPIPE_EXTREMES(long long)
OPTPIPE_EXTREMES(unsigned long long)
OPTPIPE_EXTREMES(float)
