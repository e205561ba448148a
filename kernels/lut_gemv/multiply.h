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
static inline const uint8_t *owners(const int32_t *starts, int count) {
    constexpr int STEP = 16;  // more than most rows have: one store without a branch
    static thread_local std::vector<uint8_t> owner;
    const int64_t entries = starts[count] - starts[0];
    if ((int64_t)owner.size() < entries + STEP) owner.resize(entries + STEP);
    for (int k = 0; k < count; ++k) {
        int64_t i = starts[k] - starts[0];
        const int64_t end = starts[k + 1] - starts[0];
        do std::memset(owner.data() + i, k, STEP);  // the next row covers the excess
        while ((i += STEP) < end);
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
    void row_sums(int64_t o, const StreamInputs<T, BITS> &x, int64_t n, f32x16 (&sums)[X]) const {
        const auto entries = table(o);
        const int64_t done = whole_blocks<X>(words(o, 0), entries, x.ordered.from(n, 0), features, sums);
        narrow_block<X>(words(o, done / CHUNK), entries, x, n, done, features - done, sums);
    }

    void expand(int64_t o, int64_t chunk, Operand<T> *to) const {
        lut::expand(words(o, chunk), features - chunk * CHUNK, table(o), to);
    }
    void ahead(int64_t o, int64_t block) const { prefetch<BITS>(words(o, block)); }
    float scale(int64_t, int64_t) const { return 1.f; }

    // To products[j][k]: X rows of x from n on, `count` outputs from o on.
    template <int X>
    void add_outliers(int64_t o, int count, const StreamInputs<T, BITS> &x, int64_t n, float *products) const {
        if (!sparse()) return;
        constexpr int64_t STREAMS = 4;  // places in the list that take turns: neighbours are sums of the same row
        const int32_t *starts = outliers.starts + o, *columns = outliers.columns + starts[0];
        const T *values = outliers.values + starts[0];
        const uint8_t *owner = owners(starts, count);
        float sums[BLOCK][X] = {};
        const auto add = [&](int64_t k) {
            const float *column = x.columns + columns[k] * x.rows + n, weight = value(values[k]);
#pragma GCC unroll 8
            for (int j = 0; j < X; ++j) sums[owner[k]][j] += weight * column[j];
        };
        const int64_t entries = starts[count] - starts[0], part = entries / STREAMS;
        for (int64_t k = 0; k < part; ++k)
            for (int s = 0; s < STREAMS; ++s) add(k + s * part);
        for (int64_t k = STREAMS * part; k < entries; ++k) add(k);
        for (int j = 0; j < X; ++j)
            for (int k = 0; k < BLOCK; ++k) products[j * BLOCK + k] += sums[k][j];
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
