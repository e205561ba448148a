// RMS normalisation of rows [outer][inner][width], each leading dimension with its own stride.
#include "rms_norm/normalise.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // elements

template <class T>
void rms_norm(const T *x, int64_t x_outer, int64_t x_inner, T *residual, int64_t r_outer, int64_t r_inner, T *out,
              int64_t o_outer, int64_t o_inner, const float *steering, const float *weight, float eps, int64_t outer,
              int64_t inner, int64_t width, int64_t threads) {
#pragma omp parallel num_threads(team(threads, outer * inner * width, WORTH_A_TEAM))
    {
        const Share share(outer * inner, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t row = share.begin; row < share.end; ++row) {
            const int64_t n = row / inner, h = row % inner;
            T *sum = residual ? residual + n * r_outer + h * r_inner : nullptr;
            T *target = out + n * o_outer + h * o_inner;
            normalise(x + n * x_outer + h * x_inner, sum, steering, target, weight, eps, width);
        }
    }
}

}  // namespace

#define RMS_NORM(NAME, T)                                                                                             \
    extern "C" void NAME(const T *x, int64_t x_outer, int64_t x_inner, T *residual, int64_t r_outer, int64_t r_inner, \
                         T *out, int64_t o_outer, int64_t o_inner, const float *steering, const float *weight,        \
                         float eps, int64_t outer, int64_t inner, int64_t width, int64_t threads) {                   \
        rms_norm(x, x_outer, x_inner, residual, r_outer, r_inner, out, o_outer, o_inner, steering, weight, eps,       \
                 outer, inner, width, threads);                                                                       \
    }

RMS_NORM(rms_norm_f32, float)
RMS_NORM(rms_norm_bf16, bf16)
