// Choosing lanes of a vector of 16: masks, masked values, and moving the chosen lanes together.
#pragma once

#include "simd.h"

constexpr i32x16 LANE_NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#ifdef SIMD_AVX512
typedef __mmask16 Mask;

static inline Mask greater(f32x16 x, f32x16 y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
static inline Mask at_least(f32x16 x, f32x16 y) { return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ); }
static inline Mask equal(f32x16 x, f32x16 y) { return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ); }
static inline Mask first_lanes(int64_t count) { return count >= LANES ? 0xffff : (1 << count) - 1; }
static inline Mask lane_mask(int lane) { return 1 << lane; }
static inline bool none(Mask mask) { return mask == 0; }
static inline bool has(Mask mask, int lane) { return mask >> lane & 1; }
static inline int lanes_of(Mask mask) { return __builtin_popcount(mask); }
static inline f32x16 choose(Mask mask, f32x16 x, f32x16 other) { return _mm512_mask_mov_ps(other, mask, x); }

// Writes 16 elements, of which the first lanes_of(mask) count. Through a register: AMD's store of chosen lanes is slow.
static inline void pack(float *p, f32x16 x, Mask mask) { store16(p, _mm512_maskz_compress_ps(mask, x)); }
static inline void pack(int32_t *p, i32x16 x, Mask mask) {
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(mask, (__m512i)x));
}
#else
typedef i32x16 Mask;

static inline Mask greater(f32x16 x, f32x16 y) { return x > y; }
static inline Mask at_least(f32x16 x, f32x16 y) { return x >= y; }
static inline Mask equal(f32x16 x, f32x16 y) { return x == y; }
static inline Mask first_lanes(int64_t count) { return LANE_NUMBERS < (int32_t)(count < LANES ? count : LANES); }
static inline Mask lane_mask(int lane) { return LANE_NUMBERS == lane; }
static inline bool none(Mask mask) { return !any(mask); }
static inline bool has(Mask mask, int lane) { return mask[lane]; }
static inline int lanes_of(Mask mask) {
    int count = 0;
    for (int i = 0; i < LANES; ++i) count -= mask[i];
    return count;
}
static inline f32x16 choose(Mask mask, f32x16 x, f32x16 other) { return mask ? x : other; }

template <class E, class V> static inline void pack(E *p, V x, Mask mask) {
    for (int i = 0; i < LANES; ++i) {
        *p = x[i];
        p -= mask[i];
    }
}
#endif

static inline i32x16 load16(const int32_t *p) {
    i32x16 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

static inline f32x16 larger(f32x16 x, f32x16 y) { return x > y ? x : y; }  // y where x is NaN

// The first `count` <= 16 elements, and -inf; memory behind them is not touched.
template <class T> static inline f32x16 load_logits(const T *p, int64_t count) {
    if (count >= LANES) return load16(p);
    return choose(first_lanes(count), load_first(p, (int)count), broadcast(NEGATIVE_INFINITY));
}

// Calls work(i, count) for the vectors of `items` elements.
template <class Work> static inline void for_vectors(int64_t items, Work work) {
    int64_t i = 0;
    for (; i + LANES <= items; i += LANES) work(i, (int64_t)LANES);
    if (i < items) work(i, items - i);
}
