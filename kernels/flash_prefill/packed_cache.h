// What a call may read of the cache, packed once for all query heads and blocks.
#pragma once

#include "flash_prefill/prefill.h"

#include <vector>

template <class T> class PackedCache {
    using E = typename Packed<T>::Element;

  public:
    explicit PackedCache(const Prefill<T> &p) : p(p), layout{p.dim}, first_units(1, 0) {
        for (int64_t b = 0; b < p.batch; ++b) {
            const int64_t units = p.counts[b] == 0 ? 0 : (stop(b) + UNIT - 1) / UNIT - begin(b) / UNIT;
            first_units.push_back(first_units.back() + units * p.kv_heads);
        }
        memory = buffer<E>(first_units.back() * layout.elements());
    }

    // Inside a team, all of it.
    void pack() {
#pragma omp for schedule(static)
        for (int64_t index = 0; index < first_units.back(); ++index) {
            const int64_t b = std::upper_bound(first_units.begin(), first_units.end(), index) - first_units.begin() - 1;
            const int64_t kv_head = (index - first_units[b]) / units(b);
            const int64_t start = ((index - first_units[b]) % units(b) + begin(b) / UNIT) * UNIT;
            pack_unit(p.key_rows(b, kv_head), p.value_rows(b, kv_head), layout, layout.unit(memory.get(), index), UNIT,
                      [&](int64_t i) { return start + i >= begin(b) && start + i < stop(b) ? start + i : -1; });
        }
    }

    // Tokens [first, first + width) of a unit, both multiples of 32.
    Piece<E> piece(const Item &item, int64_t first, int64_t width) const {
        const int64_t index = first_units[item.b] + item.kv_head * units(item.b) + first / UNIT - begin(item.b) / UNIT;
        const Unit<E> unit = layout.unit(memory.get(), index);
        const int64_t skipped = first % UNIT;
        return {unit.keys + skipped * Layout<T>::PAIR, unit.values + skipped * p.dim, nullptr, first,
                first + width - 1, width};
    }

  private:
    // Tokens [begin, stop) of a row are what its queries see.
    int64_t begin(int64_t b) const { return std::max<int64_t>(0, p.starts[b] + 1 - p.window); }
    int64_t stop(int64_t b) const { return p.starts[b] + p.counts[b]; }
    int64_t units(int64_t b) const { return (first_units[b + 1] - first_units[b]) / p.kv_heads; }

    const Prefill<T> &p;
    const Layout<T> layout;
    std::vector<int64_t> first_units;  // by batch row
    Buffer<E> memory;
};

constexpr int64_t STEP = 32;  // tokens: a run of keys that begins and ends at multiples is used as the cache is packed

// Tokens [first, stop), multiples of STEP, as far as the item sees them.
template <class T>
void attend_run(const PackedCache<T> &cache, const Item &item, int64_t first, int64_t stop, Rows<T> &rows) {
    stop = std::min(stop, item.last_position / STEP * STEP + STEP);
    while (first < stop) {
        const int64_t end = std::min(stop, (first / UNIT + 1) * UNIT);
        rows.attend(cache.piece(item, first, end - first));
        first = end;
    }
}
