// Few-row linear layers over a team of threads.
#include "gemv/team.h"

#define GEMV(NAME, T, O)                                                                                              \
    extern "C" void NAME(const T *x, int64_t x_stride, const T *weight, const void *bias, int64_t bias_is_f32,       \
                         const O *residual, int64_t residual_stride, O *out, int64_t out_stride, int64_t rows,       \
                         int64_t features, int64_t outputs, int64_t threads) {                                       \
        const Gemv<Plain<T>, O> linear{{weight, features}, x, x_stride, bias, bias_is_f32, residual,                 \
                                       residual_stride, out, out_stride, rows, outputs};                             \
        over_team(linear, features * outputs, threads);                                                              \
    }

GEMV(gemv_f32_f32, float, float)
GEMV(gemv_bf16_bf16, bf16, bf16)
GEMV(gemv_bf16_f32, bf16, float)

#define GATED_GEMV(NAME, T)                                                                                           \
    extern "C" void NAME(const T *x, int64_t x_stride, const T *weight, T *out, int64_t out_stride,                  \
                         int64_t activation, int64_t rows, int64_t features, int64_t intermediate, int64_t threads) { \
        const GatedGemv<Plain<T>> linear{{weight, features}, x, x_stride, out, out_stride, activation, rows,         \
                                         intermediate};                                                              \
        over_team(linear, 2 * features * intermediate, threads);                                                     \
    }

GATED_GEMV(gated_gemv_f32, float)
GATED_GEMV(gated_gemv_bf16, bf16)
