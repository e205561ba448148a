// Partial attention results merged through their log-sum-exp, over a team of threads.
#include "lse_merge/merge.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // elements of all parts

template <class T, class O>
void lse_merge(const View<const T> *outs, const View<const float> *lses, int64_t parts, View<O> out, float *lse,
               int64_t rows, int64_t heads, int64_t dim, int64_t threads) {
#pragma omp parallel num_threads(team(threads, parts * rows * heads * dim, WORTH_A_TEAM))
    {
        const Share share(rows * heads, omp_get_thread_num(), omp_get_num_threads());
        Merger<T, O> merger(outs, lses, parts, dim);
        for (int64_t item = share.begin; item < share.end; ++item) {
            const int64_t n = item / heads, h = item % heads;
            lse[item] = merger.merge(n, h, out.at(n, h));
        }
    }
}

}  // namespace

// The table holds the views of the parts, then those of their log-sum-exps.
#define LSE_MERGE(NAME, T, O)                                                                                         \
    extern "C" void NAME(const void *table, int64_t parts, O *out, int64_t out_outer, int64_t out_inner, float *lse,  \
                         int64_t rows, int64_t heads, int64_t dim, int64_t threads) {                                 \
        const auto *outs = (const View<const T> *)table;                                                              \
        const auto *lses = (const View<const float> *)(outs + parts);                                                 \
        lse_merge<T, O>(outs, lses, parts, {out, out_outer, out_inner}, lse, rows, heads, dim, threads);              \
    }

LSE_MERGE(lse_merge_f32_f32, float, float)
LSE_MERGE(lse_merge_bf16_bf16, bf16, bf16)
LSE_MERGE(lse_merge_f32_bf16, float, bf16)
