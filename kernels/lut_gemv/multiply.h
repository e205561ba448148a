// The share that one thread has in y = x W^T for weights from one lookup table per row, plus sparse outliers.
#pragma once

#include "lut_gemv/stream.h"
#include "lut_gemv/tiles.h"

// Compressed sparse rows; `starts` is null if there are none.
template <class T> struct Sparse {
    const int32_t *starts, *columns;
    const T *values;
};

template <class T, int BITS> struct Problem {
    const uint16_t *packed;
    const T *tables;
    Sparse<T> sparse;
    const T *bias;
    T *out;
    int64_t out_stride, rows, features, outputs;

    const uint16_t *row(int64_t o) const { return packed + o * row_words<BITS>(features); }
    template <class S> Table<S, BITS> table(int64_t o) const { return Table<S, BITS>(tables + (o << BITS)); }
    int64_t entries_before(int64_t o) const { return sparse.starts ? sparse.starts[o] : 0; }

    // The first output of thread `index`: shares are equal in the time they take, not in their number of rows.
    int64_t share(int64_t index, int64_t threads) const {
        constexpr int64_t ENTRY = 12;  // weights that are looked up in the time of one outlier
        const auto work = [&](int64_t o) { return o * features + ENTRY * (entries_before(o) - entries_before(0)); };
        const int64_t target = work(outputs) * index / threads;
        int64_t low = 0, high = (outputs + BLOCK_ROWS - 1) / BLOCK_ROWS;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (work(middle * BLOCK_ROWS) < target) low = middle + 1;
            else high = middle;
        }
        return std::min(low * BLOCK_ROWS, outputs);
    }
};

#ifdef SIMD_AVX512
// Sixteen entries or, masked, fewer. Gathering a bf16 reads the two bytes behind it too: see `with_margin`.
static inline f32x16 gathered(__mmask16 mask, const int32_t *columns, const float *values, const float *x) {
    const __m512i index = _mm512_maskz_loadu_epi32(mask, columns);
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, x, 4) * _mm512_maskz_loadu_ps(mask, values);
}

static inline f32x16 gathered(__mmask16 mask, const int32_t *columns, const bf16 *values, const bf16 *x) {
    const __m512i index = _mm512_maskz_loadu_epi32(mask, columns);
    const u32x16 pairs = (u32x16)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, index, x, 2);
    const __m512i halves = _mm512_maskz_loadu_epi16(mask, values);
    const u32x16 factors = (u32x16)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
    return (f32x16)(pairs << 16) * (f32x16)(factors << 16);
}
#endif

// sum + the products of the entries `begin` to `end` with a row of x.
template <class T>
inline f32x16 add_entries(f32x16 sum, const Sparse<T> &sparse, int64_t begin, int64_t end, const T *x) {
#ifdef SIMD_AVX512
    for (int64_t k = begin; k < end; k += LANES) {
        const __mmask16 mask = end - k < LANES ? (1u << (end - k)) - 1 : 0xffffu;
        sum += gathered(mask, sparse.columns + k, sparse.values + k, x);
    }
#else
    for (int64_t k = begin; k < end; ++k) sum[k % LANES] += value(sparse.values[k]) * value(x[sparse.columns[k]]);
#endif
    return sum;
}

// Rows of x, as they are and in the order for whole blocks.
template <class T> struct StreamInputs {
    Inputs<T> plain;
    Inputs<Operand<T>> ordered;
    StreamInputs from(int64_t n) const {
        return {{plain.at(n, 0), plain.stride}, {ordered.at(n, 0), ordered.stride}};
    }
};

