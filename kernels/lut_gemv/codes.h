// Packed codes of 3 and 4 bits (layout: packing.py) and the lookup tables they point into.
//
// A vector of 32 codes is a shift of a vector of 16-bit words. The bits above a code stay: the tables are repeated in
// their register, so that a lookup by the low five bits gives the same entry whatever they are.
#pragma once

#include "simd.h"

#include <algorithm>

namespace lut {

// What weights are looked up as: bf16 where there is an instruction for products of bf16.
#ifdef SIMD_AVX512_BF16
template <class T> using Operand = T;
#else
template <class T> using Operand = float;
#endif

static inline float value(float x) { return x; }
static inline float value(bf16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

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

// The first `count` <= 32 words and zeros.
static inline u16x32 load_words(const uint16_t *p, int count) {
    u16x32 words = {};
    if (count == WORDS) std::memcpy(&words, p, sizeof words);
    else
#ifdef SIMD_AVX512
        words = (u16x32)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
#else
        std::memcpy(&words, p, count * sizeof *p);
#endif
    return words;
}

// The words of one block in registers.
template <int BITS> struct Block {
    u16x32 plane[Layout<BITS>::PLANES];

    static Block load(const uint16_t *words) {
        Block block;
        for (int p = 0; p < Layout<BITS>::PLANES; ++p) block.plane[p] = load_words(words + p * WORDS, WORDS);
        return block;
    }

    // The last block of a row, of `columns` words a plane.
    static Block load_narrow(const uint16_t *words, int columns) {
        Block block;
        for (int p = 0; p < Layout<BITS>::PLANES; ++p) block.plane[p] = load_words(words + p * columns, columns);
        return block;
    }

    // Vector j of the codes, with other bits above them.
    u16x32 codes(int j) const {
        if constexpr (BITS == 4) return plane[0] >> (4 * j);
        else if (j < 15) return plane[j / 5] >> (3 * (j % 5));
        else return (plane[0] >> 15) | ((plane[1] >> 14) & 2) | ((plane[2] >> 13) & 4);
    }
};

// 32 weights: as floats, those of the even and those of the odd inputs, which is how 32-bit lanes see 16-bit words; as
// bf16, in order.
template <class T> struct Weights;

template <> struct Weights<float> {
    f32x16 even, odd;
    void store(float *p) const {
        const u32x16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
        store16(p, __builtin_shuffle(even, odd, low));
        store16(p + LANES, __builtin_shuffle(even, odd, low + 8));
    }
    // x: 16 even inputs, then 16 odd ones.
    f32x16 times(f32x16 sum, const float *x) const { return sum + even * load16(x) + odd * load16(x + LANES); }
};

template <> struct Weights<bf16> {
    u16x32 bits;
    void store(bf16 *p) const { std::memcpy(p, &bits, sizeof bits); }
#ifdef SIMD_AVX512_BF16
    f32x16 times(f32x16 sum, const bf16 *x) const {
        return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)bits, (__m512bh)_mm512_loadu_si512(x));
    }
#endif
};

// The entries of one table, fp32 or bf16, to be looked up as T.
template <class T, int BITS> struct Table;

#ifdef SIMD_AVX512
template <int BITS> struct Table<float, BITS> {
    __m512 entries;
    explicit Table(const float *p)
        : entries(BITS == 4 ? _mm512_loadu_ps(p) : _mm512_broadcast_f32x8(_mm256_loadu_ps(p))) {}
    explicit Table(const bf16 *p) {
        const __m256i half = BITS == 4 ? _mm256_loadu_si256((const __m256i *)p)
                                       : _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        entries = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    Weights<float> of(u16x32 codes) const {
        return {(f32x16)_mm512_permutexvar_ps((__m512i)codes, entries),
                (f32x16)_mm512_permutexvar_ps((__m512i)((u32x16)codes >> 16), entries)};
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
template <int BITS> struct Table<float, BITS> {
    float entries[1 << BITS];
    template <class E> explicit Table(const E *p) {
        for (int i = 0; i < 1 << BITS; ++i) entries[i] = value(p[i]);
    }
    __attribute__((noinline)) Weights<float> of(u16x32 codes) const {  // else its many calls are all unrolled
        codes &= (uint16_t)((1 << BITS) - 1);
        float even[LANES], odd[LANES];
        for (int i = 0; i < LANES; ++i) even[i] = entries[codes[2 * i]], odd[i] = entries[codes[2 * i + 1]];
        return {load16(even), load16(odd)};
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

// Asks for the words of a block, for the second-level cache: the first has too few places for what is under way.
template <int BITS> inline void prefetch(const uint16_t *words) {
    for (int p = 0; p < Layout<BITS>::PLANES; ++p) __builtin_prefetch(words + p * WORDS, 0, 2);
}

// The weights of `count` inputs of a block, in order, then zeros up to a whole block; `to` has room for WORDS more.
template <class T, int BITS>
#ifndef SIMD_AVX512
__attribute__((noinline))  // scalar code, long to compile at each place of its use
#endif
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

#ifdef SIMD_AVX512_BF16
// The last block of a row, of `count` inputs: its columns are repeated over the lanes, so that a vector of codes holds
// several of the block's vectors, as many as there is room for.
template <int BITS> class NarrowBlock {
    static constexpr int VECTORS = 16 / BITS, PLANES = Layout<BITS>::PLANES;  // of a plane; of a block

  public:
    explicit NarrowBlock(int64_t count)
        : count((int)count), columns((int)(count + Layout<BITS>::VECTORS - 1) / Layout<BITS>::VECTORS),
          together(columns ? std::min(VECTORS, WORDS / columns) : VECTORS),
          per_plane((VECTORS + together - 1) / together) {
        for (int lane = 0; lane < WORDS && columns; ++lane) {
            column[lane] = (uint16_t)(lane % columns);
            for (int j = 0; j < per_plane; ++j) shift[j][lane] = (uint16_t)(BITS * (lane / columns + j * together));
        }
    }

    int steps() const { return columns ? PLANES * per_plane + (BITS == 3) : 0; }

    // The inputs x of the block as the steps want them, WORDS a step, zeros where a step has none.
    void pack(const bf16 *x, bf16 *to) const {
        std::memset(to, 0, steps() * WORDS * sizeof(bf16));
        for (int step = 0; step < steps(); ++step) {
            const int last = PLANES * per_plane, j = step % per_plane * together;
            const int first = (step < last ? step / per_plane * VECTORS + j : PLANES * VECTORS) * columns;
            const int lanes = std::min((step < last ? std::min(together, VECTORS - j) : 1) * columns, count - first);
            if (lanes > 0) std::memcpy(to + step * WORDS, x + first, lanes * sizeof(bf16));
        }
    }

    // Calls use(codes, step, plane) for each step.
    template <class Use> void for_codes(const uint16_t *words, Use use) const {
        const Block<BITS> block = Block<BITS>::load_narrow(words, columns);
#pragma GCC unroll 3
        for (int p = 0; p < PLANES; ++p) {
            const u16x32 plane = __builtin_shuffle(block.plane[p], column);
            for (int j = 0; j < per_plane; ++j) use(plane >> shift[j], p * per_plane + j, p);
        }
        if constexpr (BITS == 3) use(block.codes(15), PLANES * per_plane, PLANES);
    }

  private:
    int count, columns, together, per_plane;
    u16x32 column = {}, shift[VECTORS] = {};
};
#endif

}  // namespace lut
