// One pass over a row of logits, in blocks that stay in the L1 cache: maxima, and the sums of the softmax.
//
// What is kept of a block is relative to the block's own largest logit, and blocks are the same whoever scans them:
// a row gives the same bits alone and in a batch, with any number of threads.
#pragma once

#include "sample/lanes.h"

#include <algorithm>
#include <cfloat>

constexpr int64_t BLOCK = 1024;      // logits
constexpr float NEGLIGIBLE = -1000;  // as a power of two: 0 in fp32, but finite, so that 0 times it is 0

struct Block {
    float lanes[LANES];  // largest logit of 1/16 of the block each: finer bounds for a top-k than `peak`
    float peak;
    float sum, weighted;  // of 2^y and y 2^y, y = (logit - peak) factor
};

static inline float power(float exponent) { return std::exp2(std::max(exponent, NEGLIGIBLE)); }

// What softmax exponentiates, in units of log2; NaN, as -inf gives minus -inf, becomes negligible.
static inline f32x16 exponents(f32x16 x, float peak, float factor) {
    return larger((x - peak) * factor, broadcast(NEGLIGIBLE));
}

// 2^y for y in [-1000, 0] to 1.5e-7, exactly 1 for 0.
static inline f32x16 power16(f32x16 y) {
#ifdef SIMD_AVX512
    // Cheaper than exp2_16, most of this op's work: scalef rounds its exponent down by itself. Least largest relative
    // error on [0, 1] among polynomials of degree 5 that begin with 1.
    const f32x16 r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    f32x16 p = broadcast(1.86713482e-3f);
    p = p * r + 9.01702046e-3f;
    p = p * r + 5.57999201e-2f;
    p = p * r + 2.40164444e-1f;
    p = p * r + 6.93151295e-1f;
    p = p * r + 1.f;
    return _mm512_scalef_ps(p, y);
#else
    return exp2_16(y);
#endif
}

template <class T> inline void find_peak(const T *x, int64_t count, Block &block) {
    f32x16 even = broadcast(NEGATIVE_INFINITY), odd = even;
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        f32x16 a, b;
        load32(x + i, a, b);
        even = larger(a, even);
        odd = larger(b, odd);
    }
    for_vectors(count - i, [&](int64_t j, int64_t n) { even = larger(load_logits(x + i + j, n), even); });
    even = larger(even, odd);
    store16(block.lanes, even);
    block.peak = max16(even);
}

template <class T> inline void add_up(const T *x, int64_t count, float factor, Block &block) {
    f32x16 sums[2] = {}, weighted[2] = {};
    const auto add = [&](f32x16 logits, int chain) {
        const f32x16 y = exponents(logits, block.peak, factor), e = power16(y);
        sums[chain] += e;
        weighted[chain] += y * e;
    };
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        // The next block: while this one is in use, nothing else would ask for it.
        __builtin_prefetch(x + i + BLOCK);
        if (sizeof(T) == 4) __builtin_prefetch(x + i + BLOCK + LANES);
        f32x16 a, b;
        load32(x + i, a, b);
        add(a, 0);
        add(b, 1);
    }
    for_vectors(count - i, [&](int64_t j, int64_t n) { add(load_logits(x + i + j, n), 0); });
    block.sum = sum16(sums[0] + sums[1]);
    block.weighted = sum16(weighted[0] + weighted[1]);
}

// A row of logits and what is known of its blocks.
template <class T> struct Row {
    const T *x;
    int64_t vocabulary;
    Block *blocks;

    static int64_t count_blocks(int64_t vocabulary) { return (vocabulary + BLOCK - 1) / BLOCK; }
    int64_t count() const { return count_blocks(vocabulary); }
    int64_t size(int64_t b) const { return std::min(BLOCK, vocabulary - b * BLOCK); }

    void scan(int64_t b, float factor, bool sums) const {
        find_peak(x + b * BLOCK, size(b), blocks[b]);
        if (sums) add_up(x + b * BLOCK, size(b), factor, blocks[b]);
    }
    float peak() const {
        float largest = NEGATIVE_INFINITY;
        for (int64_t b = 0; b < count(); ++b) largest = std::max(largest, blocks[b].peak);
        return largest;
    }
    // The first of the largest logits; 0 if all are -inf.
    int32_t argmax(float peak) const {
        for (int64_t b = 0; b < count(); ++b)
            for (int64_t i = 0; blocks[b].peak == peak && i < size(b); i += LANES) {
                const int64_t first = b * BLOCK + i;
                const Mask found = equal(load_logits(x + first, vocabulary - first), broadcast(peak));
                for (int lane = 0; !none(found); ++lane)
                    if (has(found, lane)) return (int32_t)(first + lane);
            }
        return 0;
    }
    // Sum of the weights 2^((logit - peak) factor) of a block.
    double mass(int64_t b, float peak, float factor) const {
        return (double)blocks[b].sum * power((blocks[b].peak - peak) * factor);
    }
};
