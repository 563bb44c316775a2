// What the kernels of attention in bf16 share: copies to shared memory that run beside the compute, and matrix
// products on the tensor cores from there.
//
// The product is mma.sync.m16n8k16, of warps. Of its matrices lane 4 * i + j holds (PTX ISA, "Matrix Fragments
// for mma.m16n8k16"; two numbers of bf16 a register):
//     a (16 x 16)  a[0], a[1]: rows i, i + 8, columns 2 j, 2 j + 1; a[2], a[3]: the same rows, columns + 8
//     b (16 x 8)   b[0], b[1]: rows 2 j, 2 j + 1 and + 8, column i
//     c (16 x 8)   c[0], c[1]: row i, columns 2 j, 2 j + 1; c[2], c[3]: row i + 8
// So a product's c, narrowed to bf16, is the next product's a without moving between lanes.
//
// A tile in shared memory is row by row. Its vectors of 16 bytes are permuted within each row: vector v of row r
// is at v ^ (r & 7). So 8 rows' vectors of one column, which ldmatrix reads at once, lie in different banks.

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ float exp2_fast(float x) {
#ifdef OPTPIPE_EMULATE
    return exp2f(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

// From one lane, so that the compiler knows it to be the same in all.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0); }

// An address in shared memory.
#ifdef OPTPIPE_EMULATE
typedef unsigned char *Shared;
__device__ __forceinline__ Shared shared_address(unsigned char *memory) { return memory; }
#else
typedef u32 Shared;
__device__ __forceinline__ Shared shared_address(unsigned char *memory) {
    return (u32)__cvta_generic_to_shared(memory);
}
#endif

// Starts a copy of `BYTES` (16 or 4) to shared memory; of zeros where nothing is `given`: then `from` is not read.
template <int BYTES> __device__ __forceinline__ void copy_async(Shared to, const void *from, bool given) {
#ifdef OPTPIPE_EMULATE
    emulate::copy_async(to, from, BYTES, given ? BYTES : 0);
#else
    if constexpr (BYTES == 16) {
        // Past the L1 cache.
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(given ? 16 : 0)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(given ? 4 : 0)
                     : "memory");
    }
#endif
}

// Waits for all copies that this thread has started. Those of other threads have come after a barrier.
__device__ __forceinline__ void wait_for_copies() {
#ifdef OPTPIPE_EMULATE
    emulate::wait_for_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four 8 x 8 matrices of bf16; lane 8 * i + j gives the address of row j of matrix i. Of matrix i the lane
// 4 * r + c gets columns 2 c and 2 c + 1 of row r, or transposed rows 2 c and 2 c + 1 of column r.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(u32 (&to)[4], Shared row) {
#ifdef OPTPIPE_EMULATE
    emulate::load_matrices(to, row, TRANSPOSED);
#else
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row)
                     : "memory");
    }
#endif
}

// c += a b
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef OPTPIPE_EMULATE
    emulate::multiply_add_bf16(c, a, b0, b1);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Keeps the compiler from computing what follows from `x` once before a loop, where registers are short.
__device__ __forceinline__ u32 here(u32 x) {
#ifndef OPTPIPE_EMULATE
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// Tiles of rows of `D` numbers in bf16.
template <int D> struct Tile {
    static_assert(D == 64 || D == 128, "a row is one or two lines of all banks");
    static constexpr int row_bytes = 2 * D;
    static constexpr int vectors = D / 8;

    static __device__ __forceinline__ u32 offset(int row, int vector) {
        return row * row_bytes + ((vector ^ (row & 7)) << 4);
    }

    // What a lane reads of 16 rows and 16 columns as `a`, or transposed as two of `b` side by side. The next 16
    // columns are at `^ 32`, the next 16 rows at `+ 16 * row_bytes`.
    static __device__ __forceinline__ u32 lane_offset() {
        const int lane = threadIdx.x & 31;
        return offset(lane & 15, lane >> 4);
    }

    // The same as two of `b` whose columns are 8 rows of the tile each.
    static __device__ __forceinline__ u32 lane_offset_columns() {
        const int lane = threadIdx.x & 31;
        return offset((lane & 7) + (lane >> 4 << 3), lane >> 3 & 1);
    }

    // Starts to load `ROWS` rows from row `first` on, by all threads of the block; zeros from `limit` on.
    template <int ROWS, int THREADS>
    static __device__ __forceinline__ void load(Shared to, const bf16 *from, int first, int limit) {
        constexpr int step = THREADS / vectors;
        static_assert(step % 8 == 0 && ROWS % step == 0, "a thread's vectors have the same place in their rows");
        const int row = threadIdx.x / vectors, vector = threadIdx.x % vectors;
        const bf16 *source = from + (u64)(first + row) * D + vector * 8;
        to += offset(row, vector);
#pragma unroll
        for (int i = 0; i < ROWS / step; ++i) {
            copy_async<16>(to + i * step * row_bytes, source + i * step * D, first + row + i * step < limit);
        }
    }

    // c += a b^T of `M` times 16 rows of a tile and `N` times 8 rows of another.
    template <int M, int N>
    static __device__ __forceinline__ void multiply(float (&c)[M][N][4], Shared a, Shared b) {
        const u32 a_lane = here(lane_offset()), b_lane = here(lane_offset_columns());
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            u32 rows[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                load_matrices<false>(rows[m], a + (a_lane ^ (k << 5)) + m * 16 * row_bytes);
            }
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                u32 columns[4];
                load_matrices<false>(columns, b + (b_lane ^ (k << 5)) + n * 8 * row_bytes);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(c[m][n], rows[m], columns[0], columns[1]);
                    multiply_add(c[m][n + 1], rows[m], columns[2], columns[3]);
                }
            }
        }
    }

    // c += a b of `a`, narrowed to bf16, and a tile's `K` times 8 rows.
    template <int M, int K>
    static __device__ __forceinline__ void multiply_held(float (&c)[M][D / 8][4], const float (&a)[M][K][4], Shared b) {
        const u32 b_lane = here(lane_offset());
#pragma unroll
        for (int k = 0; k < K; k += 2) {
            u32 rows[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    rows[m][i] = narrow_pair(a[m][k + i / 2][i % 2 * 2], a[m][k + i / 2][i % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                u32 columns[4];
                load_matrices<true>(columns, b + (b_lane ^ (n << 4)) + k * 8 * row_bytes);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(c[m][n], rows[m], columns[0], columns[1]);
                    multiply_add(c[m][n + 1], rows[m], columns[2], columns[3]);
                }
            }
        }
    }

    // Writes a warp's `M` times 16 rows from row `first` on of `to`, which has `limit` rows, by way of shared
    // memory that no other warp reads or writes.
    template <int M>
    static __device__ __forceinline__ void store(const float (&c)[M][D / 8][4], unsigned char *stage, bf16 *to,
                                                 int first, int limit) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const u32 at = offset(m * 16 + half * 8 + (lane >> 2), n) + (lane & 3) * 4;
                    *reinterpret_cast<u32 *>(stage + at) = narrow_pair(c[m][n][2 * half], c[m][n][2 * half + 1]);
                }
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < M * 16 * vectors / 32; ++i) {
            const int row = (i * 32 + lane) / vectors, vector = lane % vectors;
            if (first + row < limit) {
                *reinterpret_cast<uint4 *>(to + (u64)(first + row) * D + vector * 8) =
                    *reinterpret_cast<const uint4 *>(stage + offset(row, vector));
            }
        }
    }
};

template <int M, int N> __device__ __forceinline__ void clear(float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0f;
    }
}
