// What all kernels share. NVRTC brings no headers, so numbers in bf16 are defined here, as their bits.
// A host compiler can read these files too (OPTPIPE_EMULATE, see kernels/tests/emulate).

typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    unsigned short bits;
};

// A kernel with at most so many threads a block.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

// Shared memory whose size the launch gives; `name` is a pointer to `type`, aligned to 16 bytes.
#ifdef OPTPIPE_EMULATE
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulate::dynamic_shared())
#else
#define DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared)
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Two numbers to bf16, to nearest with ties to even: `low` in the lower half.
__device__ __forceinline__ u32 narrow_pair(float low, float high) {
#ifdef OPTPIPE_EMULATE
    u32 both = 0;
    float values[2] = {low, high};
    for (int i = 0; i < 2; ++i) {
        u32 bits = __float_as_uint(values[i]);
        u32 rounded = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        both |= rounded << (16 * i);
    }
    return both;
#else
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    bf16 result;
    result.bits = (unsigned short)(narrow_pair(x, 0.0f) & 0xffffu);
    return result;
}

// How many numbers of a type are 16 bytes, the most that a thread loads at once.
template <typename T> struct Vector {
    static constexpr int length = 16 / sizeof(T);
};

// A vector to f32.
template <typename T> __device__ __forceinline__ void unpack(uint4 raw, float (&to)[Vector<T>::length]) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
            to[i] = __uint_as_float(words[i]);
        } else {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
}

// `N` numbers from `from` to f32: by 16 bytes where N is a vector's length, else one by one.
template <int N, typename T> __device__ __forceinline__ void load(const T *from, float (&to)[N]) {
    if constexpr (N == Vector<T>::length) {
        unpack<T>(*reinterpret_cast<const uint4 *>(from), to);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = widen(from[i]);
    }
}

// The reverse of `load`.
template <int N, typename T> __device__ __forceinline__ void store(T *to, const float (&from)[N]) {
    if constexpr (N == Vector<T>::length) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 4) {
                words[i] = __float_as_uint(from[i]);
            } else {
                words[i] = narrow_pair(from[2 * i], from[2 * i + 1]);
            }
        }
        *reinterpret_cast<uint4 *>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = narrow<T>(from[i]);
    }
}

// Whether `load` and `store` may take 16 bytes at this address. No address (null) may be anything.
__device__ __forceinline__ bool aligned(const void *address) { return ((u64)address & 15u) == 0; }

// The sum of a warp's values, in all its lanes.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// The sums of `K` values over a block of whole warps (at most 32), in all its threads. In a fixed order.
template <int K> __device__ __forceinline__ void block_sum(float (&x)[K]) {
    __shared__ float parts[32][K];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] = warp_sum(x[k]);
    __syncthreads(); // The parts may still be read from the call before.
    if (lane == 0) {
#pragma unroll
        for (int k = 0; k < K; ++k) parts[warp][k] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] = warp_sum(lane < warps ? parts[lane][k] : 0.0f);
}
