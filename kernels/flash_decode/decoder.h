// Split-KV exact attention of query rows over token spans of a KV cache (flash-decoding).
//
// An item is one query row and one group of query heads that read the same spans of one KV head: the H/G heads of a
// KV head, or a single head when every query head has its own spans. The tokens of all items form one long sequence
// that is cut into equal parts, one per thread, wherever the cuts fall; an item cut in two is merged through its
// log-sum-exp. So any number of rows, heads and splits is balanced, and the result depends on the team size only.
//
// Logits are kept in units of log2, so that the softmax needs 2^x only.
#pragma once

#include "flash_decode/spans.h"
#include "flash_decode/state.h"
#include "rope/rotate.h"
#include "simd.h"
#include "view.h"

#include <algorithm>
#include <type_traits>
#include <vector>

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

// ---- one block of tokens -----------------------------------------------------------------------------------------

// The rows of a tile in order. Most tiles are ADJACENT rows, and walking those by a fixed stride is a third faster.
template <bool ADJACENT, class T> struct Rows {
    const T *base, *row;
    const Tile &tile;
    int64_t dim;
    Rows(const T *base, const Tile &tile, int64_t dim)
        : base(base), row(base + tile.token[0] * dim), tile(tile), dim(dim) {}
    const T *at(int t) const { return ADJACENT ? row + t * dim : base + tile.token[t] * dim; }
};

// products[h]: dot products of H queries with the 16 keys of a tile. DIM is the head dimension where it is known at
// compile time. The loop over keys is not unrolled: the hardware prefetches best when each load has one fixed stride.
template <bool ADJACENT, int H, int DIM, class T>
inline void dots_of(const T *queries, const T *base, const Tile &tile, int64_t any_dim, f32x16 *products) {
    using D = Dot<T>;
    const int64_t dim = DIM ? DIM : any_dim;
    const Rows<ADJACENT, T> rows(base, tile, dim);
    f32x16 sums[H][LANES];
#pragma GCC unroll 1
    for (int t = 0; t < LANES; ++t) {
        const T *keys = rows.at(t);
        f32x16 sum[H] = {};
        int64_t d = 0;
#pragma GCC unroll 8
        for (; d + D::WIDTH <= dim; d += D::WIDTH)
            for (int h = 0; h < H; ++h) sum[h] = D::step(sum[h], queries + h * dim + d, keys + d);
        if (d < dim)  // half a step, as dim is a multiple of 16
            for (int h = 0; h < H; ++h) sum[h] += load16(queries + h * dim + d) * load16(keys + d);
        for (int h = 0; h < H; ++h) sums[h][t] = sum[h];
    }
    for (int h = 0; h < H; ++h) products[h] = sums16(sums[h]);
}

template <bool ADJACENT, int H, class T>
inline void dots_at(const T *queries, const T *base, const Tile &tile, int64_t dim, f32x16 *products) {
    if (dim == 64) dots_of<ADJACENT, H, 64>(queries, base, tile, dim, products);
    else if (dim == 128) dots_of<ADJACENT, H, 128>(queries, base, tile, dim, products);
    else dots_of<ADJACENT, H, 0>(queries, base, tile, dim, products);
}

template <int H, class T>
inline void dots(const T *queries, const T *base, const Tile &tile, int64_t dim, f32x16 *products) {
    if (tile.adjacent) dots_at<true, H>(queries, base, tile, dim, products);
    else dots_at<false, H>(queries, base, tile, dim, products);
}

// The hardware follows neither jumps between spans nor page borders: ask for rows of the block after this one.
template <class T> inline void prefetch(const T *base, int64_t dim, const Tile &tile) {
    for (int t = 0; t < tile.count; ++t) {
        const T *row = base + tile.token[t] * dim;
        for (int64_t d = 0; d < dim; d += 64 / sizeof(T)) __builtin_prefetch(row + d);
    }
}

// output[h][...] += sum over tokens of weights[h][t] values[t][...] for H heads and 32 P columns (16 for P = 0).
template <int H, int P, class T>
inline void weigh(const float *weights, const T *values, int64_t dim, const Block &block, float *output) {
    constexpr int C = P ? 2 * P : 1;
    f32x16 sums[H][C];
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) sums[h][c] = load16(output + h * dim + c * LANES);
    for (int i = 0; i < block.size; ++i, weights += LANES) {
        const Tile &tile = block.tiles[i];
        const auto add = [&](auto rows) {
            for (int t = 0; t < tile.count; ++t) {
                const T *row = rows.at(t);
                f32x16 value[C];
                if (P == 0) value[0] = load16(row);
                for (int p = 0; p < P; ++p) load32(row + p * 32, value[2 * p], value[2 * p + 1]);
                for (int h = 0; h < H; ++h)
                    for (int c = 0; c < C; ++c) sums[h][c] += weights[h * Block::TOKENS + t] * value[c];
            }
        };
        if (tile.adjacent) add(Rows<true, T>(values, tile, dim));
        else add(Rows<false, T>(values, tile, dim));
    }
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) store16(output + h * dim + c * LANES, sums[h][c]);
}

