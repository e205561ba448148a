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
#include <vector>

namespace {

constexpr int BLOCK = 64;                  // tokens per softmax update: K and V of a block stay in the L1 cache
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

// Unnormalised sums of one group: output [heads][dim], and per head the largest logit so far and the sum of weights.
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
            for (int64_t d = h * dim; d < (h + 1) * dim; d += LANES) store16(out + d, load16(output + d) * inverse);
            lse[h] = total[h] > 0 ? (largest[h] + std::log2(total[h])) * LN2 : NEGATIVE_INFINITY;
        }
    }
};

// ---- one block of tokens -----------------------------------------------------------------------------------------

// Sixteen dot products of one query with consecutive keys; beyond `count` the last key is read again.
template <bool FULL, class T> inline f32x16 dots(const T *query, const T *keys, int64_t dim, int count) {
    using D = Dot<T>;
    f32x16 sums[LANES] = {};
    int64_t d = 0;
    for (; d + D::WIDTH <= dim; d += D::WIDTH)
        for (int t = 0; t < LANES; ++t)
            sums[t] = D::step(sums[t], query + d, keys + (FULL ? t : std::min(t, count - 1)) * dim + d);
    if (d < dim)  // half a step, as dim is a multiple of 16
        for (int t = 0; t < LANES; ++t)
            sums[t] += load16(query + d) * load16(keys + (FULL ? t : std::min(t, count - 1)) * dim + d);
    return sums16(sums);
}

// output[h][0 .. 16 C) += sum over tokens of weights[h][t] values[t][0 .. 16 C), for H heads.
template <int H, int C, class T>
inline void weigh(const float *weights, const T *values, int64_t dim, int count, float *output) {
    f32x16 sums[H][C];
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) sums[h][c] = load16(output + h * dim + c * LANES);
    for (int t = 0; t < count; ++t) {
        f32x16 value[C];
        for (int c = 0; c < C; ++c) value[c] = load16(values + t * dim + c * LANES);
        for (int h = 0; h < H; ++h)
            for (int c = 0; c < C; ++c) sums[h][c] += weights[h * BLOCK + t] * value[c];
    }
    for (int h = 0; h < H; ++h)
        for (int c = 0; c < C; ++c) store16(output + h * dim + c * LANES, sums[h][c]);
}

template <int H, class T>
inline void weigh_columns(const float *weights, const T *values, int64_t dim, int count, float *output) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weigh<H, 4>(weights, values + d, dim, count, output + d);
    for (; d < dim; d += LANES) weigh<H, 1>(weights, values + d, dim, count, output + d);
}

template <class T> class Worker {
  public:
    Worker(const Problem<T> &problem)
        : problem(problem), dim(problem.dim), heads(problem.group_heads()), queries(heads * dim),
          weights(heads * BLOCK) {}

    // Add tokens [begin, end) of the item's selection to the state.
    void run(int64_t item, int64_t begin, int64_t end, State &state) {
        load_queries(item);
        const int64_t row = problem.cache_rows[problem.row(item)], kv_head = problem.kv_head(item);
        const T *keys = problem.keys.at(row, kv_head), *values = problem.values.at(row, kv_head);
        int64_t before = 0;  // tokens of the spans already passed
        for (const Span *span = problem.spans_of(item); before < end; ++span) {
            const int64_t length = span->stop - span->start;
            const int64_t first = span->start + std::max<int64_t>(begin - before, 0);
            const int64_t last = span->start + std::min(length, end - before);
            before += length;
            if (first >= last) continue;
            if (problem.cos) rotate_queries(item, span->position);
            for (int64_t t = first; t < last; t += BLOCK)
                block(keys + t * dim, values + t * dim, (int)std::min<int64_t>(BLOCK, last - t), state);
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

    void block(const T *keys, const T *values, int count, State &state) {
        for (int t = 0; t < count; t += LANES) logits(keys + t * dim, t, count - t);
        for (int64_t h = 0; h < heads; ++h) softmax(h, count, state);
        int64_t h = 0;
        for (; h + 4 <= heads; h += 4)
            weigh_columns<4>(&weights[h * BLOCK], values, dim, count, state.output + h * dim);
        switch (heads - h) {
        case 3: weigh_columns<3>(&weights[h * BLOCK], values, dim, count, state.output + h * dim); break;
        case 2: weigh_columns<2>(&weights[h * BLOCK], values, dim, count, state.output + h * dim); break;
        case 1: weigh_columns<1>(&weights[h * BLOCK], values, dim, count, state.output + h * dim); break;
        }
    }

    // Logits of all heads for up to 16 keys into weights[h][t ...]; lanes beyond `count` become -inf.
    void logits(const T *keys, int t, int count) {
        static constexpr i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t h = 0; h < heads; ++h) {
            const T *q = &queries[h * dim];
            f32x16 x = count >= LANES ? dots<true>(q, keys, dim, LANES) : dots<false>(q, keys, dim, count);
            x = problem.softcap > 0 ? tanh16(x * (problem.scale / problem.softcap)) * (problem.softcap * LOG2E)
                                    : x * (problem.scale * LOG2E);
            store16(&weights[h * BLOCK + t], lane < count ? x : broadcast(NEGATIVE_INFINITY));
        }
    }

    // Logits to weights 2^(logit - largest), in place.
    void softmax(int64_t h, int count, State &state) {
        float *w = &weights[h * BLOCK];
        f32x16 peak = load16(w);
        for (int t = LANES; t < count; t += LANES) {
            const f32x16 x = load16(w + t);
            peak = x > peak ? x : peak;
        }
        const float largest = max16(peak);
        if (largest > state.largest[h]) state.raise(h, largest);
        f32x16 total = broadcast(0.f);
        for (int t = 0; t < count; t += LANES) {
            const f32x16 x = exp2_16(load16(w + t) - state.largest[h]);
            store16(w + t, x);
            total += x;
        }
        state.total[h] += sum16(total);
    }

    const Problem<T> &problem;
    const int64_t dim, heads;
    int64_t position = -1;
    std::vector<T> queries;      // [heads][dim], rotated to `position`
    std::vector<float> weights;  // [heads][BLOCK]
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
