// Exponential moving averages along time, over a team of threads: rows of the batch and, if these are too few, parts of
// the features. A step needs the one before it, but features are independent, and a row of them is what memory streams.
#include "simd.h"

#include <algorithm>
#include <omp.h>
#include <vector>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements

// [batch][steps][dim], each leading dimension with its own stride.
template <class T> struct Steps {
    T *data;
    int64_t batch_stride, step_stride;
    T *at(int64_t b, int64_t t) const { return data + b * batch_stride + t * step_stride; }
};

struct Shape {
    int64_t batch, steps, dim;
};

// Features [begin, end) of a row of the batch.
struct Part {
    int64_t b, index, begin, end;
};

// Calls work(part, parts of a row) for all parts.
template <class Work> void for_parts(const Shape &shape, int64_t threads, Work work) {
    const int size = team(threads, shape.batch * shape.steps * shape.dim, WORTH_A_TEAM);
    const int64_t vectors = (shape.dim + LANES - 1) / LANES;
    const int64_t parts = shape.batch >= size ? 1 : std::min<int64_t>(size, vectors);
#pragma omp parallel for schedule(static) num_threads(size)
    for (int64_t i = 0; i < shape.batch * parts; ++i) {
        const Share share(vectors, i % parts, parts);
        work(Part{i / parts, i % parts, share.begin * LANES, std::min(share.end * LANES, shape.dim)}, parts);
    }
}

template <class Step> inline void for_features(const Part &part, Step step) {
    int64_t d = part.begin;
    for (; d + LANES <= part.end; d += LANES) step(d, LANES);
    if (d < part.end) step(d, (int)(part.end - d));
}

// `state` [batch][dim] is the first value and becomes the last one.
template <class T>
void scan(Steps<const T> z, const float *p, Steps<T> y, float *state, const Shape &shape, int64_t threads) {
    for_parts(shape, threads, [&](const Part &part, int64_t) {
        float *average = state + part.b * shape.dim;
        for (int64_t t = 0; t < shape.steps; ++t) {
            const float weight = p[part.b * shape.steps + t], rest = 1.f - weight;
            const T *from = z.at(part.b, t);
            T *to = y.at(part.b, t);
            for_features(part, [&](int64_t d, int count) {
                const f32x16 next = weight * load_first(from + d, count) + rest * load_first(average + d, count);
                store_first(average + d, next, count);
                store_first(to + d, next, count);
            });
        }
    });
}

// What arrives at a step is the gradient of its own output and what the later steps pass down. `passed` [batch][dim] is
// the gradient in the last state, and becomes that in the first.
template <class T>
void gradients(Steps<const T> dy, Steps<const T> y, Steps<const T> z, const float *p, const float *initial, Steps<T> dz,
               float *dp, float *passed, const Shape &shape, int64_t threads) {
    std::vector<float> partial(threads * shape.batch * shape.steps);
    int64_t parts_of_a_row = 1;
    for_parts(shape, threads, [&](const Part &part, int64_t parts) {
        if (part.b == 0 && part.index == 0) parts_of_a_row = parts;
        float *down = passed + part.b * shape.dim;
        for (int64_t t = shape.steps - 1; t >= 0; --t) {
            const float weight = p[part.b * shape.steps + t], rest = 1.f - weight;
            const T *dy_t = dy.at(part.b, t), *z_t = z.at(part.b, t), *before = t ? y.at(part.b, t - 1) : nullptr;
            f32x16 sum = {};
            for_features(part, [&](int64_t d, int count) {
                const f32x16 gradient = load_first(dy_t + d, count) + load_first(down + d, count);
                const f32x16 previous = before ? load_first(before + d, count)
                                               : load_first(initial + part.b * shape.dim + d, count);
                sum += gradient * (load_first(z_t + d, count) - previous);
                store_first(dz.at(part.b, t) + d, weight * gradient, count);
                store_first(down + d, rest * gradient, count);
            });
            partial[(part.index * shape.batch + part.b) * shape.steps + t] = sum16(sum);
        }
    });
    const int64_t count = shape.batch * shape.steps;
    for (int64_t part = 0; part < parts_of_a_row; ++part)
        for (int64_t i = 0; i < count; ++i) dp[i] += partial[part * count + i];
}

}  // namespace

#define EMA_SCAN(SUFFIX, T)                                                                                           \
    extern "C" void ema_scan_##SUFFIX(const T *z, int64_t z_batch, int64_t z_step, const float *p, T *y,             \
                                      float *state, int64_t batch, int64_t steps, int64_t dim, int64_t threads) {    \
        scan<T>({z, z_batch, z_step}, p, {y, steps * dim, dim}, state, {batch, steps, dim}, threads);                 \
    }                                                                                                                 \
    extern "C" void ema_backward_##SUFFIX(const T *dy, const T *y, const T *z, int64_t z_batch, int64_t z_step,      \
                                          const float *p, const float *initial, T *dz, float *dp, float *passed,     \
                                          int64_t batch, int64_t steps, int64_t dim, int64_t threads) {              \
        const int64_t row = steps * dim;                                                                              \
        gradients<T>({dy, row, dim}, {y, row, dim}, {z, z_batch, z_step}, p, initial, {dz, row, dim}, dp, passed,    \
                     {batch, steps, dim}, threads);                                                                   \
    }

EMA_SCAN(f32, float)
EMA_SCAN(bf16, bf16)
