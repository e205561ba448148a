// Rotary embedding in the half-split layout, in place, and the append of keys and values to a cache.
#include "rope/rotate.h"
#include "view.h"

#include <cstdlib>
#include <cstring>
#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements

template <class T>
void rope(View<T> q, View<T> k, View<T> v, const float *cos, const float *sin, const int32_t *positions,
          View<T> key_cache, View<T> value_cache, const int32_t *rows, const int32_t *slots, int64_t tokens,
          int64_t heads, int64_t kv_heads, int64_t dim, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, tokens *(heads + kv_heads) * dim, WORTH_A_TEAM))
    for (int64_t n = 0; n < tokens; ++n) {
        if (cos) {
            const int64_t row = positions[n] * (dim / 2);
            for (int64_t h = 0; h < heads; ++h) rotate(q.at(n, h), cos + row, sin + row, dim / 2, q.at(n, h));
            for (int64_t g = 0; g < kv_heads; ++g) rotate(k.at(n, g), cos + row, sin + row, dim / 2, k.at(n, g));
        }
        if (key_cache.data)
            for (int64_t g = 0; g < kv_heads; ++g) {
                std::memcpy(key_cache.at(rows[n], g) + slots[n] * dim, k.at(n, g), dim * sizeof(T));
                std::memcpy(value_cache.at(rows[n], g) + slots[n] * dim, v.at(n, g), dim * sizeof(T));
            }
    }
}

// Keys that stand in a cache: token n is rotated on by deltas[n] positions, which may be negative.
template <class T>
void shift(View<T> cache, const float *cos, const float *sin, const int32_t *deltas, const int32_t *rows,
           const int32_t *slots, int64_t tokens, int64_t kv_heads, int64_t dim, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, tokens *kv_heads * dim, WORTH_A_TEAM))
    for (int64_t n = 0; n < tokens; ++n) {
        const int64_t angle = std::abs((int64_t)deltas[n]) * (dim / 2);
        for (int64_t g = 0; g < kv_heads; ++g) {
            T *key = cache.at(rows[n], g) + slots[n] * dim;
            rotate(key, cos + angle, sin + angle, dim / 2, key, deltas[n] < 0 ? -1.f : 1.f);
        }
    }
}

}  // namespace

#define ROPE(NAME, T)                                                                                                 \
    extern "C" void NAME(T *q, int64_t q_outer, int64_t q_inner, T *k, int64_t k_outer, int64_t k_inner, T *v,       \
                         int64_t v_outer, int64_t v_inner, const float *cos, const float *sin,                       \
                         const int32_t *positions, T *key_cache, int64_t key_outer, int64_t key_inner,               \
                         T *value_cache, int64_t value_outer, int64_t value_inner, const int32_t *rows,              \
                         const int32_t *slots, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,         \
                         int64_t threads) {                                                                           \
        rope<T>({q, q_outer, q_inner}, {k, k_outer, k_inner}, {v, v_outer, v_inner}, cos, sin, positions,            \
                {key_cache, key_outer, key_inner}, {value_cache, value_outer, value_inner}, rows, slots, tokens,     \
                heads, kv_heads, dim, threads);                                                                       \
    }

ROPE(rope_f32, float)
ROPE(rope_bf16, bf16)

#define SHIFT(NAME, T)                                                                                                \
    extern "C" void NAME(T *cache, int64_t outer, int64_t inner, const float *cos, const float *sin,                  \
                         const int32_t *deltas, const int32_t *rows, const int32_t *slots, int64_t tokens,            \
                         int64_t kv_heads, int64_t dim, int64_t threads) {                                            \
        shift<T>({cache, outer, inner}, cos, sin, deltas, rows, slots, tokens, kv_heads, dim, threads);               \
    }

SHIFT(shift_f32, float)
SHIFT(shift_bf16, bf16)
