// Split-KV exact attention of query rows over token spans of a KV cache (flash-decoding).
//
// An item is one query row and one group of query heads that read the same spans of one KV head: the H/G heads of a
// KV head, or a single head when every query head has its own spans. The tokens of all items form one long sequence
// that is cut into equal parts, one per thread, wherever the cuts fall; an item cut in two is merged through its
// log-sum-exp. So any number of rows, heads and splits is balanced, and the result depends on the team size only.
//
// Logits are kept in units of log2, so that the softmax needs 2^x only.
#include "simd.h"

#include <algorithm>
#include <omp.h>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements of K and V

// [outer][inner][...] with strides in elements.
template <class T> struct View {
    T *data;
    int64_t outer, inner;
    T *at(int64_t n, int64_t h) const { return data + n * outer + h * inner; }
};

struct Span {
    int32_t start, stop, position;
};

// Up to LANES tokens that follow each other in one span.
struct Tile {
    int64_t token, position;
    int count;
};

// What one softmax update covers. Its tiles may come from different spans, so short spans cost no more than long ones.
struct Block {
    static constexpr int TILES = 4, TOKENS = TILES * LANES;  // K and V of a block stay in the L1 cache
    Tile tiles[TILES];
    int size = 0;
};

// Cuts tokens [begin, end) of the sequence that the spans of an item make into blocks.
class Cursor {
  public:
    Cursor(const Span *spans, int64_t begin, int64_t end) : span(spans), skipped(begin), left(end - begin) {}

    Block next() {
        Block block;
        while (block.size < Block::TILES && left > 0) {
            const int64_t length = span->stop - span->start;
            if (skipped >= length) {
                skipped -= length;
                ++span;
                continue;
            }
            const int count = (int)std::min({(int64_t)LANES, left, length - skipped});
            block.tiles[block.size++] = {span->start + skipped, span->position, count};
            skipped += count;
            left -= count;
        }
        return block;
    }

  private:
    const Span *span;
    int64_t skipped, left;  // tokens of `span` already passed; tokens still to come
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

    int64_t groups() const { return selections == heads ? heads : kv_heads; }
    int64_t group_heads() const { return heads / groups(); }
    int64_t items() const { return rows * groups(); }
    int64_t row(int64_t item) const { return item / groups(); }
    int64_t first_head(int64_t item) const { return item % groups() * group_heads(); }
    int64_t kv_head(int64_t item) const { return first_head(item) * kv_heads / heads; }
    const Span *spans_of(int64_t item) const {
        const int64_t selection = selections == 1 ? 0 : item % groups();
        return spans + (row(item) * selections + selection) * span_count;
    }
    int64_t tokens(int64_t item) const {
        int64_t sum = 0;
        for (const Span *span = spans_of(item), *end = span + span_count; span < end; ++span)
            sum += span->stop - span->start;
        return sum;
    }
};

// ---- softmax state of one item -----------------------------------------------------------------------------------

// Unnormalised sums of one group: output [heads][dim], in the element order of load32, and per head the largest logit
// so far and the sum of weights.
struct State {
    float *output, *largest, *total;
    int64_t heads, dim;

    static int64_t size(int64_t heads, int64_t dim) { return heads * (dim + 2); }
    State(float *memory, int64_t heads, int64_t dim)
        : output(memory), largest(memory + heads * dim), total(largest + heads), heads(heads), dim(dim) {}

    void reset() {
        std::fill_n(output, heads * dim, 0.f);
        std::fill_n(largest, heads, NEGATIVE_INFINITY);
        std::fill_n(total, heads, 0.f);
    }
    // Re-express the sums of a head relative to a larger logit.
    void raise(int64_t head, float new_largest) {
        const float factor = total[head] > 0 ? std::exp2(largest[head] - new_largest) : 0.f;
        for (int64_t d = 0; d < dim; d += LANES)
            store16(output + head * dim + d, load16(output + head * dim + d) * factor);
        total[head] *= factor;
        largest[head] = new_largest;
    }
    void merge(const State &other) {
        for (int64_t h = 0; h < heads; ++h) {
            if (other.total[h] == 0) continue;
            if (other.largest[h] > largest[h]) raise(h, other.largest[h]);
            const float factor = std::exp2(other.largest[h] - largest[h]);
            for (int64_t d = h * dim; d < (h + 1) * dim; d += LANES)
                store16(output + d, load16(output + d) + load16(other.output + d) * factor);
            total[h] += other.total[h] * factor;
        }
    }
    template <class T> void finish(T *out, float *lse) const {
        for (int64_t h = 0; h < heads; ++h) {
            const float inverse = total[h] > 0 ? 1.f / total[h] : 0.f;
            const float *sums = output + h * dim;
            int64_t d = 0;
            for (; d + 32 <= dim; d += 32)
                store32(out + h * dim + d, load16(sums + d) * inverse, load16(sums + d + LANES) * inverse);
            if (d < dim) store16(out + h * dim + d, load16(sums + d) * inverse);
            lse[h] = total[h] > 0 ? (largest[h] + std::log2(total[h])) * LN2 : NEGATIVE_INFINITY;
        }
    }
};

