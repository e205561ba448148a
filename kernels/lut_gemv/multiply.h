// Weights from one lookup table per row, plus sparse outliers.
#pragma once

#include "lut_gemv/packed.h"

namespace lut {

// Compressed sparse rows; `starts` is null if there are none.
template <class T> struct Sparse {
    const int32_t *starts, *columns;
    const T *values;
};

// Which of `count` rows, from the one that starts at starts[0] on, each of their entries belongs to.
static inline const int32_t *owners(const int32_t *starts, int count) {
    static thread_local std::vector<int32_t> owner;
    const int64_t entries = starts[count] - starts[0];
    if ((int64_t)owner.size() < entries + LANES) owner.resize(entries + LANES);
    for (int k = 0; k < count; ++k) {
        int64_t i = starts[k] - starts[0];
        const i32x16 same = i32x16{} + k;
        do std::memcpy(owner.data() + i, &same, sizeof same);  // the next row covers the excess
        while ((i += LANES) < starts[k + 1] - starts[0]);
    }
    return owner.data();
}

template <class T, int BITS_> struct Matrix {
    using Element = T;
    using Multiplier = PackedMultiplier<Matrix>;
    static constexpr int BITS = BITS_, CHUNK = BLOCK_CODES<BITS>;
    static constexpr bool SCALED = false, SPARSE = true;
    const uint16_t *packed;
    const T *tables;
    Sparse<T> outliers;
    int64_t features;

    bool sparse() const { return outliers.starts; }
    const uint16_t *words(int64_t o, int64_t chunk) const {
        return place<BITS>(packed + o * row_words<BITS>(features), chunk).words;
    }
    Table<Operand<T>, BITS> table(int64_t o) const { return Table<Operand<T>, BITS>(tables + (o << BITS)); }

    template <int X>
    void row_sums(int64_t o, const StreamInputs<T, BITS> &x, int64_t n, int64_t from, int64_t to,
                  f32x16 (&sums)[X]) const {
        const auto entries = table(o);
        lut::ahead(tables + (o << BITS));
        prefetch<BITS>(words(o, to / CHUNK) + AHEAD);
        const int64_t done = from + whole_blocks<X>(words(o, from / CHUNK), entries, x.ordered.from(n, from), to - from, sums);
        if (done < to) narrow_block<X>(words(o, done / CHUNK), entries, x, n, done, to - done, sums);
    }

    void expand(int64_t o, int64_t chunk, Operand<T> *to) const {
        lut::expand(words(o, chunk), features - chunk * CHUNK, table(o), to);
    }
    void ahead(int64_t o, int64_t block) const { prefetch<BITS>(words(o, block)); }
    float scale(int64_t, int64_t) const { return 1.f; }

    // To products[j][k]: X rows of x from n on, `count` outputs from o on. An entry is multiplied in the lane of its row,
    // so that the entries of all rows make one list.
    template <int X>
    void add_outliers(int64_t o, int count, const StreamInputs<T, BITS> &x, int64_t n, float *products) const {
        if (!sparse()) return;
        constexpr int CHAINS = X < 4 ? 4 : 1;
        const int32_t *starts = outliers.starts + o, *columns = outliers.columns + starts[0];
        const T *values = outliers.values + starts[0];
        const int32_t *owner = owners(starts, count);
        const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        f32x16 sums[CHAINS][X] = {};
        const auto add = [&](int64_t k, f32x16 (&chain)[X]) {
            const float *column = x.columns + columns[k] * x.rows + n;
            const f32x16 weight = lane == owner[k] ? broadcast(value(values[k])) : f32x16{};
#pragma GCC unroll 8
            for (int j = 0; j < X; ++j) chain[j] += weight * column[j];
        };
        const int64_t entries = starts[count] - starts[0];
        int64_t k = 0;
        for (; k + CHAINS <= entries; k += CHAINS) {
            lut::ahead(columns + k);
            lut::ahead(values + k);
            for (int c = 0; c < CHAINS; ++c) add(k + c, sums[c]);
        }
        for (; k < entries; ++k) add(k, sums[0]);
        for (int j = 0; j < X; ++j)
            for (int c = 1; c < CHAINS; ++c) sums[0][j] += sums[c][j];
        for (int j = 0; j < X; ++j) store16(products + j * BLOCK, load16(products + j * BLOCK) + sums[0][j]);
    }

    // To totals[k][v]: the rows of V vectors of a panel, `count` outputs from o on.
    template <int V>
    void add_outliers(int64_t o, int count, const Panel<T> &panel, int64_t vector, f32x16 (*totals)[V]) const {
        for (int n = 0; n < count && sparse(); ++n)
            for (int64_t k = outliers.starts[o + n]; k < outliers.starts[o + n + 1]; ++k)
                for (int v = 0; v < V; ++v)
                    totals[n][v] += value(outliers.values[k]) * panel.column(vector + v, outliers.columns[k]);
    }
};

}  // namespace lut
