// Linear layers with int4 weights, over a team of threads.
#include "w4_gemm/multiply.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // weights; below, waking the team takes longer than the work

// The outputs of a thread, in whole blocks.
template <class T> Share share_of(const Problem<T> &problem, int64_t thread, int64_t threads) {
    Share share((problem.outputs + BLOCK_ROWS - 1) / BLOCK_ROWS, thread, threads);
    share.begin *= BLOCK_ROWS;
    share.end = std::min(share.end * BLOCK_ROWS, problem.outputs);
    return share;
}

template <class T> void multiply_few(const Problem<T> &problem, Inputs<T> x, int64_t threads) {
    const Inputs<Operand<T>> ordered = streamed(x, problem.rows, problem.features);
#pragma omp parallel num_threads(team(threads, problem.outputs * problem.features, WORTH_A_TEAM))
    {
        const Share share = share_of(problem, omp_get_thread_num(), omp_get_num_threads());
        stream(problem, x, ordered, share.begin, share.end);
    }
}

template <class T> void multiply_many(const Problem<T> &problem, Inputs<T> x, int64_t threads) {
    for (int64_t n = 0; n < problem.rows; n += PANEL_ROWS) {
        const int64_t rows = std::min<int64_t>(PANEL_ROWS, problem.rows - n);
        const Panel<T> panel(x.at(n, 0), x.stride, rows, problem.features, use_tiles<T>());
#pragma omp parallel num_threads(team(threads, problem.outputs * problem.features, WORTH_A_TEAM))
        {
            panel.pack(omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
            const Share share = share_of(problem, omp_get_thread_num(), omp_get_num_threads());
            multiply_panel(Int4Source<T>(problem), panel, share.begin, share.end,
                           problem.out + n * problem.out_stride, problem.out_stride);
        }
    }
}

}  // namespace

#define W4_GEMM(NAME, T)                                                                                              \
    extern "C" void NAME(const T *x, int64_t x_stride, const uint16_t *packed, const _Float16 *scales, T *out,       \
                         int64_t out_stride, int64_t rows, int64_t features, int64_t outputs, int64_t threads) {     \
        const Problem<T> problem{packed, scales, out, out_stride, rows, features, outputs};                          \
        if (rows <= stream_limit<T>()) multiply_few(problem, {x, x_stride}, threads);                                \
        else multiply_many(problem, {x, x_stride}, threads);                                                         \
    }

W4_GEMM(w4_gemm_f32, float)
W4_GEMM(w4_gemm_bf16, bf16)
