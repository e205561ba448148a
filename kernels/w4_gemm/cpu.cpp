// Linear layers with int4 weights, over a team of threads.
#include "lut_gemv/layer.h"
#include "w4_gemm/multiply.h"

#define W4_GEMM(NAME, T)                                                                                              \
    extern "C" void NAME(const T *x, int64_t x_stride, const uint16_t *packed, const _Float16 *scales, T *out,       \
                         int64_t out_stride, int64_t rows, int64_t features, int64_t outputs, int64_t threads) {     \
        const int4::Matrix<T> matrix{packed, scales, features};                                                      \
        lut::multiply_all(matrix, x, x_stride, (const T *)nullptr, out, out_stride, rows, outputs, threads);         \
    }

W4_GEMM(w4_gemm_f32, float)
W4_GEMM(w4_gemm_bf16, bf16)