// ---- one block of tokens -----------------------------------------------------------------------------------------

// products[h]: dot products of H queries with 16 consecutive keys. Four keys at a time, so that a key serves all
// queries while it is in a register.
template <int H, class T> inline void dots(const T *queries, const T *keys, int64_t dim, f32x16 *products) {
    using D = Dot<T>;
    f32x16 quads[H][4];
    for (int quad = 0; quad < 4; ++quad, keys += 4 * dim) {
        f32x16 sums[H][4] = {};
        int64_t d = 0;
        for (; d + D::WIDTH <= dim; d += D::WIDTH)
            for (int h = 0; h < H; ++h)
                for (int t = 0; t < 4; ++t) sums[h][t] = D::step(sums[h][t], queries + h * dim + d, keys + t * dim + d);
        if (d < dim)  // half a step, as dim is a multiple of 16
            for (int h = 0; h < H; ++h)
                for (int t = 0; t < 4; ++t) sums[h][t] += load16(queries + h * dim + d) * load16(keys + t * dim + d);
        for (int h = 0; h < H; ++h) quads[h][quad] = sums4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    }
    for (int h = 0; h < H; ++h) products[h] = sums4x4(quads[h]);
}

// The hardware follows neither jumps between spans nor page borders: ask for rows of the block after this one.
template <class T> inline void prefetch(const T *base, int64_t dim, const Tile &tile) {
    const T *first = base + tile.token * dim;
    for (int64_t i = 0; i < tile.count * dim; i += 64 / sizeof(T)) __builtin_prefetch(first + i);
}

