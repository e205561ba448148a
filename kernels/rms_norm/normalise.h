// RMS normalisation of one row.
#pragma once

#include "simd.h"

// Calls step(i, count) for whole vectors and, if something remains, for the rest.
template <class Step> inline void for_vectors(int64_t width, Step step) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) step(i, LANES);
    if (i < width) step(i, (int)(width - i));
}

// out = x / rms(x) * weight. With a residual, residual += x (+ steering) and that sum is what is normalised.
template <class T>
inline void normalise(const T *x, T *residual, const float *steering, T *out, const float *weight, float eps,
                      int64_t width) {
    f32x16 squares = broadcast(0.f);
    for_vectors(width, [&](int64_t i, int count) {
        f32x16 value = load_first(x + i, count);
        if (residual) {
            value += load_first(residual + i, count);
            if (steering) value += load_first(steering + i, count);
            store_first(residual + i, value, count);
            value = load_first(residual + i, count);  // rounded, as later layers will see it
        }
        squares += value * value;
    });
    const float inverse = 1.f / std::sqrt(sum16(squares) / width + eps);
    const T *source = residual ? residual : x;
    for_vectors(width, [&](int64_t i, int count) {
        store_first(out + i, load_first(source + i, count) * inverse * load_first(weight + i, count), count);
    });
}

template <class T> inline void normalise(const T *x, T *out, const float *weight, float eps, int64_t width) {
    normalise(x, (T *)nullptr, nullptr, out, weight, eps, width);
}
