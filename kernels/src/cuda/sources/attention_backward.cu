// Gradients of causal attention in bf16 (Dao et al., FlashAttention, 2022; Dao, FlashAttention-2, 2023).
//
// With scores s = q k, probabilities p = exp(s - log-sum-exp), the gradient g of the output and mean = g * output
// by row: dv = p^T g, dp = g v^T, ds = p (dp - mean), dk = ds^T q, dq = ds k. One kernel goes by keys and makes dk
// and dv, one by queries and makes dq. Both make the scores again, 7 products of matrices instead of the 5 of one
// kernel that adds up dq in memory; but sums are taken in registers, in the same order each time. Of each product
// the result stays in registers, where it is an operand of the next.

// dk and dv. A block of 8 warps takes 128 keys, a warp 16 of them, and goes through the tiles of 64 rows of the
// queries that see them, of the whole group of heads. The next tile is loaded meanwhile. Scores are transposed: a
// row is a key. The first keys, which most queries see, come first.
template <int D>
__device__ __forceinline__ void backward_keys(const bf16 *queries, const bf16 *keys, const bf16 *values,
                                              const bf16 *gradient, const float *log_sums, const float *means,
                                              bf16 *dkeys, bf16 *dvalues, int sequence, int group, int window) {
    constexpr int ROWS = 64, KEYS = 128, THREADS = 256, N = ROWS / 8;
    typedef Tile<D> T;
    constexpr int STAGE = 2 * ROWS * T::row_bytes;
    DYNAMIC_SHARED(unsigned char, memory);
    const int lane = threadIdx.x & 31, warp = warp_index();
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    queries += head * rows * D;
    gradient += head * rows * D;
    log_sums += head * rows;
    means += head * rows;
    const int first = blockIdx.y * KEYS;
    const Shared key_tile = shared_address(memory), value_tile = key_tile + KEYS * T::row_bytes;
    const Shared stages = value_tile + KEYS * T::row_bytes;
    // Two stages of log-sum-exps and means.
    float *statistics = reinterpret_cast<float *>(memory + 2 * KEYS * T::row_bytes + 2 * STAGE);
    const Shared warp_keys = key_tile + warp * 16 * T::row_bytes, warp_values = value_tile + warp * 16 * T::row_bytes;

    // The rows that see the block's keys, and the warp's keys; as of the row of position 0.
    const int newest = min(first + KEYS, sequence) - 1;
    const int begin = first * group / ROWS, end = (min(newest + window, sequence) * group - 1) / ROWS;
    const int warp_first = first + warp * 16;

    const auto load = [&](int tile) {
        const Shared stage = stages + (tile & 1) * STAGE;
        T::template load<ROWS, THREADS>(stage, queries, tile * ROWS, rows);
        T::template load<ROWS, THREADS>(stage + ROWS * T::row_bytes, gradient, tile * ROWS, rows);
        if (threadIdx.x < 2 * ROWS) {
            const int row = tile * ROWS + threadIdx.x % ROWS;
            const float *from = threadIdx.x < ROWS ? log_sums : means;
            copy_async<4>(shared_address(reinterpret_cast<unsigned char *>(statistics)) +
                              ((tile & 1) * 2 * ROWS + threadIdx.x) * 4,
                          from + row, row < rows);
        }
    };
    T::template load<KEYS, THREADS>(key_tile, keys + head * sequence * D, first, sequence);
    T::template load<KEYS, THREADS>(value_tile, values + head * sequence * D, first, sequence);
    load(begin);
    float dk[1][D / 8][4], dv[1][D / 8][4];
    clear(dk);
    clear(dv);
    for (int tile = begin; tile <= end; ++tile) {
        wait_for_copies();
        __syncthreads(); // The tile is there, and all are through with the one before.
        if (tile < end) load(tile + 1);
        const int row = tile * ROWS;
        if (row + ROWS <= warp_first * group || row >= (warp_first + 15 + window) * group) continue;
        const Shared query_tile = stages + (tile & 1) * STAGE, gradient_tile = query_tile + ROWS * T::row_bytes;
        const float *log_sum = statistics + (tile & 1) * 2 * ROWS + (lane & 3) * 2, *mean = log_sum + ROWS;
        float p[1][N][4], ds[1][N][4];
        clear(p);
        T::multiply(p, warp_keys, query_tile);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 shift = *reinterpret_cast<const float2 *>(log_sum + n * 8);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[0][n][i] = exp2_fast(p[0][n][i] * LOG2_E - (i % 2 == 0 ? shift.x : shift.y) * LOG2_E);
            }
        }
        if (row < (warp_first + 15) * group || row + ROWS > (warp_first + window) * group) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int key = warp_first + half * 8 + (lane >> 2);
                const int from = key * group - row - (lane & 3) * 2, to = from + window * group;
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        if (n * 8 + i < from || n * 8 + i >= to) p[0][n][2 * half + i] = 0.0f;
                    }
                }
            }
        }
        T::multiply_held(dv, p, gradient_tile);
        clear(ds);
        T::multiply(ds, warp_values, gradient_tile);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 shift = *reinterpret_cast<const float2 *>(mean + n * 8);
