// The products of rows of x with blocks of packed rows, as `Gemv` and `GatedGemv` want them.
#pragma once

#include "gemv/multiply.h"
#include "lut_gemv/stream.h"
#include "lut_gemv/tiles.h"

namespace lut {

// Whether the products of many rows run in tile registers.
template <class T> inline bool use_tiles() { return std::is_same_v<T, bf16> && has_matrix_unit(); }

// Rows of x up to which it is faster to stream them than to unpack tiles.
template <class T> inline int64_t stream_limit() { return use_tiles<T>() ? 1 : 16; }

// For one thread. A Matrix gives:
//   Element, BITS, features, CHUNK: the inputs of a row that are unpacked at once,
//   row_sums<X>(o, x, n, from, to, sums)  adds the products of inputs [from, to) of row o with X rows of x, from n on, to
//                               16 partial sums each; `from` is a whole number of blocks, and so is `to` but for the end,
//   expand(o, chunk, to)        the weights of a chunk of row o, zeros behind the last; may write WORDS more than CHUNK,
//   ahead(o, block)             asks for the codes of a block, counted from row o on: tiles of rows are more streams than
//                               the hardware follows, so the next tile is asked for in the order of addresses,
//   SCALED, scale(o, chunk)     whether and by what the products of a chunk are multiplied,
//   SPARSE                      whether there may be outliers: `sparse()`, and `add_outliers` adds their products.
template <class Matrix> class PackedMultiplier {
    using T = typename Matrix::Element;

  public:
    static constexpr int64_t ROWS = PANEL_ROWS;  // of x in one call

    PackedMultiplier(const Matrix &matrix, const T *x, int64_t x_stride, int64_t rows)
        : matrix(matrix), streams(rows <= stream_limit<T>()),
          inputs(x, x_stride, streams ? rows : 0, matrix.features, sparse()),
          panel(x, x_stride, streams ? 0 : rows, matrix.features, use_tiles<T>())
#ifdef SIMD_AMX
          ,
          unit(!streams && use_tiles<T>(), shapes_of(panel.width))
#endif
    {
    }

    // products[n][k] of x rows [first, first + rows) with `count` packed rows from o on; all 16 k are written.
    __attribute__((noinline)) void operator()(int64_t first, int64_t rows, int64_t o, int count, float *products) {
        if (streams) return stream<STREAM_ROWS>(first, first + rows, o, count, products);
        switch ((rows + LANES - 1) / LANES) {
            case 1: return multiply<1>(first / LANES, o, count, products);
            case 2: return multiply<2>(first / LANES, o, count, products);
            case 3: return multiply<3>(first / LANES, o, count, products);
            default: return multiply<4>(first / LANES, o, count, products);
        }
    }

  private:
    bool sparse() const {
        if constexpr (Matrix::SPARSE) return matrix.sparse();
        return false;
    }

    // X rows at a time, then what is left of them half as many.
    template <int X> void stream(int64_t n, int64_t end, int64_t o, int count, float *products) {
        for (; n + X <= end; n += X, products += X * BLOCK) {
            f32x16 sums[X][BLOCK];
            for (int j = 0; j < X; ++j) std::fill(sums[j] + count, sums[j] + BLOCK, f32x16{});
            for (int64_t from = 0; from < matrix.features; from += SPAN<X, Operand<T>>)
                for (int k = 0; k < count; ++k) {
                    f32x16 row[X] = {};
                    const int64_t to = std::min(from + SPAN<X, Operand<T>>, matrix.features);
                    matrix.template row_sums<X>(o + k, inputs, n, from, to, row);
                    for (int j = 0; j < X; ++j) sums[j][k] = from == 0 ? row[j] : sums[j][k] + row[j];
                }
            for (int j = 0; j < X; ++j) store16(products + j * BLOCK, sums16(sums[j]));
            if constexpr (Matrix::SPARSE) matrix.template add_outliers<X>(o, count, inputs, n, products);
        }
        if constexpr (X > 1) stream<X / 2>(n, end, o, count, products);
    }

    template <int V> void multiply(int64_t vector, int64_t o, int count, float *products) {
        f32x16 totals[TILE_ROWS][V] = {};
        multiply<V>(vector, o, count, totals);
        if constexpr (Matrix::SPARSE) matrix.template add_outliers<V>(o, count, panel, vector, totals);
        store_products<V>(totals, products);
    }

    template <int V> void multiply(int64_t vector, int64_t o, int count, f32x16 (*totals)[V]) {
        Tile<Matrix>(&tiles)[2] = scratch();
#ifdef SIMD_AMX
        if constexpr (std::is_same_v<T, bf16>)
            if (use_tiles<T>()) return multiply_in_tiles<V>(matrix, panel, vector, o, count, tiles, totals);
#endif
        multiply_in_registers<V>(matrix, panel, vector, o, count, tiles[0], totals);
    }

    static Tile<Matrix> (&scratch())[2] {
        static thread_local Tile<Matrix> tiles[2];
        return tiles;
    }

    const Matrix matrix;
    const bool streams;
    const StreamInputs<T, Matrix::BITS> inputs;
    const Panel<T> panel;
#ifdef SIMD_AMX
    const MatrixUnit unit;
#endif
};

}  // namespace lut
