// Attention to single tokens of a list: packed UNIT at a time for all rows of an item.
#pragma once

#include "flash_prefill/prefill.h"

template <class T> class Gatherer {
    using E = typename Packed<T>::Element;

  public:
    explicit Gatherer(const Prefill<T> &p) : p(p), layout{p.dim}, memory(buffer<E>(layout.elements())) {}

    // Tokens that no query of the item may see, and negative ones, are left out before anything of them is read.
    void add(const Item &item, int64_t token, Rows<T> &rows) {
        if (token < 0 || token > item.last_position || token <= item.first_position - p.window) return;
        prefetch(p.key_rows(item.b, item.kv_head) + token * p.dim);
        prefetch(p.value_rows(item.b, item.kv_head) + token * p.dim);
        tokens[count++] = (int32_t)token;
        if (count == UNIT) flush(item, rows);
    }

    void flush(const Item &item, Rows<T> &rows) {
        if (count == 0) return;
        const int width = (count + 31) / 32 * 32;
        const auto [lowest, highest] = std::minmax_element(tokens, tokens + count);
        Piece<E> piece{nullptr, nullptr, tokens, *lowest, width > count ? NO_TOKEN : *highest, width};
        const Unit<E> unit = layout.unit(memory.get(), 0);
        pack_unit(p.key_rows(item.b, item.kv_head), p.value_rows(item.b, item.kv_head), layout, unit, width,
                  [&](int64_t i) { return i < count ? tokens[i] : -1; });
        std::fill(tokens + count, tokens + width, (int32_t)NO_TOKEN);
        piece.keys = unit.keys;
        piece.values = unit.values;
        rows.attend(piece);
        count = 0;
    }

  private:
    void prefetch(const T *row) const {
        for (int64_t d = 0; d < p.dim; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + d, 0, 2);
    }

    const Prefill<T> &p;
    const Layout<T> layout;
    Buffer<E> memory;
    int32_t tokens[UNIT];
    int count = 0;
};
