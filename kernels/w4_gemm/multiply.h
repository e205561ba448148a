// The share that one thread has in y = x W^T for int4 weights with a scale per group of 128 inputs.
//
// A group is one block of 4-bit codes, and its codes are looked up as the integers they mean, which bf16 holds exactly:
// the sum over a group is multiplied by its scale once, in fp32.
#pragma once

#include "lut_gemv/stream.h"
#include "lut_gemv/tiles.h"

constexpr int BITS = 4, GROUP = BLOCK_CODES<BITS>;
constexpr int MAX_GROUPS = 512;  // whose scales are converted at once

// -8, ..., 7 in bf16.
static constexpr bf16 INTEGERS[1 << BITS] = {{0xc100}, {0xc0e0}, {0xc0c0}, {0xc0a0}, {0xc080}, {0xc040},
                                             {0xc000}, {0xbf80}, {0x0000}, {0x3f80}, {0x4000}, {0x4040},
                                             {0x4080}, {0x40a0}, {0x40c0}, {0x40e0}};

template <class T> struct Problem {
    const uint16_t *packed;
    const _Float16 *scales;
    T *out;
    int64_t out_stride, rows, features, outputs;

    int64_t groups() const { return (features + GROUP - 1) / GROUP; }
    const uint16_t *row(int64_t o) const { return packed + o * row_words<BITS>(features); }
};

// A span of `groups` scales in fp32.
static inline void widen(const _Float16 *scales, int64_t groups, float *to) {
    int64_t g = 0;
#ifdef SIMD_AVX512
    for (; g + LANES <= groups; g += LANES)
        store16(to + g, (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + g))));
#endif
    for (; g < groups; ++g) to[g] = (float)scales[g];
}

// sums[n] += products of X rows of x with the whole groups of `features` inputs of a row of codes.
template <int X, class S>
inline void whole_groups(const uint16_t *row, const float *scales, const Table<S, BITS> &table, Inputs<S> x,
                         int64_t features, f32x16 (&sums)[X]) {
    for (int64_t g = 0; (g + 1) * GROUP <= features; ++g) {
        const Place at = place<BITS>(row, g);
        prefetch<BITS>(at.words + AHEAD);
        const Block<BITS> block = Block<BITS>::load(at.words);
        f32x16 even[X] = {}, odd[X] = {};
#pragma GCC unroll 2
        for (int j = 0; j < 4; j += 2) {
            const Weights<S> first = table.of(block.codes(j)), second = table.of(block.codes(j + 1));
#pragma GCC unroll 4
            for (int n = 0; n < X; ++n) {
                even[n] = first.times(even[n], x.at(n, at.input + j * WORDS));
                odd[n] = second.times(odd[n], x.at(n, at.input + (j + 1) * WORDS));
            }
        }
        for (int n = 0; n < X; ++n) sums[n] += scales[g] * (even[n] + odd[n]);
    }
}

// All groups of row o, the last one narrow or not. `plain` are the same rows of x as they are.
template <int X, class T>
inline void row_sums(const Problem<T> &problem, int64_t o, Inputs<T> plain, Inputs<Operand<T>> x,
                     f32x16 (&sums)[X]) {
    float scales[MAX_GROUPS];
    const Table<Operand<T>, BITS> table(INTEGERS);
    const int64_t groups = problem.groups(), whole = problem.features / GROUP;
    for (int64_t g = 0; g < groups; g += MAX_GROUPS) {
        const int64_t count = std::min<int64_t>(MAX_GROUPS, groups - g), now = std::min<int64_t>(count, whole - g);
        widen(problem.scales + o * groups + g, count, scales);
        whole_groups<X>(place<BITS>(problem.row(o), g).words, scales, table, {x.at(0, g * GROUP), x.stride},
                        now * GROUP, sums);
        if (now == count) continue;
        f32x16 narrow[X] = {};
        narrow_block<X>(place<BITS>(problem.row(o), whole).words, table, plain, whole * GROUP,
                        problem.features - whole * GROUP, narrow);
        for (int n = 0; n < X; ++n) sums[n] += scales[now] * narrow[n];
    }
}

// X rows of x, from row n on, with a block of `count` outputs.
template <int X, class T>
inline void stream_block(const Problem<T> &problem, Inputs<T> plain, Inputs<Operand<T>> x, int64_t n, int64_t o,
                         int count) {
    f32x16 sums[X][BLOCK_ROWS] = {};
    for (int k = 0; k < count; ++k) {
        f32x16 row[X] = {};
        row_sums<X, T>(problem, o + k, {plain.at(n, 0), plain.stride}, {x.at(n, 0), x.stride}, row);
        for (int j = 0; j < X; ++j) sums[j][k] = row[j];
    }
    for (int j = 0; j < X; ++j) store_first(problem.out + (n + j) * problem.out_stride + o, sums16(sums[j]), count);
}

// The outputs `begin` to `end` for few rows of x.
template <class T>
inline void stream(const Problem<T> &problem, Inputs<T> plain, Inputs<Operand<T>> x, int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o += BLOCK_ROWS) {
        const int count = (int)std::min<int64_t>(BLOCK_ROWS, end - o);
        int64_t n = 0;
        for (; n + STREAM_ROWS <= problem.rows; n += STREAM_ROWS)
            stream_block<STREAM_ROWS>(problem, plain, x, n, o, count);
        for (; n + 2 <= problem.rows; n += 2) stream_block<2>(problem, plain, x, n, o, count);
        if (n < problem.rows) stream_block<1>(problem, plain, x, n, o, count);
    }
}

// The weights as `multiply_panel` wants them; a few words, to be passed by value and kept in registers.
template <class T> struct Int4Source {
    static constexpr int CHUNK = GROUP;
    static constexpr bool SCALED = true;
    int64_t features, row_words, groups;
    const uint16_t *packed;
    const _Float16 *scales;

    explicit Int4Source(const Problem<T> &p)
        : features(p.features), row_words(::row_words<BITS>(features)), groups(p.groups()), packed(p.packed),
          scales(p.scales) {}
    const uint16_t *words(int64_t o, int64_t chunk) const { return place<BITS>(packed + o * row_words, chunk).words; }
    void expand(int64_t o, int64_t chunk, Operand<T> *to) const {
        ::expand(words(o, chunk), features - chunk * CHUNK, Table<Operand<T>, BITS>(INTEGERS), to);
    }
    void ahead(int64_t o, int64_t block) const { prefetch<BITS>(words(o, block)); }
    float scale(int64_t o, int64_t chunk) const { return (float)scales[o * groups + chunk]; }
    void finish(int64_t, const Panel<T> &, f32x16 *) const {}
};
