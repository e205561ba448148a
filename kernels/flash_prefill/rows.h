// Stacked query rows that attend to pieces of packed keys and values (flash attention, Dao 2023).
//
// The rows of an item are the queries of a block times the query heads that share a KV head, [query][head]. They are
// worked on SUB at a time: logits and weights of SUB x UNIT stay in the L1 cache, and only the SUBs on the diagonal or
// at the edge of the window pay for masks. Where a query sees different keys under different rotations, each is a row
// of its own; `focus` says whose turn it is, and `merge` makes one of them in the end.
#pragma once

#include "flash_prefill/pack.h"
#include "flash_prefill/softmax.h"

// Packed tokens, a multiple of 32: `tokens` names them, or they are first, first + 1, ...; [lowest, highest] holds all.
template <class E> struct Piece {
    const E *keys, *values;
    const int32_t *tokens;
    int64_t lowest, highest, width;
};

constexpr int64_t NO_TOKEN = std::numeric_limits<int32_t>::max();  // masked for every query

// What all rows of a call have in common.
struct Rules {
    float scale, softcap;
    int64_t window;  // tokens a query sees; no window is a huge one
    bool matrix_unit;
};

// Of one row: weighted values [dim], weights [LANES], and the logit (log2) to which both are relative.
struct Sums {
    const float *output, *totals;
    float largest;
};

