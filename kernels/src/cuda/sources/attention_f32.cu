// Causal attention and its gradients in f32: the sums of the kernels in bf16 (attention_forward.cu and
// attention_backward.cu), in tiles of 64 rows of the queries and 32 keys, without tensor cores. And in both
// formats, for the gradients, the products of output and gradient by row.
//
// A block's 256 threads are 16 x 16, y and x. Of scores a thread has rows 4 y + i and keys x + 16 j; of sums over
// keys rows 4 y + i, of sums over rows keys 2 y + i, and columns 4 x + 64 j + l.

constexpr int ROWS = 64, KEYS = 32, THREADS = 256;
// Numbers of a row of scores in shared memory.
constexpr int SCORES = KEYS + 1;

template <int D> struct Tile {
    // Numbers of a row in shared memory, so that the same vector of rows that follow one another lies in different
    // banks.
    static constexpr int stride = D + 4;

    // Loads `COUNT` rows from row `first` on, by all threads of the block; zeros from `limit` on.
    template <int COUNT>
    static __device__ __forceinline__ void load(float *to, const float *from, int first, int limit) {
        for (int i = threadIdx.x; i < COUNT * D / 4; i += THREADS) {
            const int row = i / (D / 4), column = i % (D / 4) * 4;
            float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (first + row < limit) ::load<4>(from + (u64)(first + row) * D + column, v);
            ::store<4>(to + row * stride + column, v);
        }
    }

    // c = a b^T of a thread's rows and keys.
    static __device__ __forceinline__ void multiply(float (&c)[4][2], const float *a, const float *b) {
        const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i][0] = c[i][1] = 0.0f;
#pragma unroll 4
        for (int k = 0; k < D; k += 4) {
            float rows[4][4], keys[2][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) ::load<4>(a + (4 * y + i) * stride + k, rows[i]);
#pragma unroll
            for (int j = 0; j < 2; ++j) ::load<4>(b + (x + 16 * j) * stride + k, keys[j]);
#pragma unroll
            for (int l = 0; l < 4; ++l) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    c[i][0] += rows[i][l] * keys[0][l];
                    c[i][1] += rows[i][l] * keys[1][l];
                }
            }
        }
    }

    // c += a b of `N` rows that follow one another, or columns of the transposed: `a` the first number,
    // `a_row` and `a_step` what lies between rows and between the `COUNT` terms of the sum.
    template <int COUNT, int N>
    static __device__ __forceinline__ void multiply_add(float (&c)[N][D / 16], const float *a, int a_row, int a_step,
                                                        const float *b) {
        const int x = threadIdx.x & 15;
#pragma unroll 4
        for (int k = 0; k < COUNT; ++k) {
            float rows[N];
#pragma unroll
            for (int i = 0; i < N; ++i) rows[i] = a[i * a_row + k * a_step];
#pragma unroll
            for (int j = 0; j < D / 64; ++j) {
                float v[4];
                ::load<4>(b + k * stride + 4 * x + 64 * j, v);
#pragma unroll
                for (int i = 0; i < N; ++i) {
#pragma unroll
                    for (int l = 0; l < 4; ++l) c[i][4 * j + l] += rows[i] * v[l];
                }
            }
        }
    }

    // Writes a thread's `N` rows, of which `to` has `limit`.
    template <int N>
    static __device__ __forceinline__ void store(const float (&c)[N][D / 16], float *to, int first, int limit) {
        const int x = threadIdx.x & 15;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (first + i >= limit) continue;
#pragma unroll
            for (int j = 0; j < D / 64; ++j) {
                float v[4];
#pragma unroll
                for (int l = 0; l < 4; ++l) v[l] = c[i][4 * j + l];
                ::store<4>(to + (u64)(first + i) * D + 4 * x + 64 * j, v);
            }
        }
    }
};

// Whether the query at a row sees a key.
__device__ __forceinline__ bool sees(int row, int key, int rows, int group, int window) {
    const int back = row / group - key;
    return row < rows && back >= 0 && back < window;
}