// All inputs of X rows of x with one row of codes, its outliers included, in 16 partial sums each.
template <int X, class T, int BITS>
inline void row_sums(const Problem<T, BITS> &problem, int64_t o, const StreamInputs<T> &x, f32x16 (&sums)[X]) {
    const auto table = problem.template table<Operand<T>>(o);
    const uint16_t *row = problem.row(o);
    const int64_t done = whole_blocks<X>(row, table, x.ordered, problem.features, sums), rest = problem.features - done;
    if (rest > 0) narrow_block<X>(place<BITS>(row, done / BLOCK_CODES<BITS>).words, table, x.plain, done, rest, sums);
    if (problem.sparse.starts)
        for (int n = 0; n < X; ++n)
            sums[n] = add_entries(sums[n], problem.sparse, problem.sparse.starts[o], problem.sparse.starts[o + 1],
                                  x.plain.at(n, 0));
}

// X rows of x, from row n of the result on, with a block of `count` outputs.
template <int X, class T, int BITS>
inline void stream_block(const Problem<T, BITS> &problem, const StreamInputs<T> &x, int64_t n, int64_t o, int count) {
    f32x16 sums[X][BLOCK_ROWS] = {};
    for (int k = 0; k < count; ++k) {
        f32x16 row[X] = {};
        row_sums<X>(problem, o + k, x, row);
        for (int j = 0; j < X; ++j) sums[j][k] = row[j];
    }
    const f32x16 shift = problem.bias ? load_first(problem.bias + o, count) : broadcast(0.f);
    for (int j = 0; j < X; ++j)
        store_first(problem.out + (n + j) * problem.out_stride + o, sums16(sums[j]) + shift, count);
}

// The outputs of a thread for few rows of x: a block of codes stays in the cache for all of them.
template <class T, int BITS>
inline void stream(const Problem<T, BITS> &problem, const StreamInputs<T> &x, int64_t thread, int64_t threads) {
    const int64_t end = problem.share(thread + 1, threads);
    for (int64_t o = problem.share(thread, threads); o < end; o += BLOCK_ROWS) {
        const int count = (int)std::min<int64_t>(BLOCK_ROWS, end - o);
        int64_t n = 0;
        for (; n + STREAM_ROWS <= problem.rows; n += STREAM_ROWS)
            stream_block<STREAM_ROWS>(problem, x.from(n), n, o, count);
        for (; n + 2 <= problem.rows; n += 2) stream_block<2>(problem, x.from(n), n, o, count);
        if (n < problem.rows) stream_block<1>(problem, x.from(n), n, o, count);
    }
}

// The weights as `multiply_panel` wants them; a few words, to be passed by value and kept in registers.
template <class T, int BITS> struct LutSource {
    static constexpr int CHUNK = BLOCK_CODES<BITS>;
    static constexpr bool SCALED = false;
    int64_t features, row_words;
    const uint16_t *packed;
    const T *tables;
    const Problem<T, BITS> *problem;

    explicit LutSource(const Problem<T, BITS> &p)
        : features(p.features), row_words(::row_words<BITS>(features)), packed(p.packed), tables(p.tables), problem(&p) {}
    const uint16_t *words(int64_t o, int64_t chunk) const { return place<BITS>(packed + o * row_words, chunk).words; }
    void expand(int64_t o, int64_t chunk, Operand<T> *to) const {
        ::expand(words(o, chunk), features - chunk * CHUNK, Table<Operand<T>, BITS>(tables + (o << BITS)), to);
    }
    void ahead(int64_t o, int64_t block) const { prefetch<BITS>(words(o, block)); }
    float scale(int64_t, int64_t) const { return 1.f; }
    void finish(int64_t o, const Panel<T> &panel, f32x16 *totals) const {
        const Sparse<T> &sparse = problem->sparse;
        for (int64_t v = 0; v < panel.vectors(); ++v) {
            f32x16 total = totals[v] + (problem->bias ? value(problem->bias[o]) : 0.f);
            for (int64_t k = problem->entries_before(o); k < problem->entries_before(o + 1); ++k)
                total += value(sparse.values[k]) * panel.column(v, sparse.columns[k]);
            totals[v] = total;
        }
    }
};
