// The two products of decode attention for one block of tokens, in the vector units.
#pragma once

#include "flash_decode/spans.h"

#include <type_traits>

// The rows of a tile in order. Most tiles are ADJACENT rows, and walking those by a fixed stride is a third faster.
template <bool ADJACENT, class T> struct TileRows {
    const T *base, *row;
    const Tile &tile;
    int64_t dim;
    TileRows(const T *base, const Tile &tile, int64_t dim)
        : base(base), row(base + tile.token[0] * dim), tile(tile), dim(dim) {}
    const T *at(int t) const { return ADJACENT ? row + t * dim : base + tile.token[t] * dim; }
};

// Asks for `columns` elements of one row that a later tile will read. A row at a time: the core keeps few requests in
// flight, and a burst of them stops it until the memory has answered; where spans jump, that made a tile cost as much
// as three. Into the second cache, which keeps more requests in flight than the first: spans of 20 tokens of 64 bf16
// came at 10 instead of 6 GB/s (Zen 4, one core).
template <class T>
inline void prefetch_row(const T *base, const Tile *later, int t, int64_t dim, int64_t columns) {
    if (!later) return;
    const T *row = base + later->token[t] * dim;
    for (int64_t d = 0; d < columns; d += 64 / sizeof(T)) __builtin_prefetch(row + d, 0, 2);
}

// products[h]: dot products of H queries with the 16 keys of a tile, while those of a later one (if there is one) are
// asked for. DIM is the head dimension where it is known at compile time. The loop over keys is not unrolled: the
// hardware prefetches best when each load has one fixed stride.
template <bool ADJACENT, int H, int DIM, class T>
inline void dots_of(const T *queries, const T *base, const Tile &tile, const Tile *later, int64_t any_dim,
                    f32x16 *products) {
    using D = Dot<T>;
    const int64_t dim = DIM ? DIM : any_dim;
    const TileRows<ADJACENT, T> rows(base, tile, dim);
    f32x16 sums[H][LANES];
#pragma GCC unroll 1
    for (int t = 0; t < LANES; ++t) {
        const T *keys = rows.at(t);
        prefetch_row(base, later, t, dim, dim);
        f32x16 sum[H] = {};
        int64_t d = 0;
#pragma GCC unroll 8
        for (; d + D::WIDTH <= dim; d += D::WIDTH)
            for (int h = 0; h < H; ++h) sum[h] = D::step(sum[h], queries + h * dim + d, keys + d);
        if (d < dim)  // half a step, as dim is a multiple of 16
            for (int h = 0; h < H; ++h) sum[h] += load16(queries + h * dim + d) * load16(keys + d);
        for (int h = 0; h < H; ++h) sums[h][t] = sum[h];
    }
    for (int h = 0; h < H; ++h) products[h] = sums16(sums[h]);
}

template <bool ADJACENT, int H, class T>
inline void dots_at(const T *queries, const T *base, const Tile &tile, const Tile *later, int64_t dim,
                    f32x16 *products) {
    if (dim == 64) dots_of<ADJACENT, H, 64>(queries, base, tile, later, dim, products);
    else if (dim == 128) dots_of<ADJACENT, H, 128>(queries, base, tile, later, dim, products);
    else dots_of<ADJACENT, H, 0>(queries, base, tile, later, dim, products);
}

template <int H, class T>
inline void dots(const T *queries, const T *base, const Tile &tile, const Tile *later, int64_t dim,
                 f32x16 *products) {
    if (tile.adjacent) dots_at<true, H>(queries, base, tile, later, dim, products);
    else dots_at<false, H>(queries, base, tile, later, dim, products);
}

// output[h][...] += sum over tokens of weights[h][t] values[t][...] for H heads and 32 P columns (16 for P = 0), while
// the values of a later block (if there is one) are asked for.
template <int H, int P, class T>
inline void weigh(const float *weights, const T *values, int64_t dim, const Block &block, const Block *later,
                  float *output) {
    constexpr int C = P ? 2 * P : 1;
    f32x16 sums[H][C];
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) sums[h][c] = load16(output + h * dim + c * LANES);
    for (int i = 0; i < block.size; ++i, weights += LANES) {
        const Tile &tile = block.tiles[i], *const next = later && i < later->size ? &later->tiles[i] : nullptr;
        const auto add = [&](auto rows) {
            for (int t = 0; t < tile.count; ++t) {
                const T *row = rows.at(t);
                prefetch_row(values, next, t, dim, C * LANES);
                f32x16 value[C];
                if (P == 0) value[0] = load16(row);
                for (int p = 0; p < P; ++p) load32(row + p * 32, value[2 * p], value[2 * p + 1]);
                for (int h = 0; h < H; ++h)
                    for (int c = 0; c < C; ++c) sums[h][c] += weights[h * Block::TOKENS + t] * value[c];
            }
        };
        if (tile.adjacent) add(TileRows<true, T>(values, tile, dim));
        else add(TileRows<false, T>(values, tile, dim));
    }
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) store16(output + h * dim + c * LANES, sums[h][c]);
}

template <int H, class T>
inline void weigh_columns(const float *weights, const T *values, int64_t dim, const Block &block, const Block *later,
                          float *output) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weigh<H, 2>(weights, values + d, dim, block, later, output + d);
    if (d + 32 <= dim) {
        weigh<H, 1>(weights, values + d, dim, block, later, output + d);
        d += 32;
    }
    if (d < dim) weigh<H, 0>(weights, values + d, dim, block, later, output + d);
}

// Calls work(first_head, integral_constant H) for tiles of up to four heads.
template <class Work> inline void for_head_tiles(int64_t heads, Work work) {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) work(h, std::integral_constant<int, 4>());
    switch (heads - h) {
    case 3: work(h, std::integral_constant<int, 3>()); break;
    case 2: work(h, std::integral_constant<int, 2>()); break;
    case 1: work(h, std::integral_constant<int, 1>()); break;
    }
}
