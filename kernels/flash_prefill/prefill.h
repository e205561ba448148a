// The frame of every prefill: items (batch row, group of query heads, block of queries), dealt to a team of threads.
//
// Every item is computed alone and in one order of keys, so the result does not depend on the number of threads.
#pragma once

#include "flash_prefill/rows.h"
#include "view.h"

#include <omp.h>

template <class T> struct Prefill {
    const T *q;
    int64_t q_batch, q_token, q_head;
    View<const T> keys, values;
    const int32_t *starts, *counts;  // [batch]
    const int32_t *cache_rows;       // [batch], or null: batch row b reads cache row b
    T *out;                          // [batch][width][heads][dim]
    float *lse;                      // [batch][width][heads]
    int64_t batch, width, heads, kv_heads, dim;
    float scale, softcap;
    int64_t window;
    int64_t selections;  // 1, kv_heads or heads: how many query heads share a list of keys
    int64_t block;       // queries

    int64_t groups() const { return selections == heads ? heads : kv_heads; }
    int64_t group_heads() const { return heads / groups(); }
    int64_t blocks() const { return (width + block - 1) / block; }
    int64_t cache_row(int64_t b) const { return cache_rows == nullptr ? b : cache_rows[b]; }
    const T *key_rows(int64_t b, int64_t kv_head) const { return keys.at(cache_row(b), kv_head); }
    const T *value_rows(int64_t b, int64_t kv_head) const { return values.at(cache_row(b), kv_head); }
    // Multiply-adds at most, over `share` of the keys.
    int64_t work(double share = 1) const {
        int64_t sum = 0;
        for (int64_t b = 0; b < batch; ++b) sum += counts[b] * (starts[b] + counts[b]);
        return (int64_t)(share * (double)(sum * heads * dim));
    }
    Rules rules() const {
        const bool packs_bf16 = sizeof(typename Packed<T>::Element) == 2;
        return {scale, softcap, window, packs_bf16 && has_matrix_unit()};
    }
};

struct Item {
    int64_t b, group, block;  // the block of queries in a selection
    int64_t kv_head, selection;
    int64_t first, last;  // queries [first, last) of the row
    int64_t first_position, last_position;

    template <class T> Item(const Prefill<T> &p, int64_t index) {
        // The blocks of a group follow each other, long ones first: they share keys, and short ones fill the gaps.
        block = p.blocks() - 1 - index % p.blocks();
        group = index / p.blocks() % p.groups();
        b = index / p.blocks() / p.groups();
        kv_head = group * p.kv_heads / p.groups();
        selection = p.selections == 1 ? 0 : group;
        first = std::min<int64_t>(block * p.block, p.counts[b]);
        last = std::min<int64_t>(first + p.block, p.counts[b]);
        first_position = p.starts[b] + first;
        last_position = p.starts[b] + last - 1;
    }
};

constexpr int64_t WORTH_A_TEAM = 1 << 17;  // multiply-adds

template <class T> void load(const Prefill<T> &p, const Item &item, Rows<T> &rows) {
    rows.reset();
    for (int64_t i = item.first; i < item.last; ++i)
        for (int64_t h = 0; h < p.group_heads(); ++h) {
            const int64_t head = item.group * p.group_heads() + h;
            rows.add(p.q + item.b * p.q_batch + i * p.q_token + head * p.q_head, p.starts[item.b] + i);
        }
    rows.start();
}

template <class T> void store(const Prefill<T> &p, const Item &item, const Rows<T> &rows) {
    for (int64_t i = item.block * p.block; i < std::min((item.block + 1) * p.block, p.width); ++i)
        for (int64_t h = 0; h < p.group_heads(); ++h) {
            const int64_t to = (item.b * p.width + i) * p.heads + item.group * p.group_heads() + h;
            if (i < item.last) {
                rows.finish((i - item.first) * p.group_heads() + h, p.out + to * p.dim, p.lse + to);
            } else {  // padding
                std::memset(p.out + to * p.dim, 0, p.dim * sizeof(T));
                p.lse[to] = NEGATIVE_INFINITY;
            }
        }
}

// Called by every thread of a team. `source.visit(item, rows)` lets the rows attend to pieces of keys.
template <class T, class Source> void attend_all(const Prefill<T> &p, Source &source) {
    const MatrixUnit unit(p.rules().matrix_unit);
    Rows<T> rows(p.rules(), {p.dim}, std::min(p.block, p.width) * p.group_heads());
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < p.batch * p.groups() * p.blocks(); ++index) {
        const Item item(p, index);
        load(p, item, rows);
        if (item.first < item.last) source.visit(item, rows);
        store(p, item, rows);
    }
}
