// Merge of the partial attention results of one head through their log-sum-exp.
#pragma once

#include "simd.h"
#include "view.h"

#include <algorithm>
#include <vector>

template <class T, class O> class Merger {
  public:
    Merger(const View<const T> *outs, const View<const float> *lses, int64_t parts, int64_t dim)
        : outs(outs), lses(lses), parts(parts), dim(dim), weights((parts + LANES - 1) / LANES * LANES), used(parts) {}

    // Head h of row n; gives its merged log-sum-exp. `out` may be the head of one of the parts.
    float merge(int64_t n, int64_t h, O *out) {
        const float lse = weigh(n, h);
        count = 0;
        for (int64_t f = 0; f < parts; ++f)
            if (*lses[f].at(n, h) != NEGATIVE_INFINITY) used[count++] = f;
        int64_t d = 0;
        for (; d + 4 * LANES <= dim; d += 4 * LANES) columns<4>(n, h, d, out);
        for (; d + LANES <= dim; d += LANES) columns<1>(n, h, d, out);
        if (d < dim) rest(n, h, d, out);
        return lse;
    }

  private:
    static constexpr float LEAST = -3e38f;  // finite, so that parts without weight alone give weights of 0

    // weights[f] = exp(lse_f - lse), padded with zeros.
    float weigh(int64_t n, int64_t h) {
        float largest = NEGATIVE_INFINITY;
        for (int64_t f = 0; f < parts; ++f) largest = std::max(largest, *lses[f].at(n, h));
        largest = std::max(largest, LEAST);
        std::fill(weights.begin(), weights.end(), NEGATIVE_INFINITY);
        for (int64_t f = 0; f < parts; ++f) weights[f] = (*lses[f].at(n, h) - largest) * LOG2E;
        f32x16 sums = broadcast(0.f);
        for (size_t f = 0; f < weights.size(); f += LANES) {
            const f32x16 weight = exp2_16(load16(&weights[f]));
            store16(&weights[f], weight);
            sums += weight;
        }
        const float sum = sum16(sums);
        if (sum == 0) return NEGATIVE_INFINITY;
        for (size_t f = 0; f < weights.size(); f += LANES) store16(&weights[f], load16(&weights[f]) / sum);
        return largest + std::log(sum);
    }

    template <int C> void columns(int64_t n, int64_t h, int64_t d, O *out) const {
        f32x16 sums[C] = {};
        for (int64_t i = 0; i < count; ++i) {
            const T *part = outs[used[i]].at(n, h) + d;
            for (int c = 0; c < C; ++c) sums[c] += weights[used[i]] * load16(part + c * LANES);
        }
        for (int c = 0; c < C; ++c) store16(out + d + c * LANES, sums[c]);
    }

    void rest(int64_t n, int64_t h, int64_t d, O *out) const {
        f32x16 sum = broadcast(0.f);
        for (int64_t i = 0; i < count; ++i)
            sum += weights[used[i]] * load_first(outs[used[i]].at(n, h) + d, (int)(dim - d));
        store_first(out + d, sum, (int)(dim - d));
    }

    const View<const T> *outs;
    const View<const float> *lses;
    const int64_t parts, dim;
    std::vector<float> weights;
    std::vector<int64_t> used;  // the parts that have any weight
    int64_t count = 0;
};
