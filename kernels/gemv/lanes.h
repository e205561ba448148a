// The product of many x rows with a block of weight rows in the vector units, an x row to a lane: x is packed once, the
// weights are taken as they lie in memory, an element (or a pair of bf16) at a time for all rows. Nothing is to be
// summed across lanes.
#pragma once

#include "gemv/matrix.h"
#include "packed.h"

template <class T> class LaneProduct {
    using E = typename Packed<T>::Element;
    static constexpr int PAIR = Packed<T>::PAIR;
    static constexpr int LEAST_ROWS = 12;  // of x, from which on it beats products along the features
    static constexpr int TOGETHER = 8;     // weight rows: as many as there are registers for their addresses
#ifdef SIMD_AVX512
    static constexpr bool SERVES = std::is_same_v<E, T>;
#else
    static constexpr bool SERVES = false;  // too few registers for the sums
#endif

  public:
    LaneProduct(const T *x, int64_t x_stride, int64_t rows, int64_t features)
        : on(SERVES && rows >= LEAST_ROWS && features % (LANES * PAIR) == 0), steps(features / PAIR) {
        if (on) pack(x, x_stride, rows);
    }

    bool serves(int count, int64_t rows) const { return on && count == BLOCK && rows >= LEAST_ROWS; }

    // products[n][o] for the x rows from `first` on, a multiple of MAX_ROWS, and BLOCK weight rows.
    void multiply(int64_t first, const T *weight, float *products) const {
        const f32x16 *x = &packed[first / LANES * steps];
        const int64_t features = steps * PAIR;
        const T *ahead = weight + BLOCK * features;
        f32x16 sums[BLOCK];
        for (int64_t o = 0; o < BLOCK; o += TOGETHER)
            if constexpr (SERVES) add_up(x, weight + o * features, ahead + o * features, &sums[o]);
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
                for (int o = 0; o < TOGETHER; ++o)
                    sums[o] = multiply_add(rows[o] + j * PAIR, (const E *)&x[j], sums[o]);
        }
        std::copy_n(sums, TOGETHER, to);
    }

    // x as [rows / 16][features / PAIR][16 rows][PAIR], zeros for the rows that are missing.
    void pack(const T *x, int64_t stride, int64_t rows) {
        packed.resize((rows + LANES - 1) / LANES * steps);
        f32x16 *to = packed.data();
        for (int64_t first = 0; first < rows; first += LANES)
            for (int64_t i = 0; i < steps; i += LANES, to += LANES) {
                u32x16 square[LANES] = {};
                for (int64_t n = first; n < std::min(first + LANES, rows); ++n)
                    square[n - first] = lanes(x + n * stride + i * PAIR, LANES * PAIR, (E *)nullptr);
                transpose16(square);
                std::memcpy(to, square, sizeof square);
            }
    }

    const bool on;
    const int64_t steps;
    inline static thread_local std::vector<f32x16> packed;
};