#pragma unroll
            for (int i = 0; i < 4; ++i) ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - (i % 2 == 0 ? shift.x : shift.y));
        }
        T::multiply_held(dk, ds, query_tile);
    }
    // The warp's keys and values are read by nobody else.
    T::template store<1>(dk, memory + warp * 16 * T::row_bytes, dkeys + head * sequence * D, warp_first, sequence);
    T::template store<1>(dv, memory + (KEYS + warp * 16) * T::row_bytes, dvalues + head * sequence * D, warp_first,
                         sequence);
}

// dq. A block of 8 warps takes 256 rows of the queries of one key head, a warp 32 of them, and goes through the
// tiles of 32 keys that they see. The next tile is loaded meanwhile. Blocks with the most keys come first.
template <int D>
__device__ __forceinline__ void backward_queries(const bf16 *queries, const bf16 *keys, const bf16 *values,
                                                 const bf16 *gradient, const float *log_sums, const float *means,
                                                 bf16 *dqueries, int sequence, int group, int window) {
    constexpr int ROWS = 256, KEYS = 32, THREADS = 256, M = 2, N = KEYS / 8;
    typedef Tile<D> T;
    constexpr int STAGE = 2 * KEYS * T::row_bytes;
    DYNAMIC_SHARED(unsigned char, memory);
    const int lane = threadIdx.x & 31, warp = warp_index();
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    keys += head * sequence * D;
    values += head * sequence * D;
    const int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const Shared query_tile = shared_address(memory), gradient_tile = query_tile + ROWS * T::row_bytes;
    const Shared stages = gradient_tile + ROWS * T::row_bytes;
    const Shared warp_queries = query_tile + warp * M * 16 * T::row_bytes;
    const Shared warp_gradient = gradient_tile + warp * M * 16 * T::row_bytes;

    // Positions of the block's first and last row, and of the warp's.
    const int oldest = first / group, newest = (min(first + ROWS, rows) - 1) / group;
    const int warp_first = first + warp * M * 16;
    const int warp_oldest = warp_first / group, warp_newest = min(warp_first + M * 16 - 1, rows - 1) / group;

    float log_sum[2 * M], mean[2 * M], dq[M][D / 8][4];
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
        const int row = warp_first + i * 8 + (lane >> 2);
        log_sum[i] = row < rows ? log_sums[head * rows + row] * LOG2_E : 0.0f;
        mean[i] = row < rows ? means[head * rows + row] : 0.0f;
    }
    clear(dq);

    const auto load = [&](int tile) {
        const Shared stage = stages + (tile & 1) * STAGE;
        T::template load<KEYS, THREADS>(stage, keys, tile * KEYS, sequence);
        T::template load<KEYS, THREADS>(stage + KEYS * T::row_bytes, values, tile * KEYS, sequence);
    };
    const int begin = max(oldest - window + 1, 0) / KEYS, end = newest / KEYS;
    T::template load<ROWS, THREADS>(query_tile, queries + head * rows * D, first, rows);
    T::template load<ROWS, THREADS>(gradient_tile, gradient + head * rows * D, first, rows);
    load(begin);
    for (int tile = begin; tile <= end; ++tile) {
        wait_for_copies();
        __syncthreads(); // The tile is there, and all are through with the one before.
        if (tile < end) load(tile + 1);
        const int key = tile * KEYS;
        if (key > warp_newest || key + KEYS - 1 <= warp_oldest - window) continue;
        const Shared key_tile = stages + (tile & 1) * STAGE, value_tile = key_tile + KEYS * T::row_bytes;
        float p[M][N][4], ds[M][N][4];
        clear(p);
        T::multiply(p, warp_queries, key_tile);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[m][n][i] = exp2_fast(p[m][n][i] * LOG2_E - log_sum[2 * m + i / 2]);
                }
            }
        }
        if (key + KEYS - 1 > warp_oldest || key <= warp_newest - window) {
#pragma unroll
            for (int i = 0; i < 2 * M; ++i) {
                const int position = (warp_first + i * 8 + (lane >> 2)) / group;
#pragma unroll
                for (int j = 0; j < 2 * N; ++j) {
                    const int back = position - (key + j / 2 * 8 + (lane & 3) * 2 + j % 2);
                    if (back < 0 || back >= window) p[i / 2][j / 2][i % 2 * 2 + j % 2] = 0.0f;
                }
            }
        }
        clear(ds);
        T::multiply(ds, warp_gradient, value_tile);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - mean[2 * m + i / 2]);
            }
        }
        T::multiply_held(dq, ds, key_tile);
    }
    // The warp's rows of the queries are read by nobody else.
    T::template store<M>(dq, memory + warp * M * 16 * T::row_bytes, dqueries + head * rows * D, warp_first, rows);
}

#define BACKWARD(D)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_keys_##D##_bf16(                      \
        const bf16 *queries, const bf16 *keys, const bf16 *values, const bf16 *gradient, const float *log_sums,   \
        const float *means, bf16 *dkeys, bf16 *dvalues, int sequence, int group, int window) {                    \
        backward_keys<D>(queries, keys, values, gradient, log_sums, means, dkeys, dvalues, sequence, group,       \
                         window);                                                                                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_queries_##D##_bf16(                   \
        const bf16 *queries, const bf16 *keys, const bf16 *values, const bf16 *gradient, const float *log_sums,   \
        const float *means, bf16 *dqueries, int sequence, int group, int window) {                                \
        backward_queries<D>(queries, keys, values, gradient, log_sums, means, dqueries, sequence, group, window); \
    }

BACKWARD(64)
BACKWARD(128)
