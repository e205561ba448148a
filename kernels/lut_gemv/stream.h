// A few rows of x against rows of codes as they stream by: looked up in registers, never stored.
#pragma once

#include "lut_gemv/codes.h"

#include <type_traits>
#include <vector>

namespace lut {

#ifdef SIMD_AVX512
constexpr int STREAM_ROWS = 8;  // x rows that share a lookup: as many as there are registers for
#else
constexpr int STREAM_ROWS = 4;
#endif
constexpr int AHEAD = 2048;  // words of codes to ask for in advance: rows lie one behind the other

// Asks for what lies behind p, of a thin stream beside that of the codes.
template <class T> inline void ahead(const T *p) { __builtin_prefetch((const char *)p + 1024, 0, 2); }

// Inputs after which X rows of x give way to the next ones in the first-level cache: whole blocks.
template <int X, class S>
constexpr int64_t SPAN = 24576 / (X * (int)sizeof(S)) / MAX_BLOCK_CODES * MAX_BLOCK_CODES;

// Rows of x as a kernel reads them.
template <class T> struct Inputs {
    const T *data;
    int64_t stride;
    const T *at(int64_t n, int64_t i) const { return data + n * stride + i; }
    Inputs from(int64_t n, int64_t i) const { return {at(n, i), stride}; }
};

// Rows of x in the order in which `Weights` want them: floats with the even ones of 32 first.
template <class T> inline Inputs<Operand<T>> streamed(Inputs<T> x, int64_t rows, int64_t features) {
    if constexpr (std::is_same_v<Operand<T>, bf16>) return x;
    else {
        static thread_local std::vector<float> copy;
        const int64_t stride = features / (2 * LANES) * 2 * LANES;  // narrow blocks read x itself
        if ((int64_t)copy.size() < rows * stride) copy.resize(rows * stride);
        for (int64_t n = 0; n < rows; ++n)
            for (int64_t i = 0; i < stride; i += 2 * LANES) {
                float *to = copy.data() + n * stride + i;
                for (int k = 0; k < LANES; ++k) {
                    to[k] = value(*x.at(n, i + 2 * k));
                    to[LANES + k] = value(*x.at(n, i + 2 * k + 1));
                }
            }
        return {copy.data(), stride};
    }
}

// Rows of x input by input in fp32, [features][rows].
template <class T> inline const float *columns_of(Inputs<T> x, int64_t rows, int64_t features) {
    static thread_local std::vector<float> copy;
    if ((int64_t)copy.size() < rows * features) copy.resize(rows * features);
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t i = 0; i < features; ++i) copy[i * rows + n] = value(*x.at(n, i));
    return copy.data();
}

// All rows of x: as they are, in the order for whole blocks, for the last block of a row, and for outliers.
template <class T, int BITS> struct StreamInputs {
    Inputs<T> plain;
    Inputs<Operand<T>> ordered;
    const float *columns;
    int64_t rows;
#ifdef SIMD_AVX512_BF16
    NarrowBlock<BITS> narrow;
    Inputs<bf16> last;
#endif

    StreamInputs(const T *x, int64_t x_stride, int64_t rows, int64_t features, bool sparse)
        : plain{x, x_stride}, ordered(streamed(plain, rows, features)),
          columns(sparse ? columns_of(plain, rows, features) : nullptr), rows(rows)
#ifdef SIMD_AVX512_BF16
          ,
          narrow(features % BLOCK_CODES<BITS>)
#endif
    {
#ifdef SIMD_AVX512_BF16
        if constexpr (std::is_same_v<T, bf16>) last = packed(features / BLOCK_CODES<BITS> * BLOCK_CODES<BITS>);
#endif
    }

#ifdef SIMD_AVX512_BF16
  private:
    Inputs<bf16> packed(int64_t input) const {
        static thread_local std::vector<u16x32> copy;
        if ((int64_t)copy.size() < rows * narrow.steps()) copy.resize(rows * narrow.steps());
        bf16 *to = (bf16 *)copy.data();
        const int64_t stride = narrow.steps() * WORDS;
        for (int64_t n = 0; n < rows && stride; ++n) narrow.pack(plain.at(n, input), to + n * stride);
        return {to, stride};
    }
#endif
};

// sums[j] += products of X rows of x with the whole blocks of `features` inputs of a row of codes; gives the inputs done.
// Several chains of sums, because one multiplication takes longer than it occupies the unit.
template <int X, class S, int BITS>
inline int64_t whole_blocks(const uint16_t *row, const Table<S, BITS> &table, Inputs<S> x, int64_t features,
                            f32x16 (&sums)[X]) {
    constexpr int CHAINS = X < 4 ? 4 : 2, VECTORS = Layout<BITS>::VECTORS;
    f32x16 chains[X][CHAINS] = {};
    int64_t i = 0;
    for (; i + BLOCK_CODES<BITS> <= features; i += BLOCK_CODES<BITS>) {
        const uint16_t *words = place<BITS>(row, i / BLOCK_CODES<BITS>).words;
        prefetch<BITS>(words + AHEAD);
        const Block<BITS> block = Block<BITS>::load(words);
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            const Weights<S> weights = table.of(block.codes(j));
            const int chain = j % CHAINS;
#pragma GCC unroll 8
            for (int n = 0; n < X; ++n) chains[n][chain] = weights.times(chains[n][chain], x.at(n, i + j * WORDS));
        }
    }
    for (int n = 0; n < X; ++n)
        for (int c = 0; c < CHAINS; ++c) sums[n] += chains[n][c];
    return i;
}

// sum + products of `count` weights with as many elements of x.
template <class S, class T> inline f32x16 dot(f32x16 sum, const S *weights, const T *x, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int some = (int)std::min<int64_t>(LANES, count - i);
        sum += load16(weights + i) * load_first(x + i, some);
    }
    return sum;
}

// The same with the last, narrow block of a row, `count` inputs from `input` on; x from row n on.
template <int X, class T, class S, int BITS>
inline void narrow_block(const uint16_t *words, const Table<S, BITS> &table, const StreamInputs<T, BITS> &x, int64_t n,
                         int64_t input, int64_t count, f32x16 (&sums)[X]) {
#ifdef SIMD_AVX512_BF16
    if constexpr (std::is_same_v<S, bf16>) {
        f32x16 chains[2][X] = {};  // apart from `sums`, which are not known yet
        x.narrow.for_codes(words, [&](u16x32 codes, int step, int plane) {
            const Weights<bf16> weights = table.of(codes);
            for (int j = 0; j < X; ++j)
                chains[plane % 2][j] = weights.times(chains[plane % 2][j], x.last.at(n + j, step * WORDS));
        });
        for (int j = 0; j < X; ++j) sums[j] += chains[0][j] + chains[1][j];
        return;
    }
#endif
    S weights[MAX_BLOCK_CODES + WORDS];
    expand(words, count, table, weights);
    for (int j = 0; j < X; ++j) sums[j] = dot(sums[j], weights, x.plain.at(n + j, input), count);
}

}  // namespace lut
