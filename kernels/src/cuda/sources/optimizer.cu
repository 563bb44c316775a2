// The optimizers' updates, and the sum of gradients over microbatches. A thread takes four numbers.
//
// Weights in f32 are updated themselves; for weights in bf16 the f32 master weights are updated, and the weights
// are those rounded.

constexpr int N = 4;

// The first of this thread's numbers.
__device__ __forceinline__ u64 own_start() { return ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N; }

// As `load` and `store`; not `full`: of `count` numbers, one by one, where there are less than N or they are not
// aligned.
template <typename T> __device__ __forceinline__ void load_some(const T *from, float (&to)[N], int count, bool full) {
    if (full) {
        if constexpr (sizeof(T) == 4) {
            load<N>(from, to);
        } else {
            const uint2 raw = *reinterpret_cast<const uint2 *>(from);
            to[0] = __uint_as_float(raw.x << 16);
            to[1] = __uint_as_float(raw.x & 0xffff0000u);
            to[2] = __uint_as_float(raw.y << 16);
            to[3] = __uint_as_float(raw.y & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) to[j] = j < count ? widen(from[j]) : 0.0f;
    }
}

template <typename T> __device__ __forceinline__ void store_some(T *to, const float (&from)[N], int count, bool full) {
    if (full) {
        if constexpr (sizeof(T) == 4) {
            store<N>(to, from);
        } else {
            *reinterpret_cast<uint2 *>(to) = make_uint2(narrow_pair(from[0], from[1]), narrow_pair(from[2], from[3]));
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j < count) to[j] = narrow<T>(from[j]);
        }
    }
}

// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019). By step: `keep` = 1 - rate * decay,
// `size` = rate / (1 - beta1^step), `root` = 1 / sqrt(1 - beta2^step).
template <typename T>
__device__ __forceinline__ void adamw(T *narrowed, float *weights, float *first, float *second, const float *gradient,
                                      u64 count, float keep, float size, float root, float beta1, float beta2,
                                      float epsilon) {
    const u64 start = own_start();
    if (start >= count) return;
    const int own = (int)min((u64)N, count - start);
    const bool full = own == N && aligned(narrowed) && aligned(weights) && aligned(first) && aligned(second) &&
                      aligned(gradient);
    float w[N], m[N], v[N], g[N];
    load_some(weights + start, w, own, full);
    load_some(first + start, m, own, full);
    load_some(second + start, v, own, full);
    load_some(gradient + start, g, own, full);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        m[j] = beta1 * m[j] + (1.0f - beta1) * g[j];
        v[j] = beta2 * v[j] + (1.0f - beta2) * g[j] * g[j];
        w[j] = w[j] * keep - size * m[j] / (sqrtf(v[j]) * root + epsilon);
    }
    store_some(weights + start, w, own, full);
    store_some(first + start, m, own, full);
    store_some(second + start, v, own, full);
    if (narrowed != nullptr) store_some(narrowed + start, w, own, full);
}

// SGD without momentum.
template <typename T>
__device__ __forceinline__ void sgd(T *narrowed, float *weights, const float *gradient, u64 count, float rate) {
    const u64 start = own_start();
    if (start >= count) return;
    const int own = (int)min((u64)N, count - start);
    const bool full = own == N && aligned(narrowed) && aligned(weights) && aligned(gradient);
    float w[N], g[N];
    load_some(weights + start, w, own, full);
    load_some(gradient + start, g, own, full);
#pragma unroll
    for (int j = 0; j < N; ++j) w[j] -= rate * g[j];
    store_some(weights + start, w, own, full);
    if (narrowed != nullptr) store_some(narrowed + start, w, own, full);
}

// sum += gradient, or sum = gradient.
template <typename T>
__device__ __forceinline__ void accumulate(float *sum, const T *gradient, u64 count, int replace) {
    const u64 start = own_start();
    if (start >= count) return;
    const int own = (int)min((u64)N, count - start);
    const bool full = own == N && aligned(sum) && aligned(gradient);
    float s[N], g[N];
    load_some(gradient + start, g, own, full);
    if (!replace) {
        load_some(sum + start, s, own, full);
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] += s[j];
    }
    store_some(sum + start, g, own, full);
}

KERNEL(256) adamw_f32(float *weights, float *first, float *second, const float *gradient, u64 count, float keep,
                      float size, float root, float beta1, float beta2, float epsilon) {
    adamw<float>(nullptr, weights, first, second, gradient, count, keep, size, root, beta1, beta2, epsilon);
}
KERNEL(256) adamw_bf16(bf16 *weights, float *master, float *first, float *second, const float *gradient, u64 count,
                       float keep, float size, float root, float beta1, float beta2, float epsilon) {
    adamw<bf16>(weights, master, first, second, gradient, count, keep, size, root, beta1, beta2, epsilon);
}
KERNEL(256) sgd_f32(float *weights, const float *gradient, u64 count, float rate) {
    sgd<float>(nullptr, weights, gradient, count, rate);
}
KERNEL(256) sgd_bf16(bf16 *weights, float *master, const float *gradient, u64 count, float rate) {
    sgd<bf16>(weights, master, gradient, count, rate);
}
KERNEL(256) accumulate_f32(float *sum, const float *gradient, u64 count, int replace) {
    accumulate<float>(sum, gradient, count, replace);
}
KERNEL(256) accumulate_bf16(float *sum, const bf16 *gradient, u64 count, int replace) {
    accumulate<bf16>(sum, gradient, count, replace);
}
