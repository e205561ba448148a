// Rotary embedding of one head in the half-split layout.
#pragma once

#include "simd.h"

#include <algorithm>

// out = x rotated by the angles cos and sin [half], backwards if `direction` is -1; out may be x.
template <class T>
inline void rotate(const T *x, const float *cos, const float *sin, int64_t half, T *out, float direction = 1.f) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int count = (int)std::min<int64_t>(LANES, half - i);
        const f32x16 a = load_first(x + i, count), b = load_first(x + half + i, count);
        const f32x16 c = load_first(cos + i, count), s = direction * load_first(sin + i, count);
        store_first(out + i, a * c - b * s, count);
        store_first(out + half + i, b * c + a * s, count);
    }
}