template <int H, class T>
inline void weigh_columns(const float *weights, const T *values, int64_t dim, const Block &block, float *output) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weigh<H, 2>(weights, values + d, dim, block, output + d);
    if (d + 32 <= dim) {
        weigh<H, 1>(weights, values + d, dim, block, output + d);
        d += 32;
    }
    if (d < dim) weigh<H, 0>(weights, values + d, dim, block, output + d);
}

// Calls work(first_head, integral_constant H) for tiles of up to four heads.
template <class Work> inline void for_head_tiles(int64_t heads, Work work) {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) work(h, std::integral_constant<int, 4>());
    switch (heads - h) {
    case 3: work(h, std::integral_constant<int, 3>()); break;
    case 2: work(h, std::integral_constant<int, 2>()); break;
    case 1: work(h, std::integral_constant<int, 1>()); break;
    }
}

template <class T> class Worker {
  public:
    Worker(const Problem<T> &problem)
        : problem(problem), dim(problem.dim), heads(problem.group_heads()), queries(heads * dim),
          weights(heads * Block::TOKENS) {}

    // Add tokens [begin, end) of the item's selection to the state.
    void run(int64_t item, int64_t begin, int64_t end, State &state) {
        load_queries(item);
        const int64_t row = problem.cache_rows[problem.row(item)], kv_head = problem.kv_head(item);
        const T *keys = problem.keys.at(row, kv_head), *values = problem.values.at(row, kv_head);
        // One page of keys: the block in work and the one being prefetched share the L1 cache.
        const int64_t tiles = std::clamp<int64_t>(4096 / (LANES * dim * sizeof(T)), 1, Block::MOST_TILES);
        Cursor cursor(problem.spans_of(item), begin, end, (int)tiles, problem.cos != nullptr);
        Block blocks[2];
        cursor.next(blocks[0]);
        for (int now = 0; blocks[now].size; now = 1 - now) {
            const Block &block = blocks[now], &after = blocks[1 - now];
            cursor.next(blocks[1 - now]);
            logits(item, keys, values, block, after);
            for (int64_t h = 0; h < heads; ++h) softmax(h, block, state);
            for_head_tiles(heads, [&](int64_t h, auto tile) {
                weigh_columns<tile.value>(&weights[h * Block::TOKENS], values, dim, block, state.output + h * dim);
            });
        }
    }

  private:
    const T *query(int64_t item, int64_t h) const {
        return problem.q.at(problem.row(item), problem.first_head(item) + h);
    }

    void load_queries(int64_t item) {
        position = -1;
        for (int64_t h = 0; h < heads; ++h) std::copy_n(query(item, h), dim, &queries[h * dim]);
    }

    void rotate_queries(int64_t item, int64_t new_position) {
        if (new_position == position) return;
        position = new_position;
        const int64_t half = dim / 2;
        const float *cos = problem.cos + position * half, *sin = problem.sin + position * half;
        for (int64_t h = 0; h < heads; ++h) rotate(query(item, h), cos, sin, half, &queries[h * dim]);
    }

    // Logits of all heads for the keys of a block into weights[h][...]; lanes without a key become -inf. While this
    // works, the rows of the next block are on their way.
    void logits(int64_t item, const T *keys, const T *values, const Block &block, const Block &after) {
        for (int i = 0; i < block.size; ++i) {
            const Tile &tile = block.tiles[i];
            if (problem.cos) rotate_queries(item, tile.position);
            if (i < after.size) {
                prefetch(keys, dim, after.tiles[i]);
                prefetch(values, dim, after.tiles[i]);
            }
            for_head_tiles(heads, [&](int64_t h, auto tile_heads) {
                f32x16 products[tile_heads.value];
                dots<tile_heads.value>(&queries[h * dim], keys, tile, dim, products);
                for (int j = 0; j < tile_heads.value; ++j)
                    store16(&weights[(h + j) * Block::TOKENS + i * LANES], logit(products[j], tile.count));
            });
        }
    }

    f32x16 logit(f32x16 product, int count) const {
        static constexpr i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const f32x16 x = problem.softcap > 0
                             ? tanh16(product * (problem.scale / problem.softcap)) * (problem.softcap * LOG2E)
                             : product * (problem.scale * LOG2E);
        return lane < count ? x : broadcast(NEGATIVE_INFINITY);
    }

    // Logits to weights 2^(logit - largest), in place.
    void softmax(int64_t h, const Block &block, State &state) {
        float *w = &weights[h * Block::TOKENS];
        f32x16 peak = load16(w);
        for (int i = 1; i < block.size; ++i) {
            const f32x16 x = load16(w + i * LANES);
            peak = x > peak ? x : peak;
        }
        if (any(peak > state.largest[h])) state.raise(h, max16(peak));
        f32x16 total = load16(state.totals + h * LANES);
        for (int i = 0; i < block.size; ++i) {
            const f32x16 x = exp2_16(load16(w + i * LANES) - state.largest[h]);
            store16(w + i * LANES, x);
            total += x;
        }
        store16(state.totals + h * LANES, total);
    }

    const Problem<T> &problem;
    const int64_t dim, heads;
    int64_t position = -1;
    std::vector<T> queries;      // [heads][dim], rotated to `position`
    std::vector<float> weights;  // [heads][Block::TOKENS]
};

