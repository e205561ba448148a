// Linear layers with weights from lookup tables, over a team of threads.
#include "lut_gemv/layer.h"
#include "lut_gemv/multiply.h"

#define LUT_GEMV(NAME, T, BITS)                                                                                       \
    extern "C" void NAME(const T *x, int64_t x_stride, const uint16_t *packed, const T *tables,                      \
                         const int32_t *starts, const int32_t *columns, const T *values, const T *bias, T *out,      \
                         int64_t out_stride, int64_t rows, int64_t features, int64_t outputs, int64_t threads) {     \
        const lut::Matrix<T, BITS> matrix{packed, tables, {starts, columns, values}, features};                      \
        lut::multiply_all(matrix, x, x_stride, bias, out, out_stride, rows, outputs, threads);                       \
    }

LUT_GEMV(lut3_f32, float, 3)
LUT_GEMV(lut4_f32, float, 4)
LUT_GEMV(lut3_bf16, bf16, 3)
LUT_GEMV(lut4_bf16, bf16, 4)
