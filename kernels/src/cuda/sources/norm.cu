// RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).
//
// Statistics by row, in f32: RMSNorm one number, 1 / root mean square; LayerNorm two, mean and 1 / standard
// deviation. In all kernels but those of the weight's gradient the threads along x take a row. Rows for one warp
// lie along y, several to a block.

// Vectors of a row that a thread keeps in registers between the passes over it: all its loads are under way at
// once, and nothing is read twice.
constexpr int KEPT = 4;

// Calls `f(k, i)` for each of the thread's vectors: the k-th, which begins at column i. With K = 0 for any number
// of vectors, of which none can be kept.
template <int N, int K, typename F> __device__ __forceinline__ void for_own(int width, F f) {
    if constexpr (K == 0) {
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) f(0, i);
    } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int i = (threadIdx.x + k * blockDim.x) * N;
            if (i < width) f(k, i);
        }
    }
}

// A row's numbers as f32, kept or read again.
template <typename T, int N, int K> struct Row {
    const T *start;
    uint4 kept[K == 0 ? 1 : K];

    __device__ __forceinline__ Row(const T *start, int width) : start(start) {
        if constexpr (K > 0) {
            for_own<N, K>(width, [&](int k, int i) { kept[k] = *reinterpret_cast<const uint4 *>(start + i); });
        }
    }

    __device__ __forceinline__ void get(int k, int i, float (&to)[N]) const {
        if constexpr (K > 0) {
            unpack<T>(kept[k], to);
        } else {
            load<N>(start + i, to);
        }
    }
};

__device__ __forceinline__ u64 own_row() { return (u64)blockIdx.x * blockDim.y + threadIdx.y; }

// The sums over a row's threads, in all of them.
template <int K> __device__ __forceinline__ void row_sum(float (&x)[K]) {
    if (blockDim.x == 32) {
#pragma unroll
        for (int k = 0; k < K; ++k) x[k] = warp_sum(x[k]);
    } else {
        block_sum(x);
    }
}

// The statistics of a row.
template <bool CENTRED> struct Statistics {
    float mean, scale;
};

template <bool CENTRED> __device__ __forceinline__ Statistics<CENTRED> saved(const float *statistics, u64 row) {
    if constexpr (CENTRED) {
        return {statistics[2 * row], statistics[2 * row + 1]};
    } else {
        return {0.0f, statistics[row]};
    }
}

template <bool CENTRED, typename T, int N, int K>
__device__ __forceinline__ Statistics<CENTRED> measure(const Row<T, N, K> &x, int width, float epsilon) {
    float mean = 0.0f;
    if constexpr (CENTRED) {
        float sum[1] = {0.0f};
        for_own<N, K>(width, [&](int k, int i) {
            float v[N];
            x.get(k, i, v);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[0] += v[j];
        });
        row_sum(sum);
        mean = sum[0] / width;
    }
    // From the mean, not from the sum of squares: that would cancel where the mean is large.
    float squares[1] = {0.0f};
    for_own<N, K>(width, [&](int k, int i) {
        float v[N];
        x.get(k, i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) squares[0] += (v[j] - mean) * (v[j] - mean);
    });
    row_sum(squares);
    return {mean, rsqrtf(squares[0] / width + epsilon)};
}

template <bool CENTRED, typename T, int N, int K>
__device__ __forceinline__ void normalise(const Row<T, N, K> &x, const T *weight, const T *bias, T *y, int width,
                                          Statistics<CENTRED> row) {
    for_own<N, K>(width, [&](int k, int i) {
        float v[N], w[N], b[N];
        x.get(k, i, v);
        load<N>(weight + i, w);
        if constexpr (CENTRED) load<N>(bias + i, b);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            v[j] = (v[j] - row.mean) * row.scale * w[j];
            if constexpr (CENTRED) v[j] += b[j];
        }
        store<N>(y + i, v);
    });
}

// dx = scale * (w dy - [mean(w dy)] - xn mean(w dy xn)) + residual, with xn the normed row.
template <bool CENTRED, typename T, int N, int K>
__device__ __forceinline__ void backward_row(const Row<T, N, K> &x, const T *weight, const Row<T, N, K> &dy,
                                             const T *residual, T *dx, int width, Statistics<CENTRED> row) {
    // Along the normed row, and along ones.
    float sums[2] = {0.0f, 0.0f};
    for_own<N, K>(width, [&](int k, int i) {
        float v[N], w[N], g[N];
        x.get(k, i, v);
        load<N>(weight + i, w);
        dy.get(k, i, g);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            sums[0] += w[j] * g[j] * (v[j] - row.mean) * row.scale;
            if constexpr (CENTRED) sums[1] += w[j] * g[j];
        }
    });
    row_sum(sums);
    const float along = sums[0] / width, ones = sums[1] / width;
    for_own<N, K>(width, [&](int k, int i) {
        float v[N], w[N], g[N], r[N];
        x.get(k, i, v);
        load<N>(weight + i, w);
        dy.get(k, i, g);
        if (residual != nullptr) load<N>(residual + i, r);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            v[j] = row.scale * (w[j] * g[j] - ones - (v[j] - row.mean) * row.scale * along);
            if (residual != nullptr) v[j] += r[j];
        }
        store<N>(dx + i, v);
    });
}

