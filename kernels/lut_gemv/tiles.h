// The same product in the tile registers of AMX: rows of weights, unpacked as they are, times a panel of x, whose pairs
// of inputs of up to 16 rows are the layout a tile wants.
#pragma once

#include "amx.h"
#include "lut_gemv/panel.h"

#include <type_traits>

namespace lut {

#ifdef SIMD_AMX

static_assert(TILE_ROWS == AMX_SIDE);
constexpr int SUM_TILES = 4;         // tiles 0 to 3 hold sums, 4 weights and 5 the panel

inline TileShapes shapes_of(int64_t width) {
    TileShapes shapes;
    for (int tile = 0; tile < 6; ++tile)
        shapes.set(tile, TILE_ROWS, tile == 4 ? DEPTH * sizeof(bf16) : width * sizeof(float));
    return shapes;
}

template <int SUM> inline void clear_sum() {
    if constexpr (SUM == 0) _tile_zero(0);
    if constexpr (SUM == 1) _tile_zero(1);
    if constexpr (SUM == 2) _tile_zero(2);
    if constexpr (SUM == 3) _tile_zero(3);
}

template <int SUM> inline void add_product() {
    if constexpr (SUM == 0) _tile_dpbf16ps(0, 4, 5);
    if constexpr (SUM == 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (SUM == 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (SUM == 3) _tile_dpbf16ps(3, 4, 5);
}

template <int SUM> inline void store_sum(f32x16 *to) {
    if constexpr (SUM == 0) _tile_stored(0, to, sizeof(f32x16));
    if constexpr (SUM == 1) _tile_stored(1, to, sizeof(f32x16));
    if constexpr (SUM == 2) _tile_stored(2, to, sizeof(f32x16));
    if constexpr (SUM == 3) _tile_stored(3, to, sizeof(f32x16));
}

// Calls f<0>(), ..., f<COUNT - 1>(): tile registers have names, not numbers.
template <int COUNT, class F> inline void for_each(F f) {
    if constexpr (COUNT > 0) f(std::integral_constant<int, 0>{});
    if constexpr (COUNT > 1) f(std::integral_constant<int, 1>{});
    if constexpr (COUNT > 2) f(std::integral_constant<int, 2>{});
    if constexpr (COUNT > 3) f(std::integral_constant<int, 3>{});
}

// A tile of weights against V vectors of the panel. With few vectors each has several sums, because a product takes
// longer than it occupies the unit.
template <int V> struct TileProduct {
    static constexpr int CHAINS = SUM_TILES / V, SUMS = V * CHAINS;
    f32x16 sums[SUMS][TILE_ROWS];

    static void clear() {
        for_each<SUMS>([](auto sum) { clear_sum<sum>(); });
    }

    static void add(int depth, const bf16 *weights, int64_t stride, const Panel<bf16> &panel, const bf16 *x) {
        asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
        const int64_t line = panel.width * sizeof(float);
        for (int i = 0; i < depth; i += CHAINS * DEPTH)
            for_each<CHAINS>([&](auto chain) {
                const int from = i + chain * DEPTH;
                if (chain > 0 && from >= depth) return;
                _tile_loadd(4, weights + from, stride * sizeof(bf16));
                for_each<V>([&](auto v) {
                    _tile_loadd(5, x + v * panel.vector_stride() + from * panel.width, line);
                    add_product<chain * V + v>();
                });
            });
    }

    void store() {
        for_each<SUMS>([&](auto sum) { store_sum<sum>(sums[sum]); });
        asm volatile("" ::: "memory");
    }

    void add_to(f32x16 (*totals)[V], const float *scales) const {
        for (int n = 0; n < TILE_ROWS; ++n)
            for (int v = 0; v < V; ++v) {
                f32x16 sum = sums[v][n];
                for (int chain = 1; chain < CHAINS; ++chain) sum += sums[chain * V + v][n];
                totals[n][v] += scales[n] * sum;
            }
    }
};

// As `multiply_in_registers`. A chunk is unpacked while the one before is multiplied, because a tile cannot be loaded
// until what it reads has left the store buffer, and likewise its sums are fetched one chunk later. Without scales the
// sums stay in their tiles for a whole row.
template <int V, class Matrix>
inline void multiply_in_tiles(Matrix matrix, const Panel<bf16> &panel, int64_t vector, int64_t o, int count,
                              Tile<Matrix> (&tiles)[2], f32x16 (*totals)[V]) {
    constexpr int CHUNK = Matrix::CHUNK;
    alignas(64) TileProduct<V> products[2];
    const int64_t last = (matrix.features - 1) / CHUNK;
    tiles[0].expand(matrix, o, count, 0);
    for (int64_t chunk = 0; chunk <= last; ++chunk) {
        const int now = chunk % 2;
        if (Matrix::SCALED && chunk > 0) products[1 - now].add_to(totals, tiles[1 - now].scales);
        if (chunk < last) tiles[1 - now].expand(matrix, o, count, chunk + 1);
        if (Matrix::SCALED || chunk == 0) TileProduct<V>::clear();
        TileProduct<V>::add(panel.depth(chunk * CHUNK, CHUNK), tiles[now].weights, CHUNK, panel,
                            panel.at(vector, chunk * CHUNK));
        if (Matrix::SCALED || chunk == last) products[now].store();
    }
    products[last % 2].add_to(totals, tiles[last % 2].scales);
}
#endif

}  // namespace lut
