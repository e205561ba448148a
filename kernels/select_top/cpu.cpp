// Chunk scores and the choice of the best, over a team of threads.
#include "gemv/multiply.h"
#include "select_top/choose.h"
#include "view.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // multiply-adds, or scores

template <class T> struct Problem {
    View<const T> q;  // [rows][heads][dim]
    const T *reps;    // [owners][..][dim]
    int64_t owner_stride, owners;
    const int32_t *last;
    int64_t first, chunks;
    int32_t *out;
    int64_t k, rows, heads, selections, dim;

    int64_t stop(int64_t row) const { return std::clamp<int64_t>(last[row], first, chunks); }
};

// Up to MAX_ROWS rows of one selection: scores [row][chunk] from `first` on, summed over its heads.
template <class T>
void score(const Problem<T> &p, int64_t row, int64_t rows, int64_t selection, int64_t stop, float *scores) {
    const int64_t width = stop - p.first;
    std::fill_n(scores, rows * width, 0.f);
    for (int64_t h = selection * p.heads / p.selections; h < (selection + 1) * p.heads / p.selections; ++h) {
        const T *reps = p.reps + h * p.owners / p.heads * p.owner_stride;
        typename Plain<T>::Multiplier multiplier({reps, p.dim}, p.q.at(row, h), p.q.outer, rows);
        for (int64_t c = p.first; c < stop; c += BLOCK) {
            float products[MAX_ROWS * BLOCK];
            const int count = (int)std::min<int64_t>(BLOCK, stop - c);
            multiplier(0, rows, c, count, products);
            for (int64_t n = 0; n < rows; ++n) {
                float *sums = scores + n * width + c - p.first;
                store_first(sums, load_first(sums, count) + load16(products + n * BLOCK), count);
            }
        }
    }
}

template <class T> void select(const Problem<T> &p, int64_t threads) {
    const int64_t tiles = (p.rows + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t work = p.rows * p.heads * std::max<int64_t>(0, p.chunks - p.first) * p.dim;
#pragma omp parallel num_threads(team(threads, work, WORTH_A_TEAM))
    {
        static thread_local std::vector<float> scores;
        static thread_local Chooser chooser;
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < tiles * p.selections; ++item) {
            const int64_t row = item / p.selections * MAX_ROWS, selection = item % p.selections;
            const int64_t rows = std::min<int64_t>(MAX_ROWS, p.rows - row);
            int64_t stop = p.first;
            for (int64_t n = row; n < row + rows; ++n) stop = std::max(stop, p.stop(n));
            scores.resize(rows * (stop - p.first));
            score(p, row, rows, selection, stop, scores.data());
            for (int64_t n = 0; n < rows; ++n)
                chooser.choose(scores.data() + n * (stop - p.first), p.stop(row + n) - p.first, (int32_t)p.first, p.k,
                               p.out + ((row + n) * p.selections + selection) * p.k);
        }
    }
}

}  // namespace

#define SELECT_TOP(NAME, T)                                                                                           \
    extern "C" void NAME(const T *q, int64_t q_outer, int64_t q_inner, const T *reps, int64_t owner_stride,          \
                         int64_t owners, const int32_t *last, int64_t first, int64_t chunks, int32_t *out,           \
                         int64_t k, int64_t rows, int64_t heads, int64_t selections, int64_t dim, int64_t threads) { \
        select(Problem<T>{{q, q_outer, q_inner}, reps, owner_stride, owners, last, first, chunks, out, k, rows,      \
                          heads, selections, dim},                                                                    \
               threads);                                                                                              \
    }

SELECT_TOP(select_top_f32, float)
SELECT_TOP(select_top_bf16, bf16)

extern "C" void top_f32(const float *scores, int64_t stride, int64_t rows, const int32_t *last, int64_t first,
                        int64_t chunks, int32_t *out, int64_t k, int64_t threads) {
#pragma omp parallel num_threads(team(threads, rows *chunks, WORTH_A_TEAM))
    {
        static thread_local Chooser chooser;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; ++n) {
            const int64_t stop = std::clamp<int64_t>(last ? last[n] : chunks, first, std::max(first, chunks));
            chooser.choose(scores + n * stride + first, stop - first, (int32_t)first, k, out + n * k);
        }
    }
}
