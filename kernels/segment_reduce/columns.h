// Sums over rows, column by column, in fp32 with an error that does not grow with the number of rows.
#pragma once

#include "simd.h"

#include <algorithm>

// Rows summed plainly. The sums of such blocks are added up with compensation (Kahan 1965), so that rounding cannot
// build up over a long segment; the compensation itself costs nothing that shows.
constexpr int64_t BLOCK_ROWS = 64;

// sum[v] = sum over rows of term(row, v).
template <int V, class Term> inline void sum_rows(int64_t rows, f32x16 (&sum)[V], Term term) {
    f32x16 lost[V] = {};
    for (int v = 0; v < V; ++v) sum[v] = f32x16{};
    for (int64_t begin = 0; begin < rows; begin += BLOCK_ROWS) {
        const int64_t end = std::min(begin + BLOCK_ROWS, rows);
        f32x16 block[V] = {};
        for (int64_t row = begin; row < end; ++row)
            for (int v = 0; v < V; ++v) block[v] += term(row, v);
        for (int v = 0; v < V; ++v) {
            const f32x16 corrected = block[v] - lost[v], larger = sum[v] + corrected;
            lost[v] = (larger - sum[v]) - corrected;
            lost[v] = lost[v] == lost[v] ? lost[v] : f32x16{};  // an infinite sum stays infinite
            sum[v] = larger;
        }
    }
}

// Columns that follow each other, 16 per vector; `count` of the last vector exist.
template <int V> struct Panel {
    static constexpr int VECTORS = V;
    int64_t first;
    int count;
    int width(int v) const { return V > 1 ? LANES : count; }
    template <class T> f32x16 load(const T *row, int v) const { return load_first(row + first + v * LANES, width(v)); }
    void store(float *row, int v, f32x16 x) const { store_first(row + first + v * LANES, x, width(v)); }
};

// Calls work(panel) for panels that cover columns [begin, end). Whole cache lines where there are enough columns.
template <class Work> inline void for_panels(int64_t begin, int64_t end, Work work) {
    int64_t d = begin;
    for (; d + 8 * LANES <= end; d += 8 * LANES) work(Panel<8>{d, LANES});
    for (; d + 4 * LANES <= end; d += 4 * LANES) work(Panel<4>{d, LANES});
    for (; d + 2 * LANES <= end; d += 2 * LANES) work(Panel<2>{d, LANES});
    for (; d < end; d += LANES) work(Panel<1>{d, (int)std::min<int64_t>(LANES, end - d)});
}
