// Tokens that may be among the most likely ones, and the exact choice of those that are.
#pragma once

#include "sample/cut.h"
#include "sample/scan.h"

#include <vector>

// Inverse CDF: the first place at which the running sum of weights exceeds `left`. Should rounding leave none, the last
// one that has any weight.
class Draw {
  public:
    explicit Draw(double left) : left(std::max(0., left)) {}
    // Whether it is among these places.
    bool step(f32x16 weights, int64_t first) {
        const double sum = sum16(weights);
        if (!(sum > 0)) return false;
        latest = weights, start = first;
        if (left >= sum) {
            left -= sum;
            return false;
        }
        for (lane = 0; lane < LANES; left -= weights[lane++])
            if (left < weights[lane]) return true;
        return false;  // rounding: it is the next one that has any weight
    }
    int64_t place() const {
        int found = std::min(lane, LANES - 1);
        while (found > 0 && !(latest[found] > 0)) --found;
        return start + found;
    }

  private:
    double left;
    f32x16 latest = {};
    int64_t start = 0;
    int lane = LANES;
};

// A list of tokens in ascending order of ids. One thread's memory, kept from call to call.
class Candidates {
  public:
    int64_t count = 0;

    // The arrays have room for a vector more, since vectors are written whole, and for another: see `bound`.
    void reserve(int64_t tokens) {
        const size_t room = tokens + 2 * LANES;
        if (ids.size() >= room) return;
        for (auto *array : {&logits, &weights, &spare_logits, &spare_weights}) array->resize(room);
        ids.resize(room);
    }
    int32_t id(int64_t i) const { return ids[i]; }

    // The tokens of a row whose logits are at least `least`, which is not -inf.
    template <class T> void collect(const Row<T> &row, float least) {
        int64_t size = 0;
        for (int64_t b = 0; b < row.count(); ++b) {
            if (!(row.blocks[b].peak >= least)) continue;
            const int64_t first = b * BLOCK;
            for_vectors(row.size(b), [&](int64_t i, int64_t n) {
                const f32x16 x = load_logits(row.x + first + i, n);
                const Mask mask = at_least(x, broadcast(least));
                if (none(mask)) return;
                pack(&logits[size], x, mask);
                pack(&ids[size], LANE_NUMBERS + (int32_t)(first + i), mask);
                size += lanes_of(mask);
            });
        }
        count = size;
    }

    // Weights 2^((logit - peak) factor); gives their sum.
    double weigh(float peak, float factor) {
        Total total;
        for_vectors(count, [&](int64_t i, int64_t n) {
            const f32x16 e = power16(exponents(load16(&logits[i]), peak, factor));
            store16(&weights[i], choose(first_lanes(n), e, f32x16{}));
            total.add(load16(&weights[i]));
        });
        return total.value();
    }

    // Weights of 0 for all but the largest logits, the fewest that have `target` together, and at least one; gives what
    // these have. Lists can be long here, and shortening one takes longer.
    double restrict_to(double target) {
        Cut cut = this->cut(target);
        Total total;
        for_vectors(count, [&](int64_t i, int64_t n) {
            const f32x16 weight = load16(&weights[i]);
            store16(&weights[i], choose(chosen(cut, i, n), weight, f32x16{}));
            total.add(load16(&weights[i]));
        });
        return total.value();
    }

    // Ids and logits in descending order, ties by id.
    void rank(int32_t *top, float *values) {
        order.resize(count);
        for (int64_t i = 0; i < count; ++i) order[i] = (int32_t)i;
        std::sort(order.begin(), order.end(), [&](int32_t i, int32_t j) {
            return logits[i] > logits[j] || (logits[i] == logits[j] && i < j);
        });
        for (int64_t i = 0; i < count; ++i) {
            top[i] = ids[order[i]];
            values[i] = logits[order[i]];
        }
    }

    // The k largest tokens of a row, or all whose logits are not -inf if they are fewer.
    template <class T> void collect_largest(const Row<T> &row, float peak, int64_t k) {
        collect(row, k == 1 ? std::max(peak, -FLT_MAX) : bound(row, k));
        if (count <= k) return;
        std::fill_n(weights.begin(), count, 1.f);
        keep(cut((double)k));
    }

    // Tokens that have at least the `share` of the `total` weight of a row, and their weights.
    template <class T> void collect_mass(const Row<T> &row, float peak, float factor, float share, double total) {
        // Tokens with smaller logits have, all together, no more than the rest.
        const double weight = .999 * (1 - (double)share) * total / row.vocabulary;
        const float least = std::max(-FLT_MAX, (float)(peak + std::log2(weight) / factor));
        // If the largest logits of the lanes have most of the weight, they tell that fewer will do.
        list_lanes(row);
        const double listed = weigh(peak, factor);
        if (listed > total / 2) {
            collect(row, std::max(least, cut(listed * (1 - (1 - share) / 4)).value));
            if (weigh(peak, factor) >= share * total) return;
        }
        collect(row, least);
        weigh(peak, factor);
    }

    // Place in the list of the token at which the running sum of weights exceeds `share` of their `total`.
    int64_t draw(float share, double total) const {
        Draw draw(share * total);
        for (int64_t i = 0; i < count; i += LANES)
            if (draw.step(choose(first_lanes(count - i), load16(&weights[i]), f32x16{}), i)) break;
        return draw.place();
    }

  private:
    std::vector<float> logits, weights, spare_logits, spare_weights;
    std::vector<int32_t> ids, order;

    // The list becomes the largest logits of the lanes of a row's blocks; none is -inf.
    template <class T> void list_lanes(const Row<T> &row) {
        count = row.count() * LANES;
        for (int64_t b = 0; b < row.count(); ++b)
            store16(&logits[b * LANES], larger(load16(row.blocks[b].lanes), broadcast(-FLT_MAX)));
    }
    // Not above the k-th largest logit of a row, since k places hold at least that; not -inf.
    template <class T> float bound(const Row<T> &row, int64_t k) {
        list_lanes(row);
        std::fill_n(weights.begin(), count, 1.f);
        return k > count ? -FLT_MAX : cut((double)k).value;
    }

    Cut cut(double target) {
        return find_cut({logits.data(), weights.data()}, count, target, spare_logits.data(), spare_weights.data());
    }
    // Those of n tokens from the i-th on that are before the cut, whose ties are counted down.
    Mask chosen(Cut &cut, int64_t i, int64_t n) const {
        const f32x16 value = load16(&logits[i]);
        Mask mask = greater(value, broadcast(cut.value)) & first_lanes(n);
        const Mask ties = equal(value, broadcast(cut.value)) & first_lanes(n);
        if (none(ties)) return mask;
        for (int lane = 0; lane < LANES; ++lane)
            if (has(ties, lane) && cut.ties-- > 0) mask |= lane_mask(lane);
        return mask;
    }
    void keep(Cut cut) {
        int64_t size = 0;
        for_vectors(count, [&](int64_t i, int64_t n) {
            const f32x16 value = load16(&logits[i]);
            const i32x16 id = load16(&ids[i]);
            const Mask mask = chosen(cut, i, n);
            pack(&logits[size], value, mask);
            pack(&ids[size], id, mask);
            size += lanes_of(mask);
        });
        count = size;
    }
};
