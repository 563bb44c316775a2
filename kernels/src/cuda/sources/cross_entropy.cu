// Softmax cross-entropy over blocks of the vocabulary, without keeping probabilities (as Wijmans et al., Cut
// Your Losses, 2024): the log-sum-exp of a token's logits is all that is kept of them.
//
// Logits of a block are `[rows, columns]`, of the vocabulary's entries from `first`. A thread block takes a row.

// Greatest value over a block of whole warps, in all its threads.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : parts[0];
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// Vectors that a thread loads before it uses them, so that all are under way at once.
constexpr int BATCH = 4;

// Calls `f(i, numbers)` for each of the thread's vectors in the row, at column i.
template <int N, typename T, typename F> __device__ __forceinline__ void for_own(const T *row, int columns, F f) {
    if constexpr (N == 1) {
        for (int i = threadIdx.x; i < columns; i += blockDim.x) {
            const float v[1] = {widen(row[i])};
            f(i, v);
        }
    } else {
        const int step = blockDim.x * N;
        for (int first = threadIdx.x * N; first < columns; first += BATCH * step) {
            uint4 raw[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                const int i = first + k * step;
                if (i < columns) raw[k] = *reinterpret_cast<const uint4 *>(row + i);
            }
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                const int i = first + k * step;
                if (i >= columns) continue;
                float v[N];
                unpack<T>(raw[k], v);
                f(i, v);
            }
        }
    }
}

// In one pass over the row (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
template <int N, typename T> __device__ __forceinline__ float log_sum_exp(const T *logits, int columns) {
    // Finite, so that it can be subtracted from itself.
    float greatest = -3.402823466e38f, sum[1] = {0.0f};
    for_own<N>(logits, columns, [&](int, const float(&v)[N]) {
        float local = v[0];
#pragma unroll
        for (int j = 1; j < N; ++j) local = fmaxf(local, v[j]);
        if (local > greatest) {
            sum[0] *= __expf(greatest - local);
            greatest = local;
        }
#pragma unroll
        for (int j = 0; j < N; ++j) sum[0] += __expf(v[j] - greatest);
    });
    const float whole = block_max(greatest);
    sum[0] *= __expf(greatest - whole);
    block_sum(sum);
    return whole + logf(sum[0]);
}

template <typename T>
__device__ __forceinline__ void forward(const T *logits, const u32 *targets, float *log_sums, float *hits, int columns,
                                        int first) {
    constexpr int N = Vector<T>::length;
    const u64 row = blockIdx.x;
    const T *own = logits + row * columns;
    const float block = columns % N == 0 && aligned(logits) ? log_sum_exp<N>(own, columns)
                                                            : log_sum_exp<1>(own, columns);
    if (threadIdx.x != 0) return;
    if (first == 0) {
        log_sums[row] = block;
        hits[row] = 0.0f;
    } else {
        const float before = log_sums[row], greatest = fmaxf(before, block);
        log_sums[row] = greatest + log1pf(expf(fminf(before, block) - greatest));
    }
    const u32 column = targets[row] - (u32)first;
    if (column < (u32)columns) hits[row] = widen(own[column]);
}

// logits -> (softmax - 1 at the target) * scale
template <int N, typename T>
__device__ __forceinline__ void backward_row(T *logits, int columns, u32 target, float log_sum, float scale) {
    for_own<N>(static_cast<const T *>(logits), columns, [&](int i, const float(&v)[N]) {
        float gradient[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float hit = (u32)(i + j) == target ? 1.0f : 0.0f;
            gradient[j] = (__expf(v[j] - log_sum) - hit) * scale;
        }
        store<N>(logits + i, gradient);
    });
}

template <typename T>
__device__ __forceinline__ void backward(T *logits, const u32 *targets, const float *log_sums, const float *gradient,
                                         int columns, int first, float factor) {
    constexpr int N = Vector<T>::length;
    const u64 row = blockIdx.x;
    const u32 target = targets[row] - (u32)first;
    const float log_sum = log_sums[row], scale = *gradient * factor;
    if (columns % N == 0 && aligned(logits)) {
        backward_row<N>(logits + row * columns, columns, target, log_sum, scale);
    } else {
        backward_row<1>(logits + row * columns, columns, target, log_sum, scale);
    }
}

#define KERNELS(T, suffix)                                                                                        \
    KERNEL(1024) cross_entropy_forward_##suffix(const T *logits, const u32 *targets, float *log_sums, float *hits, \
                                                int columns, int first) {                                         \
        forward<T>(logits, targets, log_sums, hits, columns, first);                                              \
    }                                                                                                             \
    KERNEL(1024) cross_entropy_backward_##suffix(T *logits, const u32 *targets, const float *log_sums,            \
                                                 const float *gradient, int columns, int first, float factor) {   \
        backward<T>(logits, targets, log_sums, gradient, columns, first, factor);                                 \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

// The mean of log_sums - hits, by one block, always in the same order.
KERNEL(1024) cross_entropy_mean_f32(const float *log_sums, const float *hits, float *loss, int rows) {
    float sum[1] = {0.0f};
    for (int i = threadIdx.x; i < rows; i += blockDim.x) sum[0] += log_sums[i] - hits[i];
    block_sum(sum);
    if (threadIdx.x == 0) *loss = sum[0] / rows;
}
