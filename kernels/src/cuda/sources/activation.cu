// SwiGLU (Shazeer, GLU variants, 2020) and GELU in its tanh form (Hendrycks and Gimpel, 2016), and rotary
// position embedding (Su et al., RoFormer, 2021).

// Applies `F` to each element: a thread takes a vector of 16 bytes. An output may be null.
template <typename F, typename T, int INPUTS, int OUTPUTS>
__device__ __forceinline__ void elementwise(const T *const (&inputs)[INPUTS], T *const (&outputs)[OUTPUTS], u64 count) {
    constexpr int N = Vector<T>::length;
    const u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    bool vectors = start + N <= count;
#pragma unroll
    for (int k = 0; k < INPUTS; ++k) vectors = vectors && aligned(inputs[k]);
#pragma unroll
    for (int k = 0; k < OUTPUTS; ++k) vectors = vectors && aligned(outputs[k]);
    if (vectors) {
        float in[INPUTS][N], out[OUTPUTS][N];
#pragma unroll
        for (int k = 0; k < INPUTS; ++k) load<N>(inputs[k] + start, in[k]);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float arguments[INPUTS], results[OUTPUTS];
#pragma unroll
            for (int k = 0; k < INPUTS; ++k) arguments[k] = in[k][j];
            F::apply(arguments, results);
#pragma unroll
            for (int k = 0; k < OUTPUTS; ++k) out[k][j] = results[k];
        }
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            if (outputs[k] != nullptr) store<N>(outputs[k] + start, out[k]);
        }
    } else {
        for (u64 i = start; i < start + N && i < count; ++i) {
            float arguments[INPUTS], results[OUTPUTS];
#pragma unroll
            for (int k = 0; k < INPUTS; ++k) arguments[k] = widen(inputs[k][i]);
            F::apply(arguments, results);
#pragma unroll
            for (int k = 0; k < OUTPUTS; ++k) {
                if (outputs[k] != nullptr) outputs[k][i] = narrow<T>(results[k]);
            }
        }
    }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// gate, up -> silu(gate) * up
struct SwiGlu {
    static __device__ __forceinline__ void apply(const float (&in)[2], float (&out)[1]) {
        out[0] = in[0] * sigmoid(in[0]) * in[1];
    }
};

// gate, up, gradient -> gradients by gate and up, silu(gate) * up
struct SwiGluBackward {
    static __device__ __forceinline__ void apply(const float (&in)[3], float (&out)[3]) {
        const float s = sigmoid(in[0]), silu = in[0] * s;
        out[0] = in[2] * in[1] * s * (1.0f + in[0] * (1.0f - s));
        out[1] = in[2] * silu;
        out[2] = silu * in[1];
    }
};

// sqrt(2 / pi) and the factor of the cube.
constexpr float GELU_SCALE = 0.7978845608028654f, GELU_CUBE = 0.044715f;

// x -> gelu(x)
struct Gelu {
    static __device__ __forceinline__ void apply(const float (&in)[1], float (&out)[1]) {
        const float x = in[0], t = tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x));
        out[0] = 0.5f * x * (1.0f + t);
    }
};

// x, gradient -> gradient by x, gelu(x)
struct GeluBackward {
    static __device__ __forceinline__ void apply(const float (&in)[2], float (&out)[2]) {
        const float x = in[0], t = tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x));
        const float slope = (1.0f - t * t) * GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
        out[0] = in[1] * 0.5f * (1.0f + t + x * slope);
        out[1] = 0.5f * x * (1.0f + t);
    }
};

// Turns the pairs (x[i], x[i + half]) of each head by the angle of the token's position times `direction`. A
// block takes a token, whose heads lie side by side; tokens lie `stride` numbers apart. `x` and `y` may be the
// same.
template <typename T, int N>
__device__ __forceinline__ void turn(const T *x, T *y, const float *cosines, const float *sines, int heads, int half,
                                     float direction) {
    const int vectors = half / N;
    for (int i = threadIdx.x; i < heads * vectors; i += blockDim.x) {
        const int head = i / vectors, pair = i % vectors * N, at = head * 2 * half + pair;
        float a[N], b[N], c[N], s[N];
        load<N>(x + at, a);
        load<N>(x + at + half, b);
        // By 16 bytes, whatever the vector's length: angles are in f32.
        if constexpr (N == 1) {
            c[0] = cosines[pair];
            s[0] = sines[pair];
        } else {
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                float part[4];
                load<4>(cosines + pair + j, part);
#pragma unroll
                for (int k = 0; k < 4; ++k) c[j + k] = part[k];
                load<4>(sines + pair + j, part);
#pragma unroll
                for (int k = 0; k < 4; ++k) s[j + k] = part[k];
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float turned = a[j] * c[j] - b[j] * s[j] * direction;
            b[j] = b[j] * c[j] + a[j] * s[j] * direction;
            a[j] = turned;
        }
        store<N>(y + at, a);
        store<N>(y + at + half, b);
    }
}

template <typename T>
__device__ __forceinline__ void rope(const T *x, T *y, const float *cosines, const float *sines, int sequence,
                                     int heads, int half, u64 x_stride, u64 y_stride, float direction) {
    constexpr int N = Vector<T>::length;
    const u64 token = blockIdx.x, angles = token % sequence * half;
    const bool vectors = half % N == 0 && x_stride % N == 0 && y_stride % N == 0 && aligned(x) && aligned(y) &&
                         aligned(cosines) && aligned(sines);
    x += token * x_stride;
    y += token * y_stride;
    if (vectors) {
        turn<T, N>(x, y, cosines + angles, sines + angles, heads, half, direction);
    } else {
        turn<T, 1>(x, y, cosines + angles, sines + angles, heads, half, direction);
    }
}

#define KERNELS(T, suffix)                                                                                          \
    KERNEL(256) swiglu_forward_##suffix(const T *gate, const T *up, T *y, u64 count) {                              \
        elementwise<SwiGlu, T, 2, 1>({gate, up}, {y}, count);                                                       \
    }                                                                                                               \
    KERNEL(256) swiglu_backward_##suffix(const T *gate, const T *up, const T *dy, T *dgate, T *dup, T *y,           \
                                         u64 count) {                                                               \
        elementwise<SwiGluBackward, T, 3, 3>({gate, up, dy}, {dgate, dup, y}, count);                               \
    }                                                                                                               \
    KERNEL(256) gelu_forward_##suffix(const T *x, T *y, u64 count) {                                                \
        elementwise<Gelu, T, 1, 1>({x}, {y}, count);                                                                \
    }                                                                                                               \
    KERNEL(256) gelu_backward_##suffix(const T *x, const T *dy, T *dx, T *y, u64 count) {                           \
        elementwise<GeluBackward, T, 2, 2>({x, dy}, {dx, y}, count);                                                \
    }                                                                                                               \
    KERNEL(1024) rope_##suffix(const T *x, T *y, const float *cosines, const float *sines, int sequence, int heads, \
                               int half, u64 x_stride, u64 y_stride, float direction) {                             \
        rope<T>(x, y, cosines, sines, sequence, heads, half, x_stride, y_stride, direction);                        \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
