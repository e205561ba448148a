// Int4 weights with a scale per group of 128 inputs.
//
// A group is one block of 4-bit codes, and its codes are looked up as the integers they mean, which bf16 holds exactly:
// the sum over a group is multiplied by its scale once, in fp32.
#pragma once

#include "lut_gemv/packed.h"

namespace int4 {

constexpr int GROUP = lut::BLOCK_CODES<4>;
constexpr int SCALES = LANES;  // that are converted at once

// -8, ..., 7 in bf16.
static constexpr bf16 INTEGERS[16] = {{0xc100}, {0xc0e0}, {0xc0c0}, {0xc0a0}, {0xc080}, {0xc040}, {0xc000}, {0xbf80},
                                      {0x0000}, {0x3f80}, {0x4000}, {0x4040}, {0x4080}, {0x40a0}, {0x40c0}, {0x40e0}};

// The first `count` <= SCALES of them in fp32.
static inline void widen(const _Float16 *scales, int64_t count, float *to) {
#ifdef SIMD_AVX512
    const lut::u16x32 halves = lut::load_words((const uint16_t *)scales, (int)count);
    store16(to, (f32x16)_mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)halves)));
#else
    for (int64_t g = 0; g < count; ++g) to[g] = (float)scales[g];
#endif
}

// sums[j] += scale * products of X rows of x with a whole group.
template <int X, class S>
inline void whole_group(const uint16_t *words, float scale, const lut::Table<S, 4> &table, lut::Inputs<S> x,
                        f32x16 (&sums)[X]) {
    constexpr int CHAINS = X < 4 ? 2 : 1;
    const auto block = lut::Block<4>::load(words);
    f32x16 chains[X][CHAINS] = {};
#pragma GCC unroll 4
    for (int j = 0; j < lut::Layout<4>::VECTORS; ++j) {
        const auto weights = table.of(block.codes(j));
#pragma GCC unroll 8
        for (int n = 0; n < X; ++n)
            chains[n][j % CHAINS] = weights.times(chains[n][j % CHAINS], x.at(n, j * lut::WORDS));
    }
    for (int n = 0; n < X; ++n) {
        for (int c = 1; c < CHAINS; ++c) chains[n][0] += chains[n][c];
        sums[n] += scale * chains[n][0];
    }
}

template <class T> struct Matrix {
    using Element = T;
    using Multiplier = lut::PackedMultiplier<Matrix>;
    static constexpr int BITS = 4, CHUNK = GROUP;
    static constexpr bool SCALED = true, SPARSE = false;
    using Table = lut::Table<lut::Operand<T>, BITS>;
    const uint16_t *packed;
    const _Float16 *scales;
    int64_t features;

    int64_t groups() const { return (features + GROUP - 1) / GROUP; }
    const uint16_t *words(int64_t o, int64_t group) const {
        return lut::place<BITS>(packed + o * lut::row_words<BITS>(features), group).words;
    }

    template <int X>
    void row_sums(int64_t o, const lut::StreamInputs<T, BITS> &x, int64_t n, int64_t from, int64_t to,
                  f32x16 (&sums)[X]) const {
        const Table table(INTEGERS);
        const uint16_t *row = words(o, 0);
        const int64_t whole = to / GROUP, last = (to + GROUP - 1) / GROUP;
        for (int64_t first = from / GROUP; first < last; first += SCALES) {
            float scale[SCALES];
            lut::ahead(scales + o * groups() + first);
            widen(scales + o * groups() + first, std::min<int64_t>(SCALES, last - first), scale);
            for (int64_t g = first; g < std::min(first + SCALES, whole); ++g) {
                const uint16_t *codes = lut::place<BITS>(row, g).words;
                lut::prefetch<BITS>(codes + lut::AHEAD);
                whole_group<X>(codes, scale[g - first], table, x.ordered.from(n, g * GROUP), sums);
            }
            if (whole == last || whole >= first + SCALES) continue;
            f32x16 narrow[X] = {};
            lut::narrow_block<X>(lut::place<BITS>(row, whole).words, table, x, n, whole * GROUP, to - whole * GROUP,
                                 narrow);
            for (int j = 0; j < X; ++j) sums[j] += scale[whole - first] * narrow[j];
        }
    }

    void expand(int64_t o, int64_t chunk, lut::Operand<T> *to) const {
        lut::expand(words(o, chunk), features - chunk * CHUNK, Table(INTEGERS), to);
    }
    void ahead(int64_t o, int64_t block) const { lut::prefetch<BITS>(words(o, block)); }
    float scale(int64_t o, int64_t chunk) const { return (float)scales[o * groups() + chunk]; }
};

}  // namespace int4