template <class T> class Rows {
    using E = typename Packed<T>::Element;

  public:
    Rows(Rules rules, Layout<T> layout, int64_t most_rows)
        : rules(rules), layout(layout), sub(rules.matrix_unit ? SUB : SUB / ROWS * ROWS),
          padded((most_rows + SUB - 1) / sub * sub + SUB), queries(buffer<E>(padded * layout.depth())),
          sums(buffer<float>(padded * layout.dim)), totals(buffer<float>(padded * LANES)),
          largest(buffer<float>(padded)), positions(buffer<int32_t>(padded)), logits(buffer<float>(SUB * UNIT)),
          weights(buffer<E>(SUB * UNIT)) {
        std::fill_n(queries.get(), padded * layout.depth(), E{});
        std::fill_n(logits.get(), SUB * UNIT, 0.f);
        std::fill_n(weights.get(), SUB * UNIT, E{});
    }

    void reset() { count = 0; }

    void add(const T *query, int64_t position) {
        load_query(query, queries.get() + count * layout.depth());
        positions[count++] = (int32_t)position;
    }

    int64_t size() const { return count; }

    // After the last row has been added. All of them attend, until `focus` says otherwise.
    void start() {
        focus(0, count);
        const int64_t all = (count + sub - 1) / sub * sub + SUB - sub;
        std::fill_n(sums.get(), all * layout.dim, 0.f);
        std::fill_n(totals.get(), all * LANES, 0.f);
        std::fill_n(largest.get(), all, LOWEST);
    }

    // Rows [first, stop) attend to the pieces that follow.
    void focus(int64_t first, int64_t stop) {
        begin = first;
        end = stop;
    }

    void attend(const Piece<E> &piece) {
        for (int64_t row = begin; row < end; row += sub) attend(piece, row, std::min<int64_t>(sub, end - row));
    }

    // Row `row` as if it had also seen what `other` has.
    void merge(int64_t row, int64_t other) {
        const float top = std::max(largest[row], largest[other]);
        const f32x16 kept = exp2_16(broadcast(largest[row] - top)), added = exp2_16(broadcast(largest[other] - top));
        blend(&sums[row * layout.dim], &sums[other * layout.dim], kept, added, layout.dim);
        blend(&totals[row * LANES], &totals[other * LANES], kept, added, LANES);
        largest[row] = top;
    }

    Sums sums_of(int64_t row) const { return {&sums[row * layout.dim], &totals[row * LANES], largest[row]}; }

    void finish(int64_t row, T *out, float *lse) const {
        const float sum = sum16(load16(totals.get() + row * LANES)), inverse = sum == 0 ? 0.f : 1.f / sum;
        for (int64_t d = 0; d < layout.dim; d += LANES)
            store16(out + d, load16(sums.get() + row * layout.dim + d) * inverse);
        *lse = sum == 0 ? NEGATIVE_INFINITY : (largest[row] + std::log2(sum)) * LN2;
    }

  private:
    void load_query(const T *query, T *to) { std::memcpy(to, query, layout.dim * sizeof(T)); }
    template <class Other> void load_query(const Other *query, float *to) {
        for (int64_t d = 0; d < layout.dim; d += LANES) store16(to + d, load16(query + d));
    }

    void attend(const Piece<E> &piece, int64_t row, int64_t rows) {
        const auto [lowest, highest] = std::minmax_element(&positions[row], &positions[row] + rows);
        const int64_t first = *lowest, last = *highest;
        if (piece.lowest > last || piece.highest <= first - rules.window) return;
        int64_t width = piece.width;
        if (piece.tokens == nullptr) width = std::min(width, (last - piece.lowest) / 32 * 32 + 32);
        multiply<E>({{queries.get() + row * layout.depth(), layout.depth()}, {piece.keys, UNIT}, {logits.get(), UNIT},
                     rows, width, layout.depth(), false}, rules.matrix_unit);
        if (rules.softcap > 0) cap(rows, width);
        if (piece.highest > first || piece.lowest <= last - rules.window) mask(piece, row, rows, width);
        for (int64_t r = 0; r < rows; r += LANES) weigh(row, r, (int)std::min<int64_t>(LANES, rows - r), width);
        // The matrix unit adds to whole tiles of rows: those behind the last one may be others', which see nothing here.
        if (rules.matrix_unit && rows < SUB) std::fill_n(&weights[rows * UNIT], (SUB - rows) * UNIT, E{});
        multiply<E>({{weights.get(), UNIT}, {piece.values, layout.dim}, {sums.get() + row * layout.dim, layout.dim},
                     rows, layout.dim, width, true}, rules.matrix_unit);
    }

    void cap(int64_t rows, int64_t width) {
        for (int64_t r = 0; r < rows; ++r)
            for (float *x = &logits[r * UNIT], *end = x + width; x < end; x += LANES)
                store16(x, rules.softcap * tanh16(load16(x) * (rules.scale / rules.softcap)));
    }

    void mask(const Piece<E> &piece, int64_t row, int64_t rows, int64_t width) {
        const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t j = 0; j < width; j += LANES) {
            i32x16 tokens = lane + (int32_t)(piece.lowest + j);
            if (piece.tokens != nullptr) std::memcpy(&tokens, piece.tokens + j, sizeof tokens);
            for (int64_t r = 0; r < rows; ++r) {
                const int32_t last = positions[row + r], before = last - (int32_t)std::min<int64_t>(rules.window, last + 1);
                float *x = &logits[r * UNIT + j];
                store16(x, ((tokens <= last) & (tokens > before)) ? load16(x) : broadcast(NEGATIVE_INFINITY));
            }
        }
    }

    // The logits of up to 16 rows, from r on, become weights; sums change their unit where a larger logit asks for it.
    void weigh(int64_t row, int64_t r, int rows, int64_t width) {
        const float factor = rules.softcap > 0 ? LOG2E : rules.scale * LOG2E;
        f32x16 tops[LANES];
        for (int i = 0; i < LANES; ++i)
            tops[i] = i < rows ? top(&logits[(r + i) * UNIT], width) : broadcast(NEGATIVE_INFINITY);
        raise(row + r, maxima16(tops) * factor);
        for (int i = 0; i < rows; ++i) {
            float *total = &totals[(row + r + i) * LANES];
            const f32x16 more = exponentials(r + i, factor, largest[row + r + i], width);
            store16(total, load16(total) + more);
        }
    }

    static f32x16 top(const float *x, int64_t width) {
        f32x16 a = load16(x), b = load16(x + LANES);
        for (int64_t j = 32; j < width; j += 32) {
            a = larger16(load16(x + j), a);
            b = larger16(load16(x + j + LANES), b);
        }
        return larger16(a, b);
    }

    f32x16 exponentials(int64_t r, float factor, float zero, int64_t width) {
        const float *x = &logits[r * UNIT];
        E *p = &weights[r * UNIT];
        f32x16 sum_a = {}, sum_b = {};
        for (int64_t j = 0; j < width; j += 32) {
            const f32x16 a = weight(load16(x + j) * factor - zero, (T *)nullptr);
            const f32x16 b = weight(load16(x + j + LANES) * factor - zero, (T *)nullptr);
            sum_a += a;
            sum_b += b;
            store_weights(p + j, a, b);
        }
        return sum_a + sum_b;
    }

    void raise(int64_t row, f32x16 top) {
        const f32x16 before = load16(&largest[row]);
        const i32x16 rises = top > before + SLACK;
        if (!any(rises)) return;
        const f32x16 now = rises ? top : before, shrink = exp2_16(before - now);
        store16(&largest[row], now);
        for (int i = 0; i < LANES; ++i) {
            if (!rises[i]) continue;
            scale(&sums[(row + i) * layout.dim], shrink[i], layout.dim);
            scale(&totals[(row + i) * LANES], shrink[i], LANES);
        }
    }

    static void scale(float *x, float factor, int64_t n) {
        for (int64_t i = 0; i < n; i += LANES) store16(x + i, load16(x + i) * factor);
    }

    static void blend(float *x, const float *y, f32x16 kept, f32x16 added, int64_t n) {
        for (int64_t i = 0; i < n; i += LANES) store16(x + i, load16(x + i) * kept + load16(y + i) * added);
    }

    const Rules rules;
    const Layout<T> layout;
    const int64_t sub, padded;
    int64_t count = 0, begin = 0, end = 0;
    Buffer<E> queries;                // [rows][depth]
    Buffer<float> sums, totals, largest;  // [rows][dim], [rows][LANES] partial sums of weights, [rows]
    Buffer<int32_t> positions;
    Buffer<float> logits;             // [SUB][UNIT]
    Buffer<E> weights;
};
