// The k largest of a row of scores, in ascending order of places; equal scores go to the lower place.
#pragma once

#include "simd.h"

#include <algorithm>
#include <vector>

constexpr int32_t NEVER = std::numeric_limits<int32_t>::min();  // below the key of every finite score

// Integers in the order of the scores. NaN and -inf are never chosen, and -0 equals 0.
static inline i32x16 keys_of(f32x16 x) {
    const i32x16 bits = (i32x16)(x + 0.f);
    const i32x16 ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    return x > NEGATIVE_INFINITY ? ordered : i32x16{} + NEVER;
}

// One thread's memory for a row.
class Chooser {
  public:
    // scores [count] of the places first, first + 1, ... -> out [k], filled up with -1.
    void choose(const float *scores, int64_t count, int32_t first, int64_t k, int32_t *out) {
        load(scores, count);
        const int64_t wanted = std::min(k, at_least(NEVER + 1));
        int64_t written = 0;
        if (wanted > 0) {
            const int32_t threshold = kth_largest(wanted);
            int64_t ties = wanted - (threshold == std::numeric_limits<int32_t>::max() ? 0 : at_least(threshold + 1));
            for (int64_t i = 0; written < wanted; ++i)
                if (keys[i] > threshold || (keys[i] == threshold && ties-- > 0)) out[written++] = first + (int32_t)i;
        }
        std::fill(out + written, out + k, -1);
    }

  private:
    std::vector<int32_t> keys;  // whole vectors, the rest NEVER

    void load(const float *scores, int64_t count) {
        keys.resize((count + LANES - 1) / LANES * LANES);
        for (int64_t i = 0; i < count; i += LANES) {
            const int valid = (int)std::min<int64_t>(LANES, count - i);
            const i32x16 key = keys_of(load_first(scores + i, valid));
            std::memcpy(&keys[i], &key, sizeof key);
            std::fill(&keys[i] + valid, &keys[i] + LANES, NEVER);
        }
    }

    int64_t at_least(int32_t key) const {
        i32x16 counts = {};
        for (size_t i = 0; i < keys.size(); i += LANES) {
            i32x16 x;
            std::memcpy(&x, &keys[i], sizeof x);
            counts -= x >= key;
        }
        int64_t sum = 0;
        for (int lane = 0; lane < LANES; ++lane) sum += counts[lane];
        return sum;
    }

    // Bit by bit from the highest: the largest key that k keys reach. A key that exactly k reach will do as well.
    int32_t kth_largest(int64_t k) const {
        uint32_t found = 0;  // 0 stands for the smallest integer
        for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
            const int64_t count = at_least((int32_t)((found | bit) ^ 0x80000000u));
            if (count >= k) found |= bit;
            if (count == k) break;
        }
        return (int32_t)(found ^ 0x80000000u);
    }
};
