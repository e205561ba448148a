// The product of many x rows with a block of weight rows in the vector units, an x row to a lane: x is packed once, the
// weights are taken as they lie in memory, an element (or a pair of bf16) at a time for all rows. Nothing is to be
// summed across lanes.
#pragma once

#include "gemv/matrix.h"

// Where there are too few registers.
template <class T> struct LaneProduct {
    LaneProduct(const T *, int64_t, int64_t, int64_t) {}
    bool serves(int, int64_t) const { return false; }
    void multiply(int64_t, const T *, float *) {}
};

#ifdef SIMD_AVX512
static inline f32x16 add_product(f32x16 sum, const float *weight, const f32x16 &x) { return sum + *weight * x; }
static inline u32x16 sixteen(const float *x) { return (u32x16)load16(x); }
#ifdef SIMD_AVX512_BF16
static inline f32x16 add_product(f32x16 sum, const bf16 *weights, const f32x16 &x) {
    int32_t pair;
    std::memcpy(&pair, weights, sizeof pair);
    return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)x);
}
static inline u32x16 sixteen(const bf16 *x) {
    u32x16 pairs;
    std::memcpy(&pairs, x, sizeof pairs);
    return pairs;
}
#endif

// PAIR elements of x, of 32 bits together, are a lane.
template <class T, int PAIR> class Lanes {
    static constexpr int VECTOR = LANES * PAIR;
    static constexpr int LEAST_ROWS = 12;  // of x, from which on it beats products along the features
    static constexpr int TOGETHER = 8;     // weight rows: as many as there are registers for their addresses

  public:
    Lanes(const T *x, int64_t x_stride, int64_t rows, int64_t features)
        : on(rows >= LEAST_ROWS && features % VECTOR == 0), steps(features / PAIR) {
        if (on) pack(x, x_stride, rows);
    }

    bool serves(int count, int64_t rows) const { return on && count == BLOCK && rows >= LEAST_ROWS; }

    // products[n][o] for the x rows from `first` on, a multiple of MAX_ROWS, and BLOCK weight rows.
    void multiply(int64_t first, const T *weight, float *products) const {
        const f32x16 *x = packed.data() + first / LANES * steps;
        const int64_t features = steps * PAIR;
        const T *ahead = weight + BLOCK * features;
        f32x16 sums[BLOCK];
        for (int o = 0; o < BLOCK; o += TOGETHER) add_up(x, weight + o * features, ahead + o * features, &sums[o]);
        u32x16 square[LANES];
        for (int o = 0; o < BLOCK; ++o) square[o] = (u32x16)sums[o];
        transpose16(square);
        for (int n = 0; n < MAX_ROWS; ++n) store16(products + n * BLOCK, (f32x16)square[n]);
    }

  private:
    // Eight rows are more streams than the hardware follows: the next block is asked for in the order of addresses.
    void add_up(const f32x16 *x, const T *weight, const T *ahead, f32x16 *to) const {
        const T *rows[TOGETHER];
        for (int o = 0; o < TOGETHER; ++o) rows[o] = weight + o * steps * PAIR;
        f32x16 sums[TOGETHER] = {};
        for (int64_t i = 0; i < steps; i += LANES) {
            for (int line = 0; line < TOGETHER; ++line)
                __builtin_prefetch(ahead + (i * TOGETHER + line * LANES) * PAIR, 0, 2);
#pragma GCC unroll 1
            for (int64_t j = i; j < i + LANES; ++j)
#pragma GCC unroll 8
                for (int o = 0; o < TOGETHER; ++o) sums[o] = add_product(sums[o], rows[o] + j * PAIR, x[j]);
        }
        std::copy_n(sums, TOGETHER, to);
    }

    // x as [rows / 16][features / PAIR][16 rows][PAIR], zeros for the rows that are missing.
    void pack(const T *x, int64_t stride, int64_t rows) {
        packed.resize((rows + LANES - 1) / LANES * steps);
        for (int64_t first = 0; first < rows; first += LANES)
            for (int64_t i = 0; i < steps; i += LANES) {
                u32x16 square[LANES] = {};
                for (int64_t n = first; n < std::min(first + LANES, rows); ++n)
                    square[n - first] = sixteen(x + n * stride + i * PAIR);
                transpose16(square);
                std::memcpy(&packed[first / LANES * steps + i], square, sizeof square);
            }
    }

    const bool on;
    const int64_t steps;
    inline static thread_local std::vector<f32x16> packed;
};

template <> struct LaneProduct<float> : Lanes<float, 1> {
    using Lanes::Lanes;
};
#ifdef SIMD_AVX512_BF16
template <> struct LaneProduct<bf16> : Lanes<bf16, 2> {
    using Lanes::Lanes;
};
#endif
#endif
