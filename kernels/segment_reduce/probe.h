// Activation-aware pooling of query rows: rows that deviate from the others weigh more (ActQKV, arXiv 2502.13542).
//
// Two passes over the rows: mean and variance of every column, then the weight of every row and, while the row is in
// the L1 cache, its share of the probe. Threads own columns in the first pass and rows in the second.
#pragma once

#include "segment_reduce/columns.h"

#include <cmath>
#include <vector>

template <class T> class ProbePool {
  public:
    // x [rows][columns]. mean and variance [columns] of the caller, or null: those of the rows.
    ProbePool(const T *x, int64_t stride, int64_t rows, int64_t columns, const float *given_mean,
              const float *given_variance, int64_t threads)
        : x(x), stride(stride), rows(rows), columns(columns), given(given_mean), mean(columns), inverse(columns),
          sums(threads * 2 * columns), weights(threads) {
        if (!given) return;
        std::copy_n(given_mean, columns, mean.begin());
        std::copy_n(given_variance, columns, inverse.begin());
    }

    void statistics(int64_t thread, int64_t threads) {
        const Share share(given ? 0 : (columns + LANES - 1) / LANES, thread, threads);
        for_panels(share.begin * LANES, std::min(share.end * LANES, columns), [&](auto panel) {
            constexpr int V = decltype(panel)::VECTORS;
            f32x16 means[V], variances[V];
            sum_rows(rows, means, [&](int64_t j, int v) { return panel.load(x + j * stride, v); });
            for (int v = 0; v < V; ++v) means[v] /= (float)rows;
            sum_rows(rows, variances, [&](int64_t j, int v) {
                const f32x16 deviation = panel.load(x + j * stride, v) - means[v];
                return deviation * deviation;
            });
            for (int v = 0; v < V; ++v) panel.store(mean.data(), v, means[v]);
            for (int v = 0; v < V; ++v) panel.store(inverse.data(), v, variances[v] / (float)rows);
        });
    }

    // Variances become the factors of squared deviations: 1 / (variance + mean variance / 100).
    void invert() {
        double total = 0;
        for (float variance : inverse) total += variance;
        const float floor = (float)(total / columns / 100);
        for (float &variance : inverse) variance = variance + floor > 0 ? 1.f / (variance + floor) : 0.f;
    }

    void weigh(int64_t thread, int64_t threads) {
        float *total = &sums[thread * 2 * columns], *block = total + columns;
        const Share share(rows, thread, threads);
        double weight = 0;
        for (int64_t begin = share.begin; begin < share.end; begin += BLOCK_ROWS) {
            for (int64_t j = begin; j < std::min(begin + BLOCK_ROWS, share.end); ++j) {
                const float score = deviation(x + j * stride);
                accumulate(block, x + j * stride, score);
                weight += score;
            }
            for (int64_t k = 0; k < columns; ++k) total[k] += block[k];
            std::fill_n(block, columns, 0.f);
        }
        weights[thread] = weight;
    }

    // Rows that do not deviate at all weigh the same.
    void finish(float *out, int64_t threads) {
        double weight = 0;
        for (double part : weights) weight += part;
        if (!(weight != 0)) return average(out);
        for (int64_t k = 0; k < columns; ++k) {
            float sum = 0;
            for (int64_t thread = 0; thread < threads; ++thread) sum += sums[thread * 2 * columns + k];
            out[k] = (float)(sum / weight);
        }
    }

  private:
    const T *x;
    int64_t stride, rows, columns;
    bool given;
    std::vector<float> mean, inverse;  // [columns]; `inverse` holds variances first
    std::vector<float> sums;           // per thread: weighted rows of all blocks, and of the current one
    std::vector<double> weights;       // per thread

    float deviation(const T *row) const {
        f32x16 sum = {};
        for_panels(0, columns, [&](auto panel) {
            for (int v = 0; v < panel.VECTORS; ++v) {
                const f32x16 difference = panel.load(row, v) - panel.load(mean.data(), v);
                sum += difference * difference * panel.load(inverse.data(), v);
            }
        });
        return sum16(sum) / columns;
    }
    void accumulate(float *block, const T *row, float weight) const {
        for_panels(0, columns, [&](auto panel) {
            for (int v = 0; v < panel.VECTORS; ++v)
                panel.store(block, v, panel.load(block, v) + weight * panel.load(row, v));
        });
    }
    void average(float *out) const {
        for_panels(0, columns, [&](auto panel) {
            f32x16 total[panel.VECTORS];
            sum_rows(rows, total, [&](int64_t j, int v) { return panel.load(x + j * stride, v); });
            for (int v = 0; v < panel.VECTORS; ++v) panel.store(out, v, total[v] / (float)std::max<int64_t>(rows, 1));
        });
    }
};
