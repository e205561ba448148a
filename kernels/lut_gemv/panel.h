// Many rows of x against packed weights: a tile of weights is unpacked once, to the first-level cache, for all rows.
//
// Sixteen rows of x lie side by side in the lanes of a vector, so that a weight is a broadcast and nothing has to be
// summed across lanes.
#pragma once

#include "lut_gemv/codes.h"

#include <vector>

namespace lut {

constexpr int TILE_ROWS = 16;      // outputs of a tile
constexpr int REGISTER_SUMS = 16;  // vectors of sums of the register kernel; its inputs take the other registers
constexpr int MAX_VECTORS = 4;     // of x rows, in one pass over the weights
constexpr int DEPTH = 32;          // inputs are padded to a multiple of this: those of a tile register
constexpr int PANEL_ROWS = MAX_VECTORS * LANES;

template <class C> constexpr int PAIR = sizeof(float) / sizeof(C);  // inputs that share a 32-bit lane

// x [rows][features] as [vector of 16 rows][features / PAIR][width][PAIR], zeros where there is no row or no input.
// The width is 16, or less for a single vector that is to be read without its empty lanes.
template <class T> class Panel {
  public:
    using C = Operand<T>;

    // The scratch belongs to the calling thread, for its next panel to use again. No rows make an empty panel.
    Panel(const T *x, int64_t stride, int64_t rows, int64_t features, bool narrow)
        : rows(rows), width(narrow ? std::min<int64_t>(rows, LANES) : LANES), x(x), stride(stride), features(features),
          padded((features + DEPTH - 1) / DEPTH * DEPTH) {
        static thread_local std::vector<f32x16> scratch;
        const int64_t vectors = (rows + LANES - 1) / LANES;
        const int64_t size = vectors * vector_stride() * sizeof(C) / sizeof(f32x16) + 1;  // `column` reads whole vectors
        if ((int64_t)scratch.size() < size) scratch.resize(size);
        data = (C *)scratch.data();
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t i = 0; i < padded; i += LANES * PAIR<C>) pack(v, i);
    }

    const int64_t rows, width;
    int64_t vector_stride() const { return padded * width; }
    C *at(int64_t vector, int64_t input) const { return data + (vector * padded + input) * width; }

    // The inputs of a chunk that starts at `input`, padding included.
    int depth(int64_t input, int chunk) const { return (int)std::min<int64_t>(chunk, padded - input); }

    // Input `input` of the rows of a vector.
    f32x16 column(int64_t vector, int64_t input) const {
        if constexpr (PAIR<C> == 1) return load16(at(vector, input));
        u32x16 both;
        std::memcpy(&both, at(vector, input & ~1), sizeof both);
        return (f32x16)(input & 1 ? both & 0xffff0000u : both << 16);
    }

  private:
    const T *x;
    int64_t stride, features, padded;
    C *data;

    // One transposition: LANES * PAIR inputs of a vector's rows.
    void pack(int64_t vector, int64_t input) const {
        u32x16 lanes[LANES];
        for (int t = 0; t < LANES; ++t)
            lanes[t] = vector * LANES + t < rows ? read(vector * LANES + t, input) : u32x16{};
        transpose16(lanes);
        for (int i = 0; i < LANES; ++i)
            store_first((float *)at(vector, input + i * PAIR<C>), (f32x16)lanes[i], (int)width);
    }

    u32x16 read(int64_t row, int64_t input) const {
        const T *p = x + row * stride + input;
        const int count = (int)std::clamp<int64_t>(features - input, 0, LANES * PAIR<C>);
        if constexpr (sizeof(T) == sizeof(C)) {
            u32x16 lanes = {};
            if (count == LANES * PAIR<C>) std::memcpy(&lanes, p, sizeof lanes);
            else std::memcpy(&lanes, p, count * sizeof(T));
            return lanes;
        } else {
            return (u32x16)load_first(p, count);
        }
    }
};

// products[t][n] = the lanes t of totals[n][V]: 16 outputs for the rows of V vectors.
template <int V> inline void store_products(const f32x16 (*totals)[V], float *products) {
    for (int v = 0; v < V; ++v) {
        u32x16 lanes[LANES];
        for (int n = 0; n < TILE_ROWS; ++n) lanes[n] = (u32x16)totals[n][v];
        transpose16(lanes);
        for (int t = 0; t < LANES; ++t) store16(products + (v * LANES + t) * TILE_ROWS, (f32x16)lanes[t]);
    }
}

// totals[n] += scales[n] * (products of N rows of weights, CHUNK apart, with the V vectors of a panel at x).
template <int N, int V, int CHUNK, class C>
inline void multiply_rows(int depth, const C *weights, const C *x, int64_t x_stride, const float *scales,
                          f32x16 (*totals)[V]) {
    f32x16 sums[N][V] = {};
    for (int i = 0; i < depth; i += PAIR<C>) {
        f32x16 columns[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) columns[v] = load16((const float *)(x + v * x_stride + i * LANES));
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            float weight;  // or a pair of them
            std::memcpy(&weight, weights + n * CHUNK + i, sizeof weight);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
#ifdef SIMD_AVX512_BF16
                if constexpr (PAIR<C> == 2)
                    sums[n][v] = (f32x16)_mm512_dpbf16_ps((__m512)sums[n][v], (__m512bh)_mm512_set1_ps(weight),
                                                          (__m512bh)columns[v]);
                else
#endif
                    sums[n][v] += weight * columns[v];
        }
    }
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < V; ++v) totals[n][v] += scales[n] * sums[n][v];
}

// A chunk of the rows of a tile, unpacked. Rows and lanes behind the last are multiplied too, and not looked at.
template <class Matrix> struct Tile {
    alignas(64) Operand<typename Matrix::Element> weights[TILE_ROWS * Matrix::CHUNK + WORDS] = {};
    float scales[TILE_ROWS] = {};

    void expand(Matrix matrix, int64_t o, int count, int64_t chunk) {
        for (int n = 0; n < count; ++n) {
            matrix.ahead(o + TILE_ROWS, chunk * TILE_ROWS + n);
            matrix.expand(o + n, chunk, weights + n * Matrix::CHUNK);
            scales[n] = matrix.scale(o + n, chunk);
        }
    }
};

// totals[n] = the products of `count` rows, from o on, with V vectors of a panel, in the vector registers.
template <int V, class Matrix, class T>
inline void multiply_in_registers(Matrix matrix, const Panel<T> &panel, int64_t vector, int64_t o, int count,
                                  Tile<Matrix> &tile, f32x16 (*totals)[V]) {
    constexpr int CHUNK = Matrix::CHUNK, TOGETHER = V == 3 ? 4 : REGISTER_SUMS / V;
    for (int64_t input = 0; input < matrix.features; input += CHUNK) {
        tile.expand(matrix, o, count, input / CHUNK);
        for (int n = 0; n < TILE_ROWS; n += TOGETHER)
            multiply_rows<TOGETHER, V, CHUNK>(panel.depth(input, CHUNK), tile.weights + n * CHUNK,
                                              panel.at(vector, input), panel.vector_stride(), tile.scales + n,
                                              totals + n);
    }
}

}  // namespace lut
