// Rotary embedding in the half-split layout, in place, and the append of keys and values to a cache.
#include "simd.h"

#include <algorithm>
#include <cstring>
#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements

// [outer][inner][D] with strides in elements.
template <class T> struct View {
    T *data;
    int64_t outer, inner;
    T *at(int64_t n, int64_t h) const { return data + n * outer + h * inner; }
};

template <class T> inline void rotate(T *x, const float *cos, const float *sin, int64_t half) {
    T *first = x, *second = x + half;
    for (int64_t i = 0; i < half; i += LANES) {
        const int count = (int)std::min<int64_t>(LANES, half - i);
        const f32x16 a = load_first(first + i, count), b = load_first(second + i, count);
        const f32x16 c = load_first(cos + i, count), s = load_first(sin + i, count);
        store_first(first + i, a * c - b * s, count);
        store_first(second + i, b * c + a * s, count);
    }
}

template <class T>
void rope(View<T> q, View<T> k, View<T> v, const float *cos, const float *sin, const int32_t *positions,
          View<T> key_cache, View<T> value_cache, const int32_t *rows, const int32_t *slots, int64_t tokens,
          int64_t heads, int64_t kv_heads, int64_t dim, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, tokens *(heads + kv_heads) * dim, WORTH_A_TEAM))
    for (int64_t n = 0; n < tokens; ++n) {
        if (cos) {
            const int64_t row = positions[n] * (dim / 2);
            for (int64_t h = 0; h < heads; ++h) rotate(q.at(n, h), cos + row, sin + row, dim / 2);
            for (int64_t g = 0; g < kv_heads; ++g) rotate(k.at(n, g), cos + row, sin + row, dim / 2);
        }
        if (key_cache.data)
            for (int64_t g = 0; g < kv_heads; ++g) {
                std::memcpy(key_cache.at(rows[n], g) + slots[n] * dim, k.at(n, g), dim * sizeof(T));
                std::memcpy(value_cache.at(rows[n], g) + slots[n] * dim, v.at(n, g), dim * sizeof(T));
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