template <int D>
__device__ __forceinline__ void attention_forward(const float *queries, const float *keys, const float *values,
                                                  float *output, float *log_sums, int sequence, int group,
                                                  int window) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(float, query_tile);
    float *const key_tile = query_tile + ROWS * T::stride, *const value_tile = key_tile + KEYS * T::stride;
    float *const probabilities = value_tile + KEYS * T::stride;
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    keys += head * sequence * D;
    values += head * sequence * D;
    const int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const int oldest = first / group, newest = (min(first + ROWS, rows) - 1) / group;
    float largest[4], sum[4], sums[4][D / 16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        largest[i] = -3.402823466e38f;
        sum[i] = 0.0f;
#pragma unroll
        for (int j = 0; j < D / 16; ++j) sums[i][j] = 0.0f;
    }
    T::template load<ROWS>(query_tile, queries + head * rows * D, first, rows);
    for (int key = max(oldest - window + 1, 0) / KEYS * KEYS; key <= newest; key += KEYS) {
        __syncthreads(); // All are through with the tile before.
        T::template load<KEYS>(key_tile, keys, key, sequence);
        T::template load<KEYS>(value_tile, values, key, sequence);
        __syncthreads();
        float scores[4][2];
        T::multiply(scores, query_tile, key_tile);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + 4 * y + i;
            const bool seen[2] = {sees(row, key + x, rows, group, window), sees(row, key + x + 16, rows, group, window)};
            float most = largest[i];
            if (seen[0]) most = fmaxf(most, scores[i][0]);
            if (seen[1]) most = fmaxf(most, scores[i][1]);
#pragma unroll
            for (int lanes = 8; lanes > 0; lanes >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
            const float factor = expf(largest[i] - most);
            largest[i] = most;
            sum[i] *= factor;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float p = seen[j] ? expf(scores[i][j] - most) : 0.0f;
                sum[i] += p;
                probabilities[(4 * y + i) * SCORES + x + 16 * j] = p;
            }
#pragma unroll
            for (int j = 0; j < D / 16; ++j) sums[i][j] *= factor;
        }
        __syncwarp(); // A row's probabilities are of one warp.
        T::template multiply_add<KEYS, 4>(sums, probabilities + 4 * y * SCORES, SCORES, 1, value_tile);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes >>= 1) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lanes);
        const int row = first + 4 * y + i;
        if (x == 0 && row < rows) log_sums[head * rows + row] = largest[i] + logf(sum[i]);
#pragma unroll
        for (int j = 0; j < D / 16; ++j) sums[i][j] /= sum[i];
    }
    T::template store<4>(sums, output + head * rows * D, first + 4 * y, rows);
}

// Of the tiles in shared memory: the gradient by the scores and, where asked for, the probabilities.
template <int D, bool WITH_PROBABILITIES>
__device__ __forceinline__ void backward_scores(const float *query_tile, const float *gradient_tile,
                                                const float *key_tile, const float *value_tile, const float *log_sums,
                                                const float *means, float *dscores, float *probabilities, int first,
                                                int key, int rows, int group, int window) {
    const int x = threadIdx.x & 15, y = threadIdx.x >> 4;
    float scores[4][2], dp[4][2];
    Tile<D>::multiply(scores, query_tile, key_tile);
    Tile<D>::multiply(dp, gradient_tile, value_tile);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = first + 4 * y + i;
        const float log_sum = row < rows ? log_sums[row] : 0.0f, mean = row < rows ? means[row] : 0.0f;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int at = (4 * y + i) * SCORES + x + 16 * j;
            const float p = sees(row, key + x + 16 * j, rows, group, window) ? expf(scores[i][j] - log_sum) : 0.0f;
            if constexpr (WITH_PROBABILITIES) probabilities[at] = p;
            dscores[at] = p * (dp[i][j] - mean);
        }
    }
}

template <int D>
__device__ __forceinline__ void backward_keys(const float *queries, const float *keys, const float *values,
                                              const float *gradient, const float *log_sums, const float *means,
                                              float *dkeys, float *dvalues, int sequence, int group, int window) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(float, query_tile);
    float *const gradient_tile = query_tile + ROWS * T::stride, *const key_tile = gradient_tile + ROWS * T::stride;
    float *const value_tile = key_tile + KEYS * T::stride, *const dscores = value_tile + KEYS * T::stride;
    float *const probabilities = dscores + ROWS * SCORES;
    const int y = threadIdx.x >> 4;
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    const int key = blockIdx.y * KEYS;
    float dk[2][D / 16], dv[2][D / 16];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < D / 16; ++j) dk[i][j] = dv[i][j] = 0.0f;
    }
    T::template load<KEYS>(key_tile, keys + head * sequence * D, key, sequence);
    T::template load<KEYS>(value_tile, values + head * sequence * D, key, sequence);
    const int newest = min(min(key + KEYS, sequence) - 1 + window, sequence) * group;
    for (int first = key * group / ROWS * ROWS; first < newest; first += ROWS) {
        __syncthreads(); // All are through with the tile before.
        T::template load<ROWS>(query_tile, queries + head * rows * D, first, rows);
        T::template load<ROWS>(gradient_tile, gradient + head * rows * D, first, rows);
        __syncthreads();
        backward_scores<D, true>(query_tile, gradient_tile, key_tile, value_tile, log_sums + head * rows,
                                 means + head * rows, dscores, probabilities, first, key, rows, group, window);
        __syncthreads();
        T::template multiply_add<ROWS, 2>(dk, dscores + 2 * y, 1, SCORES, query_tile);
        T::template multiply_add<ROWS, 2>(dv, probabilities + 2 * y, 1, SCORES, gradient_tile);
    }
    T::template store<2>(dk, dkeys + head * sequence * D, key + 2 * y, sequence);
    T::template store<2>(dv, dvalues + head * sequence * D, key + 2 * y, sequence);
}

