// A few rows of x against rows of codes as they stream by: looked up in registers, never stored.
#pragma once

#include "lut_gemv/codes.h"

#include <algorithm>

constexpr int BLOCK_ROWS = 16;   // outputs per block: one store of a vector
constexpr int STREAM_ROWS = 4;   // x rows that share a lookup
constexpr int AHEAD = 2048;      // bytes of codes to ask for in advance: rows lie one behind the other

// Rows of x as a kernel reads them.
template <class T> struct Inputs {
    const T *data;
    int64_t stride;
    const T *at(int64_t n, int64_t i) const { return data + n * stride + i; }
};

// sums[n] += products of X rows of x with the whole blocks of a row of codes; gives the inputs done.
// Several chains of sums, because one multiplication takes longer than it occupies the unit.
template <int X, class T, int BITS>
inline int64_t whole_blocks(const uint16_t *row, const Table<T, BITS> &table, Inputs<T> x, int64_t features,
                            f32x16 (&sums)[X]) {
    constexpr int CHAINS = X == 1 ? 8 : 4, VECTORS = Layout<BITS>::VECTORS;
    constexpr int TOGETHER = VECTORS < CHAINS ? CHAINS / VECTORS : 1;  // blocks per turn
    f32x16 chains[X][CHAINS] = {};
    int64_t i = 0;
    const auto add = [&](const uint16_t *words, int64_t input, int first_chain) {
        __builtin_prefetch((const char *)words + AHEAD);
        const Block<BITS> block = Block<BITS>::load(words);
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            const Weights<T> weights = table.of(block.codes(j));
            const int chain = (first_chain + j) % CHAINS;
#pragma GCC unroll 4
            for (int n = 0; n < X; ++n) chains[n][chain] = weights.times(chains[n][chain], x.at(n, input + j * WORDS));
        }
    };
    for (; i + TOGETHER * BLOCK_CODES<BITS> <= features; i += TOGETHER * BLOCK_CODES<BITS>)
#pragma GCC unroll 2
        for (int b = 0; b < TOGETHER; ++b)
            add(row + i / BLOCK_CODES<BITS> * BLOCK_WORDS<BITS> + b * BLOCK_WORDS<BITS>, i + b * BLOCK_CODES<BITS>,
                b * VECTORS);
    for (; i + BLOCK_CODES<BITS> <= features; i += BLOCK_CODES<BITS>)
        add(row + i / BLOCK_CODES<BITS> * BLOCK_WORDS<BITS>, i, 0);
    for (int n = 0; n < X; ++n)
        for (int c = 0; c < CHAINS; ++c) sums[n] += chains[n][c];
    return i;
}

// sum + products of `count` weights with as many elements of x.
template <class T> inline f32x16 dot(f32x16 sum, const T *weights, const T *x, int64_t count) {
    constexpr int WIDTH = Dot<T>::WIDTH;
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) sum = Dot<T>::step(sum, weights + i, x + i);
    return i < count ? Dot<T>::first(sum, weights + i, x + i, (int)(count - i)) : sum;
}

// The same with the last, narrow block of a row, `count` inputs from `input` on.
template <int X, class T, int BITS>
inline void narrow_block(const uint16_t *words, const Table<T, BITS> &table, Inputs<T> x, int64_t input,
                         int64_t count, f32x16 (&sums)[X]) {
    T weights[MAX_BLOCK_CODES + WORDS];
    expand(words, count, table, weights);
    for (int n = 0; n < X; ++n) sums[n] = dot(sums[n], weights, x.at(n, input), count);
}
