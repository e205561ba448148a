// The product of several x rows with a block of weight rows in the matrix unit (AMX). The weights are loaded as they lie
// in memory; x is packed once.
#pragma once

#include "amx.h"

#include <algorithm>
#include <vector>

constexpr int BLOCK = 16;     // outputs per block: one store of a vector
constexpr int MAX_ROWS = 16;  // x rows served by one pass over the weights of a block

// Without a matrix unit, or for what it does not take.
template <class T> struct MatrixProduct {
    MatrixProduct(const T *, int64_t, int64_t, int64_t) {}
    bool serves(int) const { return false; }
    void multiply(int64_t, const T *, float *) {}
};

#ifdef SIMD_AMX
template <> class MatrixProduct<bf16> {
    static constexpr int FEW_ROWS = 2;  // up to which the vector units keep up with the memory

  public:
    MatrixProduct(const bf16 *x, int64_t x_stride, int64_t rows, int64_t features)
        : on(rows > FEW_ROWS && features % AMX_DEPTH == 0 && has_matrix_unit()), features(features),
          width(std::min<int64_t>(rows, MAX_ROWS)), unit(on, shapes(width)) {
        if (on) pack(x, x_stride, rows);
    }

    bool serves(int count) const { return on && count == BLOCK; }

    // products[n][o] for the x rows from `first` on, a multiple of MAX_ROWS, and BLOCK weight rows.
    void multiply(int64_t first, const bf16 *weight, float *products) {
        const float *x = packed.data() + first * features / 2;
        const bf16 *ahead = weight + BLOCK * features;
        asm volatile("" ::: "memory");  // the compiler does not know that tile loads read memory
        _tile_zero(0);
        _tile_zero(1);
        int64_t i = 0;
        for (; i + 2 * AMX_DEPTH <= features; i += 2 * AMX_DEPTH) {
            step<0>(weight, x, ahead, i);
            step<1>(weight, x, ahead, i + AMX_DEPTH);
        }
        if (i < features) step<0>(weight, x, ahead, i);
        alignas(64) float sums[2][BLOCK * LANES] = {};
        _tile_stored(0, sums[0], sizeof(f32x16));
        _tile_stored(1, sums[1], sizeof(f32x16));
        asm volatile("" ::: "memory");
        u32x16 square[LANES];
        for (int o = 0; o < BLOCK; ++o) square[o] = (u32x16)(load16(sums[0] + o * LANES) + load16(sums[1] + o * LANES));
        transpose16(square);
        for (int n = 0; n < MAX_ROWS; ++n) store16(products + n * BLOCK, (f32x16)square[n]);
    }

  private:
    // Registers 0 and 1: sums [outputs][rows], two chains; 2: weights; 3: x.
    static TileShapes shapes(int64_t width) {
        TileShapes shapes;
        for (int tile : {0, 1, 3}) shapes.set(tile, AMX_SIDE, width * sizeof(float));
        shapes.set(2, AMX_SIDE, AMX_DEPTH * sizeof(bf16));
        return shapes;
    }

    // Sixteen rows are more streams than the hardware follows: the next block is asked for in the order of addresses.
    template <int CHAIN> void step(const bf16 *weight, const float *x, const bf16 *ahead, int64_t i) const {
        for (int line = 0; line < BLOCK; ++line) __builtin_prefetch(ahead + i * BLOCK + line * AMX_DEPTH, 0, 2);
        _tile_loadd(2, weight + i, features * sizeof(bf16));
        _tile_loadd(3, x + i / 2 * width, width * sizeof(float));
        if (CHAIN == 0) _tile_dpbf16ps(0, 2, 3);
        else _tile_dpbf16ps(1, 2, 3);
    }

    // x as [16 rows][features / 2][width]: the pair of inputs of each of 16 rows, or of all if they are fewer.
    void pack(const bf16 *x, int64_t stride, int64_t rows) {
        packed.resize((rows + MAX_ROWS - 1) / MAX_ROWS * (MAX_ROWS * features / 2));
        for (int64_t first = 0; first < rows; first += MAX_ROWS)
            for (int64_t i = 0; i < features; i += AMX_DEPTH) {
                u32x16 square[LANES] = {};
                for (int64_t n = first; n < std::min(first + MAX_ROWS, rows); ++n)
                    std::memcpy(&square[n - first], x + n * stride + i, sizeof square[0]);
                transpose16(square);
                float *to = packed.data() + first * features / 2 + i / 2 * width;
                for (int pair = 0; pair < LANES; ++pair) store_first(to + pair * width, (f32x16)square[pair], (int)width);
            }
    }

    const bool on;
    const int64_t features, width;
    const MatrixUnit unit;
    inline static thread_local std::vector<float> packed;
};
#endif
