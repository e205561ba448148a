// The steps of the online softmax for 16 query rows, with logits in units of log2.
#pragma once

#include "simd.h"

#include <limits>

// The largest element of each of 16 vectors.
static inline f32x16 maxima16(const f32x16 *x) {
#ifdef SIMD_AVX512
    const auto larger = [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); };
    const auto pairs = [&](const f32x16 *v) {
        return _mm512_castps_pd(larger(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1])));
    };
    __m512 quads[4];
    for (int i = 0; i < 4; ++i) {
        const __m512d a = pairs(x + 4 * i), b = pairs(x + 4 * i + 2);
        quads[i] = larger(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const auto fold = [&](__m512 a, __m512 b) {
        return larger(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    return fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]));
#else
    f32x16 largest;
    for (int i = 0; i < LANES; ++i) largest[i] = max16(x[i]);
    return largest;
#endif
}

// The second if one is NaN, so that a NaN among the logits shows in the output.
static inline f32x16 larger16(f32x16 a, f32x16 b) { return a > b ? a : b; }

// 2^x for x <= 64 within 1e-4, which is nothing beside the rounding to bf16; exactly 0 below -127.
static inline f32x16 coarse_exp2_16(f32x16 x) {
    constexpr float ROUNDS = 12582912.f;  // 1.5 * 2^23: a number so large that adding it rounds to an integer
    x = larger16(broadcast(-127.f), x);
    const f32x16 shifted = x + ROUNDS, r = x - (shifted - ROUNDS);
    f32x16 y = broadcast(.05500893f);  // minimax coefficients on [-1/2, 1/2]
    y = y * r + .24221096f;
    y = y * r + .69328293f;
    y = y * r + 1.f;
    return (f32x16)((u32x16)y + ((u32x16)shifted << 23));
}

static inline f32x16 weight(f32x16 x, float *) { return exp2_16(x); }
static inline f32x16 weight(f32x16 x, bf16 *) { return coarse_exp2_16(x); }

static inline void store_weights(float *p, f32x16 a, f32x16 b) { store32(p, a, b); }
#ifdef SIMD_AVX512_BF16
static inline void store_weights(bf16 *p, f32x16 a, f32x16 b) {
    const auto both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    std::memcpy(p, &both, sizeof both);
}
#endif

// A largest logit before any was seen: finite, so that differences are.
constexpr float LOWEST = -1e30f;
// By how much (log2) the largest logit may have risen before the sums are expressed relative to the new one: weights up
// to 2^8 cost no accuracy, and most updates then leave the sums alone.
constexpr float SLACK = 8.f;
