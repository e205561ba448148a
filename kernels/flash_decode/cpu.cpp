// Split-KV attention over token spans, over a team of threads.
#include "flash_decode/decoder.h"

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements of K and V

template <class T> void decode(const Problem<T> &problem, int64_t threads) {
    const int64_t team_size = team(threads, problem.elements(), WORTH_A_TEAM);
    Decoder<T> decoder(problem, team_size);
    if (decoder.shares()) {
#pragma omp parallel for schedule(static) num_threads(team_size)
        for (int64_t thread = 0; thread < team_size; ++thread) decoder.work_shared(problem, thread);
    }
#pragma omp parallel for schedule(static) num_threads(team_size)
    for (int64_t thread = 0; thread < team_size; ++thread) decoder.work(problem, thread);
    decoder.finish(problem);
}

}  // namespace

#define FLASH_DECODE(NAME, T)                                                                                         \
    extern "C" void NAME(const T *q, int64_t q_outer, int64_t q_inner, const T *keys, int64_t key_outer,             \
                         int64_t key_inner, const T *values, int64_t value_outer, int64_t value_inner,               \
                         const Span *spans, int64_t selections, int64_t span_count, const int32_t *cache_rows,       \
                         const float *cos, const float *sin, float scale, float softcap, T *out, float *lse,         \
                         int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t threads) {              \
        const Problem<T> problem{{q, q_outer, q_inner}, {keys, key_outer, key_inner},                                \
                                 {values, value_outer, value_inner}, spans, selections, span_count, cache_rows,      \
                                 cos, sin, scale, softcap, out, lse, rows, heads, kv_heads, dim};                    \
        decode(problem, threads);                                                                                     \
    }

FLASH_DECODE(flash_decode_f32, float)
FLASH_DECODE(flash_decode_bf16, bf16)
