// RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).
//
// Statistics by row, in f32: RMSNorm one number, 1 / root mean square; LayerNorm two, mean and 1 / standard
// deviation. A block takes a row. The second pass over the row finds it in the L1 cache.

template <typename T, int N>
__device__ __forceinline__ void rms_norm_row(const T *x, const T *weight, T *y, float *statistics, int width,
                                             float epsilon) {
    float sum[1] = {0.0f};
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        float v[N];
        load<N>(x + i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[0] += v[j] * v[j];
    }
    block_sum(sum);
    const float scale = rsqrtf(sum[0] / width + epsilon);
    if (threadIdx.x == 0) *statistics = scale;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        float v[N], w[N];
        load<N>(x + i, v);
        load<N>(weight + i, w);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] *= scale * w[j];
        store<N>(y + i, v);
    }
}

template <typename T>
__device__ __forceinline__ void rms_norm_forward(const T *x, const T *weight, T *y, float *statistics, int width,
                                                 float epsilon) {
    const u64 row = (u64)blockIdx.x * width;
    constexpr int N = Vector<T>::length;
    if (width % N == 0 && aligned(x) && aligned(weight) && aligned(y)) {
        rms_norm_row<T, N>(x + row, weight, y + row, statistics + blockIdx.x, width, epsilon);
    } else {
        rms_norm_row<T, 1>(x + row, weight, y + row, statistics + blockIdx.x, width, epsilon);
    }
}

#define KERNELS(T, suffix)                                                                                       \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_forward_##suffix(                                \
        const T *x, const T *weight, T *y, float *statistics, int width, float epsilon) {                        \
        rms_norm_forward<T>(x, weight, y, statistics, width, epsilon);                                           \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