// Sums over rows for the gradients by weight and bias: a block takes a tile of columns, as many as a warp's
// vectors are long, and a share of the rows, which its 8 warps take in turn. Partial sums go to
// `[shares, width]`; `sum_shares` adds them, always in the same order.
constexpr int ROW_WARPS = 8;

template <bool CENTRED, typename T, bool VECTORS>
__device__ __forceinline__ void weight_tile(const T *x, const float *statistics, const T *dy, float *dweight,
                                            float *dbias, int rows, int width) {
    constexpr int N = Vector<T>::length, TILE = 32 * N, SUMS = CENTRED ? 2 : 1;
    __shared__ float parts[SUMS][ROW_WARPS][TILE];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, tile = blockIdx.x * TILE;
    float sums[SUMS][N];
#pragma unroll
    for (int k = 0; k < SUMS; ++k) {
#pragma unroll
        for (int j = 0; j < N; ++j) sums[k][j] = 0.0f;
    }
    const int first = (int)((u64)rows * blockIdx.y / gridDim.y), end = (int)((u64)rows * (blockIdx.y + 1) / gridDim.y);
    for (int r = first + warp; r < end; r += ROW_WARPS) {
        const Statistics<CENTRED> row = saved<CENTRED>(statistics, r);
        const u64 start = (u64)r * width + tile;
        float v[N], g[N];
        if constexpr (VECTORS) {
            if (tile + lane * N >= width) continue;
            load<N>(x + start + lane * N, v);
            load<N>(dy + start + lane * N, g);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const int column = lane + 32 * j;
                v[j] = tile + column < width ? widen(x[start + column]) : 0.0f;
                g[j] = tile + column < width ? widen(dy[start + column]) : 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            sums[0][j] += g[j] * (v[j] - row.mean) * row.scale;
            if constexpr (CENTRED) sums[SUMS - 1][j] += g[j];
        }
    }
#pragma unroll
    for (int k = 0; k < SUMS; ++k) {
#pragma unroll
        for (int j = 0; j < N; ++j) parts[k][warp][VECTORS ? lane * N + j : lane + 32 * j] = sums[k][j];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < TILE && tile + column < width; column += blockDim.x) {
#pragma unroll
        for (int k = 0; k < SUMS; ++k) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < ROW_WARPS; ++w) sum += parts[k][w][column];
            (k == 0 ? dweight : dbias)[(u64)blockIdx.y * width + tile + column] = sum;
        }
    }
}

