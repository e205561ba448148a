// What is made of a row once its blocks have been scanned: its statistics, or a token drawn from it.
#pragma once

#include "sample/candidates.h"

template <class T> struct Logits {
    const T *x;  // [rows][vocabulary]
    int64_t stride, rows, vocabulary;

    Row<T> row(int64_t n, Block *blocks) const { return {x + n * stride, vocabulary, blocks}; }
};

template <class T> struct Statistics {
    Logits<T> logits;
    float *logsumexp, *entropy;  // [rows]
    int32_t *top;                // [rows][k]
    float *top_logits;
    int64_t k;

    void scan(int64_t n, int64_t b, Block *blocks) const { logits.row(n, blocks).scan(b, LOG2E, true); }
    void finish(int64_t n, Block *blocks, Candidates &candidates) const {
        const Row<T> row = logits.row(n, blocks);
        const float peak = row.peak();
        add_blocks(row, peak, n);
        if (k > 0) rank(row, peak, n, candidates);
    }

  private:
    void add_blocks(const Row<T> &row, float peak, int64_t n) const {
        double sum = 0, weighted = 0;
        for (int64_t b = 0; b < row.count(); ++b) {
            const float shift = std::max((row.blocks[b].peak - peak) * LOG2E, NEGLIGIBLE);
            const double factor = power(shift);
            sum += factor * row.blocks[b].sum;
            weighted += factor * (row.blocks[b].weighted + (double)shift * row.blocks[b].sum);
        }
        logsumexp[n] = std::isinf(peak) ? peak : (float)(peak + std::log(sum));
        entropy[n] = peak == NEGATIVE_INFINITY ? 0.f : (float)(std::log(sum) - weighted / sum * LN2);
    }
    void rank(const Row<T> &row, float peak, int64_t n, Candidates &candidates) const {
        candidates.reserve(row.vocabulary);
        candidates.collect_largest(row, peak, k);
        int32_t *ids = top + n * k;
        float *values = top_logits + n * k;
        candidates.rank(ids, values);
        // Should they be fewer than k, logits of -inf (and NaN) follow by id.
        int64_t found = candidates.count;
        for (int64_t i = 0; found < k; ++i)
            if (!(load_first(row.x + i, 1)[0] >= -FLT_MAX)) {
                ids[found] = (int32_t)i;
                values[found++] = NEGATIVE_INFINITY;
            }
    }
};

// A number of each row, or the same for all.
template <class N> struct Parameter {
    const N *each;
    N same;
    N at(int64_t n) const { return each ? each[n] : same; }
};

template <class T> struct Sampling {
    Logits<T> logits;
    const float *uniforms;  // [rows]
    Parameter<float> temperature;
    Parameter<int32_t> top_k;
    Parameter<float> top_p;
    int32_t *out;     // [rows]
    float *logprobs;  // [rows] or null

    void scan(int64_t n, int64_t b, Block *blocks) const {
        const bool sums = temperature.at(n) > 0 && !limits(top_k.at(n));
        logits.row(n, blocks).scan(b, factor(n), sums);
    }
    void finish(int64_t n, Block *blocks, Candidates &candidates) const {
        const Row<T> row = logits.row(n, blocks);
        const float peak = row.peak();
        double total = 1;
        if (!(temperature.at(n) > 0) || std::isinf(peak)) out[n] = row.argmax(peak);
        else if (limits(top_k.at(n)) || top_p.at(n) < 1) out[n] = restricted(row, peak, n, candidates, total);
        else out[n] = unrestricted(row, peak, n, total);
        if (!logprobs) return;
        const float weight = (load_first(row.x + out[n], 1)[0] - peak) * factor(n) * LN2;
        logprobs[n] = std::isinf(peak) || !(temperature.at(n) > 0) ? 0.f : (float)(weight - std::log(total));
    }

  private:
    bool limits(int32_t k) const { return k > 0 && k < logits.vocabulary; }
    // Finite, so that 0 times it is 0 however small the temperature.
    float factor(int64_t n) const { return std::min(LOG2E / temperature.at(n), FLT_MAX); }

    int32_t unrestricted(const Row<T> &row, float peak, int64_t n, double &total) const {
        total = mass(row, peak, n);
        double left = uniforms[n] * total, inside = 0;
        int64_t chosen = 0;
        for (int64_t b = 0; b < row.count(); ++b) {
            const double mass = row.mass(b, peak, factor(n));
            if (!(mass > 0)) continue;
            chosen = b, inside = left;  // should rounding leave nothing for the last one, it ends at its last token
            if (left < mass) break;
            left -= mass;
        }
        Draw draw(inside);
        const T *x = row.x + chosen * BLOCK;
        const int64_t size = row.size(chosen);
        for (int64_t i = 0; i < size; i += LANES)
            if (draw.step(power16(exponents(load_logits(x + i, size - i), peak, factor(n))), i)) break;
        return (int32_t)(chosen * BLOCK + draw.place());
    }
    int32_t restricted(const Row<T> &row, float peak, int64_t n, Candidates &candidates, double &total) const {
        candidates.reserve(row.vocabulary);
        const float share = std::max(top_p.at(n), FLT_MIN);
        if (limits(top_k.at(n))) {
            candidates.collect_largest(row, peak, top_k.at(n));
            total = candidates.weigh(peak, factor(n));
        } else {
            total = mass(row, peak, n);
            candidates.collect_mass(row, peak, factor(n), share, total);
        }
        if (share < 1) total = candidates.restrict_to(share * total);
        return candidates.id(candidates.draw(uniforms[n], total));
    }
    double mass(const Row<T> &row, float peak, int64_t n) const {
        double total = 0;
        for (int64_t b = 0; b < row.count(); ++b) total += row.mass(b, peak, factor(n));
        return total;
    }
};
