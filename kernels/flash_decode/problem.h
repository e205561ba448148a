// What a call of decode attention is about.
#pragma once

#include "flash_decode/spans.h"
#include "view.h"

// Which of the last tokens of a row its query heads see, when these are the nodes of a draft tree.
struct TreeMask {
    const uint64_t *bits = nullptr;    // [rows][nodes]: bit j of a node says that it sees token lengths[row] + j
    const int32_t *lengths = nullptr;  // [rows] tokens before the tree, which all see
    int64_t nodes = 0, node_heads = 1; // heads of a group are [node][node_heads], and what fills them up
};

template <class T> struct Problem {
    View<const T> q, keys, values;
    const Span *spans;  // [rows][selections][span_count]
    int64_t selections, span_count;
    const int32_t *cache_rows;
    const float *cos, *sin;
    float scale, softcap;
    T *out;      // [rows][heads][dim]
    float *lse;  // [rows][heads]
    int64_t rows, heads, kv_heads, dim;
    TreeMask tree;

    int64_t groups() const { return selections == heads ? heads : kv_heads; }
    int64_t group_heads() const { return heads / groups(); }
    int64_t items() const { return rows * groups(); }
    // The rows of a group follow each other, so that what they have in common is still in a cache.
    int64_t row(int64_t item) const { return item % rows; }
    int64_t group(int64_t item) const { return item / rows; }
    int64_t first_head(int64_t item) const { return group(item) * group_heads(); }
    int64_t kv_head(int64_t item) const { return first_head(item) * kv_heads / heads; }
    const Span *spans_of(int64_t item) const {
        const int64_t selection = selections == 1 ? 0 : group(item);
        return spans + (row(item) * selections + selection) * span_count;
    }
    int64_t tokens(int64_t item) const {
        int64_t sum = 0;
        for (const Span *span = spans_of(item), *end = span + span_count; span < end; ++span)
            sum += span->stop - span->start;
        return sum;
    }
    // Of keys and values that are read.
    int64_t elements() const {
        int64_t sum = 0;
        for (int64_t item = 0; item < items(); ++item) sum += tokens(item);
        return sum * dim * 2;
    }
};
