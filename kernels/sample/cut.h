// Where a ranking of weighted values reaches a total weight, found without sorting.
#pragma once

#include "sample/lanes.h"

#include <algorithm>

// Sums of many weights: in fp32 for a while, so that rounding does not build up.
class Total {
  public:
    void add(f32x16 weights) {
        recent += weights;
        if (++count == 64) flush();
    }
    double value() {
        flush();
        return sum;
    }

  private:
    double sum = 0;
    f32x16 recent = {};
    int count = 0;
    void flush() {
        sum += sum16(recent);
        recent = f32x16{};
        count = 0;
    }
};

// Where a ranking by logit, then by lower id, is cut: tokens with a larger logit than `value`, and the first `ties` of
// those that equal it.
struct Cut {
    float value;
    int64_t ties;
};

struct Ends {
    float low, high;
};

// Values and their weights.
struct List {
    const float *x, *w;
};

inline Ends ends(const float *x, int64_t count) {
    f32x16 high = broadcast(NEGATIVE_INFINITY), low = high;  // `low` is negated
    for_vectors(count, [&](int64_t i, int64_t n) {
        const f32x16 v = load16(x + i), none = broadcast(NEGATIVE_INFINITY);
        high = larger(choose(first_lanes(n), v, none), high);
        low = larger(choose(first_lanes(n), -v, none), low);
    });
    return {-max16(low), max16(high)};
}

// Weights of all values above each of two pivots.
struct Masses {
    double above_low, above_high;
};

inline Masses masses(List list, int64_t count, Ends pivots) {
    Total above_low, above_high;
    for_vectors(count, [&](int64_t i, int64_t n) {
        const f32x16 value = load16(list.x + i), weight = load16(list.w + i);
        above_low.add(choose(greater(value, broadcast(pivots.low)) & first_lanes(n), weight, f32x16{}));
        above_high.add(choose(greater(value, broadcast(pivots.high)) & first_lanes(n), weight, f32x16{}));
    });
    return {above_low.value(), above_high.value()};
}

// Moves what is above kept.low and not above kept.high to x and w, where the list may already be; gives how much it is.
inline int64_t part(List list, int64_t count, Ends kept, float *x, float *w) {
    int64_t size = 0;
    for_vectors(count, [&](int64_t i, int64_t n) {
        const f32x16 value = load16(list.x + i), weight = load16(list.w + i);
        const Mask inside = greater(value, broadcast(kept.low)) & at_least(broadcast(kept.high), value);
        const Mask mask = inside & first_lanes(n);
        pack(x + size, value, mask);
        pack(w + size, weight, mask);
        size += lanes_of(mask);
    });
    return size;
}

constexpr int64_t MANY = 4096;        // values, from which on a sample of them tells where to look
constexpr int64_t SAMPLE = 64;        // vectors
constexpr double MARGIN = .05;        // of the total weight

inline Cut find_cut(List list, int64_t count, double target, float *spare_x, float *spare_w);

// Values between which the cut is likely to be: the same question, a little below and above, about a few vectors.
inline Ends likely(List list, int64_t count, double target) {
    float x[SAMPLE * LANES], w[SAMPLE * LANES], spare_x[(SAMPLE + 1) * LANES], spare_w[(SAMPLE + 1) * LANES];
    const int64_t step = count / LANES / SAMPLE * LANES;
    Total sampled, all;
    for (int64_t i = 0; i < SAMPLE; ++i) {
        store16(x + i * LANES, load16(list.x + i * step));
        store16(w + i * LANES, load16(list.w + i * step));
        sampled.add(load16(w + i * LANES));
    }
    for (int64_t i = 0; i + LANES <= count; i += LANES) all.add(load16(list.w + i));
    const double total = sampled.value(), share = target / all.value();
    const auto cut = [&](double at) {
        return find_cut({x, w}, SAMPLE * LANES, at * total, spare_x, spare_w).value;
    };
    return {cut(std::min(share + MARGIN, 1.)), cut(std::max(share - MARGIN, 0.))};
}

// Below the high end and not below the low one: then whatever is kept, something is left out.
inline Ends thirds(Ends range) {
    const float third = 1 / 3.f, low = range.low * (1 - third) + range.high * third;
    const float high = range.low * third + range.high * (1 - third);
    if (!(range.low <= low && low <= high && high < range.high)) return {range.low, range.low};
    return {low, high};
}

// How many equal weights reach what is missing: at least one.
inline int64_t ties(float weight, double missing, int64_t count) {
    if (!(weight > 0)) return count;
    return (int64_t)std::min(std::max(std::ceil(missing / weight), 1.), (double)count);
}

// The shortest beginning of the ranking whose weights add up to `target`, and at least one value. Narrows the range
// that the last value can be in, with two pivots at a time. No value is -inf. The spare arrays have room for the list and one vector.
inline Cut find_cut(List list, int64_t count, double target, float *spare_x, float *spare_w) {
    double above = 0;  // weight of what is known to be larger
    for (bool narrowed = true;;) {
        Ends pivots;
        if (count > MANY && narrowed) {
            pivots = likely(list, count, target - above);
        } else {
            const Ends range = ends(list.x, count);
            if (range.low == range.high) return {range.low, ties(list.w[0], target - above, count)};
            pivots = thirds(range);
        }
        const Masses mass = masses(list, count, pivots);
        Ends kept = {NEGATIVE_INFINITY, pivots.low};
        if (above + mass.above_high >= target) {
            kept = {pivots.high, std::numeric_limits<float>::infinity()};
        } else if (above + mass.above_low >= target) {
            kept = pivots;
            above += mass.above_high;
        } else {
            above += mass.above_low;
        }
        const int64_t rest = part(list, count, kept, spare_x, spare_w);
        narrowed = rest < count;
        count = rest;
        list = {spare_x, spare_w};
    }
}
