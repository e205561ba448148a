// A few rows of x against rows of codes as they stream by: looked up in registers, never stored.
#pragma once

#include "lut_gemv/codes.h"

#include <algorithm>
#include <type_traits>
#include <vector>

constexpr int BLOCK_ROWS = 16;   // outputs per block: one store of a vector
constexpr int STREAM_ROWS = 4;   // x rows that share a lookup
constexpr int AHEAD = 1024;      // words of codes to ask for in advance: rows lie one behind the other

// Rows of x as a kernel reads them.
template <class T> struct Inputs {
    const T *data;
    int64_t stride;
    const T *at(int64_t n, int64_t i) const { return data + n * stride + i; }
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

// sums[n] += products of X rows of x with the whole blocks of a row of codes; gives the inputs done.
// Several chains of sums, because one multiplication takes longer than it occupies the unit.
template <int X, class S, int BITS>
inline int64_t whole_blocks(const uint16_t *row, const Table<S, BITS> &table, Inputs<S> x, int64_t features,
                            f32x16 (&sums)[X]) {
    constexpr int CHAINS = X == 1 ? 8 : 4, VECTORS = Layout<BITS>::VECTORS;
    constexpr int TOGETHER = VECTORS < CHAINS ? CHAINS / VECTORS : 1;  // blocks per turn
    f32x16 chains[X][CHAINS] = {};
    const auto add = [&](int64_t input, int first_chain) {
        const uint16_t *words = place<BITS>(row, input / BLOCK_CODES<BITS>).words;
        prefetch<BITS>(words + AHEAD);
        const Block<BITS> block = Block<BITS>::load(words);
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            const Weights<S> weights = table.of(block.codes(j));
            const int chain = (first_chain + j) % CHAINS;
#pragma GCC unroll 4
            for (int n = 0; n < X; ++n) chains[n][chain] = weights.times(chains[n][chain], x.at(n, input + j * WORDS));
        }
    };
    int64_t i = 0;
    for (; i + TOGETHER * BLOCK_CODES<BITS> <= features; i += TOGETHER * BLOCK_CODES<BITS>)
#pragma GCC unroll 2
        for (int b = 0; b < TOGETHER; ++b) add(i + b * BLOCK_CODES<BITS>, b * VECTORS);
    for (; i + BLOCK_CODES<BITS> <= features; i += BLOCK_CODES<BITS>) add(i, 0);
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

// The same with the last, narrow block of a row, `count` inputs from `input` on.
template <int X, class T, class S, int BITS>
inline void narrow_block(const uint16_t *words, const Table<S, BITS> &table, Inputs<T> x, int64_t input,
                         int64_t count, f32x16 (&sums)[X]) {
    S weights[MAX_BLOCK_CODES + WORDS];
    expand(words, count, table, weights);
    for (int n = 0; n < X; ++n) sums[n] = dot(sums[n], weights, x.at(n, input), count);
}
