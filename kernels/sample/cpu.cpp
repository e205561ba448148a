// Softmax statistics of rows of logits and tokens drawn from them, over a team of threads.
#include "sample/rows.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // logits

// As many whole rows for every thread as there are; the rest, fewer than threads, is scanned by all of them together.
template <class Work> void over_rows(const Work &work, int64_t threads) {
    const int64_t rows = work.logits.rows, count = Row<float>::count_blocks(work.logits.vocabulary);
    const int size = team(threads, rows * work.logits.vocabulary, WORTH_A_TEAM);
    std::vector<Block> memory(size * count);
#pragma omp parallel num_threads(size)
    {
        static thread_local Candidates candidates;
        const int thread = omp_get_thread_num();
        Block *own = memory.data() + thread * count;
        const int64_t whole = rows / size * size;
        const Share share(whole, thread, size);
        for (int64_t n = share.begin; n < share.end; ++n) {
            for (int64_t b = 0; b < count; ++b) work.scan(n, b, own);
            work.finish(n, own, candidates);
        }
        if (whole < rows) {
#pragma omp barrier
            const Share part((rows - whole) * count, thread, size);
            for (int64_t i = part.begin; i < part.end; ++i)
                work.scan(whole + i / count, i % count, memory.data() + i / count * count);
#pragma omp barrier
            if (whole + thread < rows) work.finish(whole + thread, own, candidates);
        }
    }
}

}  // namespace

#define STATISTICS(NAME, T)                                                                                           \
    extern "C" void NAME(const T *logits, int64_t stride, int64_t rows, int64_t vocabulary, float *logsumexp,        \
                         float *entropy, int32_t *top, float *top_logits, int64_t k, int64_t threads) {              \
        over_rows(Statistics<T>{{logits, stride, rows, vocabulary}, logsumexp, entropy, top, top_logits, k},         \
                  threads);                                                                                          \
    }

STATISTICS(statistics_f32, float)
STATISTICS(statistics_bf16, bf16)

#define SAMPLE(NAME, T)                                                                                               \
    extern "C" void NAME(const T *logits, int64_t stride, int64_t rows, int64_t vocabulary, const float *uniforms,   \
                         const float *temperatures, float temperature, const int32_t *top_ks, int64_t top_k,         \
                         const float *top_ps, float top_p, int32_t *out, float *logprobs, int64_t threads) {         \
        over_rows(Sampling<T>{{logits, stride, rows, vocabulary}, uniforms, {temperatures, temperature},             \
                              {top_ks, (int32_t)top_k}, {top_ps, top_p}, out, logprobs},                             \
                  threads);                                                                                          \
    }

SAMPLE(sample_f32, float)
SAMPLE(sample_bf16, bf16)
