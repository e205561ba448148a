// Reductions over token segments, over a team of threads.
#include "segment_reduce/columns.h"
#include "segment_reduce/mass.h"
#include "segment_reduce/probe.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;           // elements read
constexpr int64_t WORTH_A_TEAM_PRODUCTS = 1 << 20;  // of a query element and a key element

enum Kind { SUM, MEAN, SQRT };

template <class T> struct Segments {
    const T *x;  // [batches][groups][tokens][dim]
    int64_t batch_stride, group_stride, token_stride, batches, groups;
    const int32_t *offsets;  // [count + 1]
    int64_t count, dim, kind;
    float *out;  // [batches][groups][count][dim]

    // Segments lie on a line, each as long as its tokens and one unit for its own overhead; threads own equal parts.
    int64_t place(int64_t i) const { return offsets[i] - offsets[0] + i; }
    int64_t first_at(int64_t where) const {
        int64_t low = 0, high = count;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (place(middle) < where) low = middle + 1;
            else high = middle;
        }
        return low;
    }
    void run(int64_t thread, int64_t threads) const {
        const int64_t length = place(count);
        const Share share(batches * groups * length, thread, threads);
        for (int64_t outer = share.begin / length; outer * length < share.end; ++outer) {
            const T *tokens = x + outer / groups * batch_stride + outer % groups * group_stride;
            const int64_t last = first_at(std::min(share.end - outer * length, length));
            for (int64_t i = first_at(std::max<int64_t>(share.begin - outer * length, 0)); i < last; ++i)
                reduce(tokens + offsets[i] * token_stride, offsets[i + 1] - offsets[i], out + (outer * count + i) * dim);
        }
    }
    void reduce(const T *rows, int64_t length, float *sums) const {
        const float factor = length <= 0 ? 0.f
                             : kind == SUM ? 1.f
                                           : 1.f / (kind == MEAN ? (float)length : std::sqrt((float)length));
        for_panels(0, dim, [&](auto panel) {
            f32x16 total[panel.VECTORS];
            sum_rows(length, total, [&](int64_t t, int v) { return panel.load(rows + t * token_stride, v); });
            for (int v = 0; v < panel.VECTORS; ++v) panel.store(sums, v, total[v] * factor);
        });
    }
};

template <class T> void segment_sum(const Segments<T> &segments, int64_t threads) {
    if (segments.count == 0) return;
    const int64_t elements = segments.batches * segments.groups * segments.place(segments.count) * segments.dim;
#pragma omp parallel num_threads(team(threads, elements, WORTH_A_TEAM))
    segments.run(omp_get_thread_num(), omp_get_num_threads());
}

template <class T>
void probe_pool(const T *x, int64_t stride, int64_t rows, int64_t columns, const float *mean, const float *variance,
                float *out, int64_t threads) {
    const int size = team(threads, rows * columns, WORTH_A_TEAM);
    ProbePool<T> pool(x, stride, rows, columns, mean, variance, size);
#pragma omp parallel num_threads(size)
    {
        const int thread = omp_get_thread_num();
        pool.statistics(thread, size);
#pragma omp barrier
#pragma omp single
        pool.invert();
        pool.weigh(thread, size);
    }
    pool.finish(out, size);
}

template <class T> void segment_mass(const MassProblem<T> &problem, int64_t threads) {
    const int64_t products = problem.rows * problem.heads * problem.tokens * problem.dim;
#pragma omp parallel num_threads(team(threads, products, WORTH_A_TEAM_PRODUCTS))
    {
        MassWorker<T> worker(problem);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < problem.kv_heads * problem.blocks(); ++item)
            worker.run(item / problem.blocks(), item % problem.blocks());
    }
}

}  // namespace

#define SEGMENT_SUM(NAME, T)                                                                                          \
    extern "C" void NAME(const T *x, int64_t batch_stride, int64_t group_stride, int64_t token_stride,               \
                         int64_t batches, int64_t groups, const int32_t *offsets, int64_t count, int64_t dim,        \
                         int64_t kind, float *out, int64_t threads) {                                                \
        segment_sum(Segments<T>{x, batch_stride, group_stride, token_stride, batches, groups, offsets, count, dim,   \
                                kind, out},                                                                          \
                    threads);                                                                                        \
    }

SEGMENT_SUM(segment_sum_f32, float)
SEGMENT_SUM(segment_sum_bf16, bf16)

#define PROBE_POOL(NAME, T)                                                                                           \
    extern "C" void NAME(const T *x, int64_t stride, int64_t rows, int64_t columns, const float *mean,               \
                         const float *variance, float *out, int64_t threads) {                                       \
        probe_pool(x, stride, rows, columns, mean, variance, out, threads);                                          \
    }

PROBE_POOL(probe_pool_f32, float)
PROBE_POOL(probe_pool_bf16, bf16)

#define SEGMENT_MASS(NAME, T)                                                                                         \
    extern "C" void NAME(const T *q, int64_t q_outer, int64_t q_inner, const T *keys, int64_t key_head,              \
                         int64_t key_token, const int32_t *positions, const int32_t *offsets, float scale,           \
                         float softcap, float *out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t tokens,   \
                         int64_t dim, int64_t segments, int64_t threads) {                                                        \
        segment_mass(MassProblem<T>{{q, q_outer, q_inner}, keys, key_head, key_token, positions, offsets, scale,     \
                                    softcap, out, rows, heads, kv_heads, tokens, dim, segments},                              \
                     threads);                                                                                       \
    }

SEGMENT_MASS(segment_mass_f32, float)
SEGMENT_MASS(segment_mass_bf16, bf16)
