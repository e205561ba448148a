// Rows of elements as products want them: 16 lanes of 32 bits, each a float or a pair of bf16, for the bf16 instructions
// of AVX-512 and of AMX. Where there are none, everything is widened to fp32 when it is packed.
#pragma once

#include "simd.h"

template <class T> struct Packed {
    using Element = float;
    static constexpr int PAIR = 1, DEPTH = 1;
};

static inline f32x16 multiply_add(const float *a, const float *b, f32x16 sum) { return sum + *a * load16(b); }
static inline u32x16 lanes(const float *row, int64_t, float *) { return (u32x16)load16(row); }
static inline u32x16 lanes(const bf16 *row, int64_t, float *) { return (u32x16)load16(row); }

#ifdef SIMD_AVX512_BF16
template <> struct Packed<bf16> {
    using Element = bf16;
    static constexpr int PAIR = 2, DEPTH = 32;  // the depth is padded to a multiple of DEPTH, as AMX wants it
};

static inline f32x16 multiply_add(const bf16 *a, const bf16 *b, f32x16 sum) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(b));
}
static inline u32x16 lanes(const bf16 *row, int64_t count, bf16 *) {
    return (u32x16)_mm512_maskz_loadu_epi16(count >= 32 ? ~0u : 0xffffu, row);
}
#endif
