// The running softmax of one query row and group of heads.
#pragma once

#include "simd.h"

#include <algorithm>

// Unnormalised sums of one group: output [heads][dim], in the element order of load32, and per head the largest logit
// so far and the sum of weights.
struct State {
    float *output, *totals, *largest;
    int64_t heads, dim;

    static int64_t size(int64_t heads, int64_t dim) { return heads * (dim + LANES + 1); }
    State(float *memory, int64_t heads, int64_t dim)
        : output(memory), totals(memory + heads * dim), largest(totals + heads * LANES), heads(heads), dim(dim) {}

    float total(int64_t head) const { return sum16(load16(totals + head * LANES)); }
    void reset() {
        std::fill_n(output, heads * dim, 0.f);
        std::fill_n(totals, heads * LANES, 0.f);
        std::fill_n(largest, heads, NEGATIVE_INFINITY);
    }
    static void scale(float *sums, float factor, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) store16(sums + i, load16(sums + i) * factor);
    }
    static void add(float *sums, const float *other, float factor, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) store16(sums + i, load16(sums + i) + load16(other + i) * factor);
    }
    // Re-express the sums of a head relative to a larger logit. Before the first token they are 0 and stay so.
    void raise(int64_t head, float new_largest) {
        const float factor = std::exp2(largest[head] - new_largest);
        scale(output + head * dim, factor, dim);
        scale(totals + head * LANES, factor, LANES);
        largest[head] = new_largest;
    }
    // What sums relative to another logit count beside those of a head, which is raised to it if it is larger.
    float beside(int64_t h, float other) {
        if (other > largest[h]) raise(h, other);
        return std::exp2(other - largest[h]);
    }
    void merge(const State &other) {
        for (int64_t h = 0; h < heads; ++h) {
            if (other.largest[h] == NEGATIVE_INFINITY) continue;
            const float factor = beside(h, other.largest[h]);
            add(output + h * dim, other.output + h * dim, factor, dim);
            add(totals + h * LANES, other.totals + h * LANES, factor, LANES);
        }
    }
    // Adds to one head sums that are in the order of the elements, relative to a logit of their own.
    template <class T> void add_plain(int64_t h, const float *plain, const float *weights, float relative_to) {
        const float factor = beside(h, relative_to);
        float *sums = output + h * dim;
        int64_t d = 0;
        for (; d + 32 <= dim; d += 32) {
            f32x16 first, second;
            halves((const T *)nullptr, load16(plain + d), load16(plain + d + LANES), first, second);
            store16(sums + d, load16(sums + d) + first * factor);
            store16(sums + d + LANES, load16(sums + d + LANES) + second * factor);
        }
        if (d < dim) add(sums + d, plain + d, factor, LANES);
        add(totals + h * LANES, weights, factor, LANES);
    }
    template <class T> void finish(T *out, float *lse) const {
        for (int64_t h = 0; h < heads; ++h) {
            const float sum = total(h), inverse = sum > 0 ? 1.f / sum : 0.f;
            const float *sums = output + h * dim;
            int64_t d = 0;
            for (; d + 32 <= dim; d += 32)
                store32(out + h * dim + d, load16(sums + d) * inverse, load16(sums + d + LANES) * inverse);
            if (d < dim) store16(out + h * dim + d, load16(sums + d) * inverse);
            lse[h] = sum > 0 ? (largest[h] + std::log2(sum)) * LN2 : NEGATIVE_INFINITY;
        }
    }
};
