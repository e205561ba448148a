// Linear layers with weights from lookup tables, over a team of threads.
#include "lut_gemv/multiply.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // weights; below, waking the team takes longer than the work

// Rows of x with a margin behind each: gathering a bf16 reads the two bytes behind it too.
template <class T> Inputs<T> with_margin(Inputs<T> x, int64_t rows, int64_t features) {
    static thread_local std::vector<T> copy;
    const int64_t stride = features + LANES;
    if ((int64_t)copy.size() < rows * stride) copy.resize(rows * stride);
    for (int64_t n = 0; n < rows; ++n) std::copy_n(x.at(n, 0), features, copy.data() + n * stride);
    return {copy.data(), stride};
}

template <class T, int BITS> void multiply_few(const Problem<T, BITS> &problem, Inputs<T> x, int64_t threads) {
    const bool gathers = problem.sparse.starts && std::is_same_v<T, bf16>;
    const StreamInputs<T> inputs{gathers ? with_margin(x, problem.rows, problem.features) : x,
                                 streamed(x, problem.rows, problem.features)};
#pragma omp parallel num_threads(team(threads, problem.outputs * problem.features, WORTH_A_TEAM))
    stream(problem, inputs, omp_get_thread_num(), omp_get_num_threads());
}

template <class T, int BITS> void multiply_many(const Problem<T, BITS> &problem, Inputs<T> x, int64_t threads) {
    for (int64_t n = 0; n < problem.rows; n += PANEL_ROWS) {
        const int64_t rows = std::min<int64_t>(PANEL_ROWS, problem.rows - n);
        const Panel<T> panel(x.at(n, 0), x.stride, rows, problem.features, use_tiles<T>());
#pragma omp parallel num_threads(team(threads, problem.outputs * problem.features, WORTH_A_TEAM))
        {
            const int thread = omp_get_thread_num(), team_size = omp_get_num_threads();
            panel.pack(thread, team_size);
#pragma omp barrier
            multiply_panel(LutSource<T, BITS>(problem), panel, problem.share(thread, team_size),
                           problem.share(thread + 1, team_size), problem.out + n * problem.out_stride,
                           problem.out_stride);
        }
    }
}

}  // namespace

#define LUT_GEMV(NAME, T, BITS)                                                                                       \
    extern "C" void NAME(const T *x, int64_t x_stride, const uint16_t *packed, const T *tables,                      \
                         const int32_t *starts, const int32_t *columns, const T *values, const T *bias, T *out,      \
                         int64_t out_stride, int64_t rows, int64_t features, int64_t outputs, int64_t threads) {     \
        const Problem<T, BITS> problem{packed, tables, {starts, columns, values}, bias,                              \
                                       out, out_stride, rows, features, outputs};                                    \
        if (rows <= stream_limit<T>()) multiply_few(problem, {x, x_stride}, threads);                                \
        else multiply_many(problem, {x, x_stride}, threads);                                                         \
    }

LUT_GEMV(lut3_f32, float, 3)
LUT_GEMV(lut4_f32, float, 4)
LUT_GEMV(lut3_bf16, bf16, 3)
LUT_GEMV(lut4_bf16, bf16, 4)
