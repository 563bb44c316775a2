// Causal attention forward in bf16 (Dao et al., FlashAttention, 2022; Dao, FlashAttention-2, 2023).
//
// A block of 4 warps takes 128 rows of the queries of one key head, a warp 32 of them, whose output stays in its
// registers, and goes through the tiles of 64 keys that they see. Where a group of query heads shares the key
// head, the rows of the group follow one another, and the tile of keys serves them all. While scores are made of
// keys the values are on their way, and the next keys while these are used. Two blocks share a multiprocessor, so
// that the exponentials of one run beside the products of the other. Blocks with the most keys come first.

// How much larger than those before a score may be before sums are scaled to it: they stay exact, and their terms
// below exp(5) (as FlashAttention-4 does; hardly a tile but the first then has to scale).
constexpr float LEEWAY = 5.0f;

// What exponents are shifted by, as powers of 2, where the largest score may be of a row that has seen no key yet.
__device__ __forceinline__ float shift_of(float largest) {
    return largest == minus_infinity() ? 0.0f : largest * LOG2_E;
}

template <int D>
__device__ __forceinline__ void attention_forward(const bf16 *queries, const bf16 *keys, const bf16 *values,
                                                  bf16 *output, float *log_sums, int sequence, int group, int window) {
    constexpr int ROWS = 128, KEYS = 64, THREADS = 128, M = 2, N = KEYS / 8;
    typedef Tile<D> T;
    DYNAMIC_SHARED(unsigned char, memory);
    const int lane = threadIdx.x & 31, warp = warp_index();
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    queries += head * rows * D;
    keys += head * sequence * D;
    values += head * sequence * D;
    const int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const Shared query_tile = shared_address(memory), key_tile = query_tile + ROWS * T::row_bytes;
    const Shared value_tile = key_tile + KEYS * T::row_bytes;
    const Shared warp_queries = query_tile + warp * M * 16 * T::row_bytes;

    // Positions of the block's first and last row, and of the warp's.
    const int oldest = first / group, newest = (min(first + ROWS, rows) - 1) / group;
    const int warp_first = first + warp * M * 16;
    const int warp_oldest = warp_first / group, warp_newest = min(warp_first + M * 16 - 1, rows - 1) / group;
    float largest[M][2], sum[M][2], sums[M][D / 8][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            largest[m][half] = minus_infinity();
            sum[m][half] = 0.0f;
        }
    }
    clear(sums);

    const int begin = max(oldest - window + 1, 0) / KEYS, last = newest / KEYS;
    T::template load<ROWS, THREADS>(query_tile, queries, first, rows);
    T::template load<KEYS, THREADS>(key_tile, keys, last * KEYS, sequence);
    for (int tile = last; tile >= begin; --tile) {
        const int key = tile * KEYS;
        const bool seen = key <= warp_newest && key + KEYS - 1 > warp_oldest - window;
        float scores[M][N][4];
        wait_for_copies();
        __syncthreads(); // The keys are there, and all are through with the values before.
        T::template load<KEYS, THREADS>(value_tile, values, key, sequence);
        if (seen) {
            clear(scores);
            T::multiply(scores, warp_queries, key_tile);
        }
        wait_for_copies();
        __syncthreads(); // The values are there, and all are through with the keys.
        if (tile > begin) T::template load<KEYS, THREADS>(key_tile, keys, key - KEYS, sequence);
        if (!seen) continue;
        if (key + KEYS - 1 > warp_oldest || key <= warp_newest - window) {
#pragma unroll
            for (int i = 0; i < 2 * M; ++i) {
                const int position = (warp_first + i * 8 + (lane >> 2)) / group;
#pragma unroll
                for (int j = 0; j < 2 * N; ++j) {
                    const int back = position - (key + j / 2 * 8 + (lane & 3) * 2 + j % 2);
                    if (back < 0 || back >= window) scores[i / 2][j / 2][i % 2 * 2 + j % 2] = minus_infinity();
                }
            }
        }
        bool grows = false;
        float most[M][2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float x = largest[m][half];
#pragma unroll
                for (int n = 0; n < N; ++n) x = fmaxf(x, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
                most[m][half] = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
                grows |= most[m][half] > largest[m][half] + LEEWAY;
            }
        }
        if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float factor = exp2_fast(largest[m][half] * LOG2_E - shift_of(most[m][half]));
                    largest[m][half] = most[m][half];
                    sum[m][half] *= factor;
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) {
                        sums[m][n][2 * half] *= factor;
                        sums[m][n][2 * half + 1] *= factor;
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float shift = shift_of(largest[m][half]);
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[m][n][i] = exp2_fast(scores[m][n][i] * LOG2_E - shift);
                        sum[m][half] += scores[m][n][i];
                    }
                }
            }
        }
        T::multiply_held(sums, scores, value_tile);
    }

#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int row = warp_first + m * 16 + half * 8 + (lane >> 2);
            if ((lane & 3) == 0 && row < rows) log_sums[head * rows + row] = largest[m][half] + logf(total);
            const float scale = 1.0f / total;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                sums[m][n][2 * half] *= scale;
                sums[m][n][2 * half + 1] *= scale;
            }
        }
    }
    // The warp's rows of the queries are read by nobody else.
    T::template store<M>(sums, memory + warp * M * 16 * T::row_bytes, output + head * rows * D, warp_first, rows);
}

#define FORWARD(D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_##D##_bf16(                            \
        const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *output, float *log_sums, int sequence,   \
        int group, int window) {                                                                                  \
        attention_forward<D>(queries, keys, values, output, log_sums, sequence, group, window);                   \
    }

FORWARD(64)
FORWARD(128)