template <int D>
__device__ __forceinline__ void backward_queries(const float *queries, const float *keys, const float *values,
                                                 const float *gradient, const float *log_sums, const float *means,
                                                 float *dqueries, int sequence, int group, int window) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(float, query_tile);
    float *const gradient_tile = query_tile + ROWS * T::stride, *const key_tile = gradient_tile + ROWS * T::stride;
    float *const value_tile = key_tile + KEYS * T::stride, *const dscores = value_tile + KEYS * T::stride;
    const int y = threadIdx.x >> 4;
    const int rows = sequence * group;
    const u64 head = blockIdx.x;
    const int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const int oldest = first / group, newest = (min(first + ROWS, rows) - 1) / group;
    float dq[4][D / 16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < D / 16; ++j) dq[i][j] = 0.0f;
    }
    T::template load<ROWS>(query_tile, queries + head * rows * D, first, rows);
    T::template load<ROWS>(gradient_tile, gradient + head * rows * D, first, rows);
    for (int key = max(oldest - window + 1, 0) / KEYS * KEYS; key <= newest; key += KEYS) {
        __syncthreads(); // All are through with the tile before.
        T::template load<KEYS>(key_tile, keys + head * sequence * D, key, sequence);
        T::template load<KEYS>(value_tile, values + head * sequence * D, key, sequence);
        __syncthreads();
        backward_scores<D, false>(query_tile, gradient_tile, key_tile, value_tile, log_sums + head * rows,
                                  means + head * rows, dscores, nullptr, first, key, rows, group, window);
        __syncwarp(); // A row's gradients are of one warp.
        T::template multiply_add<KEYS, 4>(dq, dscores + 4 * y * SCORES, SCORES, 1, key_tile);
    }
    T::template store<4>(dq, dqueries + head * rows * D, first + 4 * y, rows);
}

// A thread takes a vector, as many as make a row add up.
template <int D, typename T>
__device__ __forceinline__ void attention_mean(const T *output, const T *gradient, float *means, int rows) {
    constexpr int N = Vector<T>::length, LANES = D / N;
    const int row = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    float sum = 0.0f;
    if (row < rows) {
        const u64 at = (u64)row * D + lane * N;
        float a[N], b[N];
        load<N>(output + at, a);
        load<N>(gradient + at, b);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += a[i] * b[i];
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (lane == 0 && row < rows) means[row] = sum;
}

#define ATTENTION(D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) attention_forward_##D##_f32(                                \
        const float *queries, const float *keys, const float *values, float *output, float *log_sums,             \
        int sequence, int group, int window) {                                                                    \
        attention_forward<D>(queries, keys, values, output, log_sums, sequence, group, window);                   \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_keys_##D##_f32(                          \
        const float *queries, const float *keys, const float *values, const float *gradient,                      \
        const float *log_sums, const float *means, float *dkeys, float *dvalues, int sequence, int group,         \
        int window) {                                                                                             \
        backward_keys<D>(queries, keys, values, gradient, log_sums, means, dkeys, dvalues, sequence, group,       \
                         window);                                                                                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_queries_##D##_f32(                       \
        const float *queries, const float *keys, const float *values, const float *gradient,                      \
        const float *log_sums, const float *means, float *dqueries, int sequence, int group, int window) {        \
        backward_queries<D>(queries, keys, values, gradient, log_sums, means, dqueries, sequence, group, window); \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) attention_mean_##D##_f32(                                   \
        const float *output, const float *gradient, float *means, int rows) {                                     \
        attention_mean<D>(output, gradient, means, rows);                                                         \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) attention_mean_##D##_bf16(                                  \
        const bf16 *output, const bf16 *gradient, float *means, int rows) {                                       \
        attention_mean<D>(output, gradient, means, rows);                                                         \
    }

ATTENTION(64)
ATTENTION(128)