// output[h][...] += sum over tokens of weights[h][t] values[t][...] for H heads and 32 P columns (16 for P = 0).
template <int H, int P, class T>
inline void weigh(const float *weights, const T *values, int64_t dim, const Block &block, float *output) {
    constexpr int C = P ? 2 * P : 1;
    f32x16 sums[H][C];
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) sums[h][c] = load16(output + h * dim + c * LANES);
    for (int i = 0; i < block.size; ++i, weights += LANES) {
        const T *row = values + block.tiles[i].token * dim;
        for (int t = 0; t < block.tiles[i].count; ++t, row += dim) {
            f32x16 value[C];
            if (P == 0) value[0] = load16(row);
            for (int p = 0; p < P; ++p) load32(row + p * 32, value[2 * p], value[2 * p + 1]);
            for (int h = 0; h < H; ++h)
                for (int c = 0; c < C; ++c) sums[h][c] += weights[h * Block::TOKENS + t] * value[c];
        }
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
          padded(LANES * dim), weights(heads * Block::TOKENS) {}

    // Add tokens [begin, end) of the item's selection to the state.
    void run(int64_t item, int64_t begin, int64_t end, State &state) {
        load_queries(item);
        const int64_t row = problem.cache_rows[problem.row(item)], kv_head = problem.kv_head(item);
        const T *keys = problem.keys.at(row, kv_head), *values = problem.values.at(row, kv_head);
        Cursor cursor(problem.spans_of(item), begin, end);
        for (Block block = cursor.next(); block.size;) {
            const Block after = cursor.next();
            logits(item, keys, block, after);
            for (int64_t h = 0; h < heads; ++h) softmax(h, block, state);
            for (int i = 0; i < after.size; ++i) prefetch(values, dim, after.tiles[i]);
            for_head_tiles(heads, [&](int64_t h, auto tile) {
                weigh_columns<tile.value>(&weights[h * Block::TOKENS], values, dim, block, state.output + h * dim);
            });
            block = after;
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
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t i = 0; i < half; i += LANES) {
                const int count = (int)std::min<int64_t>(LANES, half - i);
                const f32x16 a = load_first(query(item, h) + i, count), b = load_first(query(item, h) + half + i, count);
                const f32x16 c = load_first(cos + i, count), s = load_first(sin + i, count);
                store_first(&queries[h * dim + i], a * c - b * s, count);
                store_first(&queries[h * dim + half + i], b * c + a * s, count);
            }
    }

    // Logits of all heads for the keys of a block into weights[h][...]; lanes without a key become -inf.
    void logits(int64_t item, const T *keys, const Block &block, const Block &after) {
        for (int i = 0; i < block.size; ++i) {
            const Tile &tile = block.tiles[i];
            if (problem.cos) rotate_queries(item, tile.position);
            if (i < after.size) prefetch(keys, dim, after.tiles[i]);
            const T *rows = keys + tile.token * dim;
            if (tile.count < LANES) {
                std::copy_n(rows, tile.count * dim, padded.data());
                rows = padded.data();
            }
            for_head_tiles(heads, [&](int64_t h, auto tile_heads) {
                f32x16 products[tile_heads.value];
                dots<tile_heads.value>(&queries[h * dim], rows, dim, products);
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
        const float largest = max16(peak);
        if (largest > state.largest[h]) state.raise(h, largest);
        f32x16 total = broadcast(0.f);
        for (int i = 0; i < block.size; ++i) {
            const f32x16 x = exp2_16(load16(w + i * LANES) - state.largest[h]);
            store16(w + i * LANES, x);
            total += x;
        }
        state.total[h] += sum16(total);
    }

    const Problem<T> &problem;
    const int64_t dim, heads;
    int64_t position = -1;
    std::vector<T> queries;      // [heads][dim], rotated to `position`
    std::vector<T> padded;       // the last, incomplete 16 keys
    std::vector<float> weights;  // [heads][Block::TOKENS]
};

// ---- all items over the team ---------------------------------------------------------------------------------------

template <class T> class Decoder {
  public:
    Decoder(const Problem<T> &problem, int64_t threads) : problem(problem), offsets(problem.items() + 1) {
        for (int64_t item = 0; item < problem.items(); ++item)
            offsets[item + 1] = offsets[item] + problem.tokens(item);
        team_size = team(threads, offsets.back() * problem.dim * 2, WORTH_A_TEAM);
        memory.resize(2 * team_size * State::size(problem.group_heads(), problem.dim));
    }

    void run() {
#pragma omp parallel num_threads(team_size)
        work(omp_get_thread_num());
        for (int64_t item = 0; item < problem.items(); ++item)
            if (offsets[item] == offsets[item + 1]) finish(item, cleared(0, 0));
        for (int64_t thread = 0; thread + 1 < team_size; ++thread) merge(thread);
    }

  private:
    Share share(int64_t thread) const { return Share(offsets.back(), thread, team_size); }

    // Slot 0 of a thread holds an item begun by an earlier thread, slot 1 its own current item.
    State slot(int64_t thread, int which) {
        const int64_t size = State::size(problem.group_heads(), problem.dim);
        return State(&memory[(2 * thread + which) * size], problem.group_heads(), problem.dim);
    }
    State cleared(int64_t thread, int which) {
        State state = slot(thread, which);
        state.reset();
        return state;
    }

    int64_t item_of(int64_t token) const {
        return std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
    }

    void work(int64_t thread) {
        Worker<T> worker(problem);
        const Share part = share(thread);
        cleared(thread, 0);
        for (int64_t token = part.begin; token < part.end;) {
            const int64_t item = item_of(token), begin = offsets[item], end = std::min(offsets[item + 1], part.end);
            State state = begin < part.begin ? slot(thread, 0) : cleared(thread, 1);
            worker.run(item, token - begin, end - begin, state);
            if (begin >= part.begin && offsets[item + 1] <= part.end) finish(item, state);
            token = end;
        }
    }

    // If the last item of this thread began here and goes on in others: collect their parts.
    void merge(int64_t thread) {
        const Share part = share(thread);
        if (part.begin == part.end) return;
        const int64_t item = item_of(part.end - 1);
        if (offsets[item] < part.begin || offsets[item + 1] <= part.end) return;
        State state = slot(thread, 1);
        for (int64_t next = thread + 1; next < team_size && share(next).begin < offsets[item + 1]; ++next)
            state.merge(slot(next, 0));
        finish(item, state);
    }

    void finish(int64_t item, const State &state) {
        const int64_t head = problem.row(item) * problem.heads + problem.first_head(item);
        state.finish(problem.out + head * problem.dim, problem.lse + head);
    }

    const Problem<T> &problem;
    std::vector<int64_t> offsets;  // first token of each item in the common sequence
    std::vector<float> memory;
    int team_size;
};

}  // namespace

#define FLASH_DECODE(NAME, T)                                                                                         \
    extern "C" void NAME(const T *q, int64_t q_outer, int64_t q_inner, const T *keys, int64_t key_outer,             \
                         int64_t key_inner, const T *values, int64_t value_outer, int64_t value_inner,               \
                         const Span *spans, int64_t selections, int64_t span_count, const int32_t *cache_rows,       \
                         const float *cos, const float *sin, float scale, float softcap, T *out, float *lse,         \
                         int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t threads) {              \
        const Problem<T> problem{{q, q_outer, q_inner}, {keys, key_outer, key_inner},                                \
                                 {values, value_outer, value_inner}, spans, selections, span_count, cache_rows,      \
                                 cos, sin, scale, softcap, out, lse, rows, heads, kv_heads, dim};                    \
        Decoder<T>(problem, threads).run();                                                                           \
    }

FLASH_DECODE(flash_decode_f32, float)
FLASH_DECODE(flash_decode_bf16, bf16)