// ---- all items over the team -------------------------------------------------------------------------------------

// How the tokens of a problem's items are dealt to a team. Problems that differ in their pointers only may share one:
// every thread calls `work`, and when all are done, one of them `finish`.
template <class T> class Decoder {
  public:
    Decoder(const Problem<T> &problem, int64_t team_size)
        : group_heads(problem.group_heads()), dim(problem.dim), offsets(problem.items() + 1), team_size(team_size) {
        for (int64_t item = 0; item < problem.items(); ++item)
            offsets[item + 1] = offsets[item] + problem.tokens(item);
        memory.resize(2 * team_size * State::size(group_heads, dim));
    }

    void work(const Problem<T> &problem, int64_t thread) {
        Worker<T> worker(problem);
        const Share part = share(thread);
        cleared(thread, 0);
        for (int64_t token = part.begin; token < part.end;) {
            const int64_t item = item_of(token), begin = offsets[item], end = std::min(offsets[item + 1], part.end);
            State state = begin < part.begin ? slot(thread, 0) : cleared(thread, 1);
            worker.run(item, token - begin, end - begin, state);
            if (begin >= part.begin && offsets[item + 1] <= part.end) finish(problem, item, state);
            token = end;
        }
    }

    // Items without tokens, and those that several threads have parts of.
    void finish(const Problem<T> &problem) {
        for (int64_t item = 0; item < problem.items(); ++item)
            if (offsets[item] == offsets[item + 1]) finish(problem, item, cleared(0, 0));
        for (int64_t thread = 0; thread + 1 < team_size; ++thread) merge(problem, thread);
    }

  private:
    Share share(int64_t thread) const { return Share(offsets.back(), thread, team_size); }

    // Slot 0 of a thread holds an item begun by an earlier thread, slot 1 its own current item.
    State slot(int64_t thread, int which) {
        return State(&memory[(2 * thread + which) * State::size(group_heads, dim)], group_heads, dim);
    }
    State cleared(int64_t thread, int which) {
        State state = slot(thread, which);
        state.reset();
        return state;
    }

    int64_t item_of(int64_t token) const {
        return std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
    }

    // If the last item of this thread began here and goes on in others: collect their parts.
    void merge(const Problem<T> &problem, int64_t thread) {
        const Share part = share(thread);
        if (part.begin == part.end) return;
        const int64_t item = item_of(part.end - 1);
        if (offsets[item] < part.begin || offsets[item + 1] <= part.end) return;
        State state = slot(thread, 1);
        for (int64_t next = thread + 1; next < team_size && share(next).begin < offsets[item + 1]; ++next)
            state.merge(slot(next, 0));
        finish(problem, item, state);
    }

    void finish(const Problem<T> &problem, int64_t item, const State &state) {
        const int64_t head = problem.row(item) * problem.heads + problem.first_head(item);
        state.finish(problem.out + head * problem.dim, problem.lse + head);
    }

    const int64_t group_heads, dim;
    std::vector<int64_t> offsets;  // first token of each item in the common sequence
    std::vector<float> memory;
    const int64_t team_size;
};
