// Packed codes of 3 and 4 bits (layout: packing.py) and the lookup tables they point into.
//
// A vector of 32 codes is a shift of a vector of 16-bit words. The bits above a code stay: the tables are repeated in
// their register, so that a lookup by the low five bits gives the same entry whatever they are.
#pragma once

#include "simd.h"

typedef uint16_t u16x32 __attribute__((vector_size(64)));

constexpr int WORDS = 32;  // 16-bit words of a plane of a whole block

// VECTORS: codes of a column of words; PLANES: words of a column.
template <int BITS> struct Layout;
template <> struct Layout<3> {
    static constexpr int VECTORS = 16, PLANES = 3;
};
template <> struct Layout<4> {
    static constexpr int VECTORS = 4, PLANES = 1;
};
template <int BITS> constexpr int BLOCK_CODES = Layout<BITS>::VECTORS * WORDS;  // inputs of a whole block
template <int BITS> constexpr int BLOCK_WORDS = Layout<BITS>::PLANES * WORDS;
constexpr int MAX_BLOCK_CODES = BLOCK_CODES<3>;

template <int BITS> inline int64_t row_words(int64_t features) {
    return (features + Layout<BITS>::VECTORS - 1) / Layout<BITS>::VECTORS * Layout<BITS>::PLANES;
}

// The words of one block in registers.
template <int BITS> struct Block {
    u16x32 plane[Layout<BITS>::PLANES];

    static Block load(const uint16_t *words) {
        Block block;
        std::memcpy(&block, words, sizeof block);
        return block;
    }

    // The last block of a row, of `columns` words a plane.
    static Block load_narrow(const uint16_t *words, int columns) {
        Block block = {};
        for (int p = 0; p < Layout<BITS>::PLANES; ++p)
            std::memcpy(&block.plane[p], words + p * columns, columns * sizeof(uint16_t));
        return block;
    }

    // Vector j of the codes, with other bits above them.
    u16x32 codes(int j) const {
        if constexpr (BITS == 4) return plane[0] >> (4 * j);
        else if (j < 15) return plane[j / 5] >> (3 * (j % 5));
        else return (plane[0] >> 15) | ((plane[1] >> 14) & 2) | ((plane[2] >> 13) & 4);
    }
};

// 32 weights; where vectors of 32 bf16 exist they stay in one register.
template <class T> struct Weights;

template <> struct Weights<float> {
    f32x16 low, high;
    void store(float *p) const {
        store16(p, low);
        store16(p + LANES, high);
    }
    f32x16 times(f32x16 sum, const float *x) const { return sum + low * load16(x) + high * load16(x + LANES); }
};

template <> struct Weights<bf16> {
    u16x32 bits;
    void store(bf16 *p) const { std::memcpy(p, &bits, sizeof bits); }
    f32x16 times(f32x16 sum, const bf16 *x) const {
#ifdef SIMD_AVX512_BF16
        return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)bits, (__m512bh)_mm512_loadu_si512(x));
#else
        bf16 weights[2 * LANES];
        store(weights);
        return Dot<bf16>::step(sum, weights, x);
#endif
    }
};

// The entries of one table.
template <class T, int BITS> struct Table;

#ifdef SIMD_AVX512
template <int BITS> struct Table<float, BITS> {
    __m512 entries;
    explicit Table(const float *p)
        : entries(BITS == 4 ? _mm512_loadu_ps(p) : _mm512_broadcast_f32x8(_mm256_loadu_ps(p))) {}
    Weights<float> of(u16x32 codes) const {
        return {(f32x16)_mm512_permutexvar_ps(half(codes, 0), entries),
                (f32x16)_mm512_permutexvar_ps(half(codes, 1), entries)};
    }

  private:
    static __m512i half(u16x32 codes, int upper) {
        return _mm512_cvtepu16_epi32(upper ? _mm512_extracti64x4_epi64((__m512i)codes, 1)
                                           : _mm512_castsi512_si256((__m512i)codes));
    }
};

template <int BITS> struct Table<bf16, BITS> {
    __m512i entries;
    explicit Table(const bf16 *p)
        : entries(BITS == 4 ? _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p))
                            : _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p))) {}
    Weights<bf16> of(u16x32 codes) const {
        return {(u16x32)_mm512_permutexvar_epi16((__m512i)codes, entries)};
    }
};
#else
template <class T, int BITS> struct Table {
    const T *entries;
    explicit Table(const T *p) : entries(p) {}
    Weights<T> of(u16x32 codes) const {
        codes &= (1 << BITS) - 1;
        T looked_up[WORDS];
        for (int i = 0; i < WORDS; ++i) looked_up[i] = entries[codes[i]];
        Weights<T> weights;
        std::memcpy(&weights, looked_up, sizeof weights);
        return weights;
    }
};
#endif

// One block of a row: its words and the first of its inputs.
struct Place {
    const uint16_t *words;
    int64_t input;
};

template <int BITS> inline Place place(const uint16_t *row, int64_t block) {
    return {row + block * BLOCK_WORDS<BITS>, block * BLOCK_CODES<BITS>};
}

// The weights of `count` inputs of a block, in order, then zeros up to a whole block; `to` has room for WORDS more.
template <class T, int BITS>
inline void expand(const uint16_t *words, int64_t count, const Table<T, BITS> &table, T *to) {
    using L = Layout<BITS>;
    if (count >= BLOCK_CODES<BITS>) {
        const Block<BITS> block = Block<BITS>::load(words);
#pragma GCC unroll 16
        for (int j = 0; j < L::VECTORS; ++j) table.of(block.codes(j)).store(to + j * WORDS);
        return;
    }
    const int columns = (int)(count + L::VECTORS - 1) / L::VECTORS;
    const Block<BITS> block = Block<BITS>::load_narrow(words, columns);
#pragma GCC unroll 16
    for (int j = 0; j < L::VECTORS; ++j) table.of(block.codes(j)).store(to + j * columns);  // the next covers the excess
    std::memset(to + count, 0, (BLOCK_CODES<BITS> - count) * sizeof(T));
}