// Adds the shares: a block takes 32 columns, its 8 warps take shares in turn.
template <typename T> __device__ __forceinline__ void sum_shares(const float *shares, T *sum, int count, int width) {
    __shared__ float parts[ROW_WARPS][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
    float part = 0.0f;
    if (column < width) {
        for (int i = warp; i < count; i += ROW_WARPS) part += shares[(u64)i * width + column];
    }
    parts[warp][lane] = part;
    __syncthreads();
    if (warp == 0 && column < width) {
        float whole = 0.0f;
#pragma unroll
        for (int w = 0; w < ROW_WARPS; ++w) whole += parts[w][lane];
        sum[column] = narrow<T>(whole);
    }
}

// Numbers of a vector, and vectors that a thread keeps.
template <int VECTOR, int VECTORS> struct Way {
    static constexpr int N = VECTOR, K = VECTORS;
};

// Calls `f` with the way to go over a row: vectors that are kept, vectors, or number by number.
template <typename T, typename F> __device__ __forceinline__ void by_width(int width, bool addresses, F f) {
    constexpr int N = Vector<T>::length;
    if (!addresses || width % N != 0) {
        f(Way<1, 0>());
    } else if (width <= KEPT * N * (int)blockDim.x) {
        f(Way<N, KEPT>());
    } else {
        f(Way<N, 0>());
    }
}

template <bool CENTRED, typename T>
__device__ __forceinline__ void forward(const T *x, const T *weight, const T *bias, T *y, float *statistics, int rows,
                                        int width, float epsilon) {
    const u64 own = own_row(), start = own * width;
    if (own >= (u64)rows) return;
    by_width<T>(width, aligned(x) && aligned(weight) && aligned(bias) && aligned(y), [&](auto way) {
        const Row<T, way.N, way.K> values(x + start, width);
        const Statistics<CENTRED> row = measure<CENTRED>(values, width, epsilon);
        if (threadIdx.x == 0) {
            if constexpr (CENTRED) statistics[2 * own] = row.mean;
            statistics[CENTRED ? 2 * own + 1 : own] = row.scale;
        }
        normalise<CENTRED>(values, weight, bias, y + start, width, row);
    });
}

template <bool CENTRED, typename T>
__device__ __forceinline__ void apply(const T *x, const T *weight, const T *bias, const float *statistics, T *y,
                                      int rows, int width) {
    const u64 own = own_row(), start = own * width;
    if (own >= (u64)rows) return;
    by_width<T>(width, aligned(x) && aligned(weight) && aligned(bias) && aligned(y), [&](auto way) {
        const Row<T, way.N, way.K> values(x + start, width);
        normalise<CENTRED>(values, weight, bias, y + start, width, saved<CENTRED>(statistics, own));
    });
}

template <bool CENTRED, typename T>
__device__ __forceinline__ void backward_input(const T *x, const T *weight, const float *statistics, const T *dy,
                                               const T *residual, T *dx, int rows, int width) {
    const u64 own = own_row(), start = own * width;
    if (own >= (u64)rows) return;
    const T *added = residual == nullptr ? nullptr : residual + start;
    const bool addresses = aligned(x) && aligned(weight) && aligned(dy) && aligned(residual) && aligned(dx);
    by_width<T>(width, addresses, [&](auto way) {
        const Row<T, way.N, way.K> values(x + start, width), gradients(dy + start, width);
        const Statistics<CENTRED> row = saved<CENTRED>(statistics, own);
        backward_row<CENTRED>(values, weight, gradients, added, dx + start, width, row);
    });
}

template <bool CENTRED, typename T>
__device__ __forceinline__ void backward_weight(const T *x, const float *statistics, const T *dy, float *dweight,
                                                float *dbias, int rows, int width) {
    if (width % Vector<T>::length == 0 && aligned(x) && aligned(dy)) {
        weight_tile<CENTRED, T, true>(x, statistics, dy, dweight, dbias, rows, width);
    } else {
        weight_tile<CENTRED, T, false>(x, statistics, dy, dweight, dbias, rows, width);
    }
}

#define KERNELS(T, suffix)                                                                                            \
    KERNEL(512)  rms_norm_forward_##suffix(const T *x, const T *weight, T *y, float *statistics, int rows, int width, \
                                           float epsilon) {                                                           \
        forward<false, T>(x, weight, nullptr, y, statistics, rows, width, epsilon);                                   \
    }                                                                                                                 \
    KERNEL(512)  rms_norm_apply_##suffix(const T *x, const T *weight, const float *statistics, T *y, int rows,        \
                                         int width) {                                                                 \
        apply<false, T>(x, weight, nullptr, statistics, y, rows, width);                                              \
    }                                                                                                                 \
    KERNEL(512)  rms_norm_backward_input_##suffix(const T *x, const T *weight, const float *statistics, const T *dy,  \
                                                  const T *residual, T *dx, int rows, int width) {                    \
        backward_input<false, T>(x, weight, statistics, dy, residual, dx, rows, width);                               \
    }                                                                                                                 \
    KERNEL(256) rms_norm_backward_weight_##suffix(const T *x, const float *statistics, const T *dy, float *dweight,   \
                                                  int rows, int width) {                                              \
        backward_weight<false, T>(x, statistics, dy, dweight, nullptr, rows, width);                                  \
    }                                                                                                                 \
    KERNEL(512)  layer_norm_forward_##suffix(const T *x, const T *weight, const T *bias, T *y, float *statistics,     \
                                             int rows, int width, float epsilon) {                                    \
        forward<true, T>(x, weight, bias, y, statistics, rows, width, epsilon);                                       \
    }                                                                                                                 \
    KERNEL(512)  layer_norm_apply_##suffix(const T *x, const T *weight, const T *bias, const float *statistics, T *y, \
                                           int rows, int width) {                                                     \
        apply<true, T>(x, weight, bias, statistics, y, rows, width);                                                  \
    }                                                                                                                 \
    KERNEL(512)  layer_norm_backward_input_##suffix(const T *x, const T *weight, const float *statistics,             \
                                                    const T *dy, const T *residual, T *dx, int rows, int width) {     \
        backward_input<true, T>(x, weight, statistics, dy, residual, dx, rows, width);                                \
    }                                                                                                                 \
    KERNEL(256) layer_norm_backward_weight_##suffix(const T *x, const float *statistics, const T *dy, float *dweight, \
                                                    float *dbias, int rows, int width) {                              \
        backward_weight<true, T>(x, statistics, dy, dweight, dbias, rows, width);                                     \
    }                                                                                                                 \
    KERNEL(256) sum_shares_##suffix(const float *shares, T *sum, int count, int width) {                              \
        sum_shares<T>(shares, sum, count, width);                                                                     \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
