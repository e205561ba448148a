// Many rows of x against packed weights: a tile of weights is unpacked once, to the first-level cache, for all rows.
//
// Sixteen rows of x lie side by side in the lanes of a vector, so that a weight is a broadcast and nothing has to be
// summed across lanes.
#pragma once

#include "lut_gemv/codes.h"

#include <algorithm>
#include <vector>

constexpr int REGISTER_SUMS = 12;  // vectors of sums of the register kernel: as many again hold its inputs and totals
constexpr int MAX_VECTORS = 4;     // of x rows, in one pass over the weights
constexpr int DEPTH = 32;          // inputs are padded to a multiple of this: those of a tile register
constexpr int PANEL_ROWS = MAX_VECTORS * LANES;

template <class C> constexpr int PAIR = sizeof(float) / sizeof(C);  // inputs that share a 32-bit lane

// x [rows][features] as [vector of 16 rows][features / PAIR][width][PAIR], zeros where there is no row or no input.
// The width is 16, or less for a single vector that is to be read without its empty lanes.
template <class T> class Panel {
  public:
    using C = Operand<T>;

    // The scratch belongs to the calling thread, for its next panel to use again.
    Panel(const T *x, int64_t stride, int64_t rows, int64_t features, bool narrow)
        : rows(rows), width(narrow ? std::min<int64_t>(rows, LANES) : LANES), x(x), stride(stride), features(features),
          padded((features + DEPTH - 1) / DEPTH * DEPTH) {
        static thread_local std::vector<f32x16> scratch;
        const int64_t size = vectors() * vector_stride() * sizeof(C) / sizeof(f32x16) + 1;  // `column` reads whole vectors
        if ((int64_t)scratch.size() < size) scratch.resize(size);
        data = (C *)scratch.data();
    }

    const int64_t rows, width;
    int64_t vectors() const { return (rows + LANES - 1) / LANES; }
    int64_t vector_stride() const { return padded * width; }
    C *at(int64_t vector, int64_t input) const { return data + (vector * padded + input) * width; }

    // The inputs of a chunk that starts at `input`, padding included.
    int depth(int64_t input, int chunk) const { return (int)std::min<int64_t>(chunk, padded - input); }

    void pack(int64_t thread, int64_t threads) const {
        constexpr int INPUTS = LANES * PAIR<C>;  // of one transposition
        const Share share(padded / INPUTS, thread, threads);
        for (int64_t v = 0; v < vectors(); ++v)
            for (int64_t b = share.begin; b < share.end; ++b) {
                u32x16 lanes[LANES];
                for (int t = 0; t < LANES; ++t)
                    lanes[t] = v * LANES + t < rows ? read(v * LANES + t, b * INPUTS) : u32x16{};
                transpose16(lanes);
                for (int i = 0; i < LANES; ++i)
                    store_first((float *)at(v, b * INPUTS + i * PAIR<C>), (f32x16)lanes[i], (int)width);
            }
    }

    // Input `input` of the rows of a vector.
    f32x16 column(int64_t vector, int64_t input) const {
        if constexpr (PAIR<C> == 1) return load16(at(vector, input));
        u32x16 both;
        std::memcpy(&both, at(vector, input & ~1), sizeof both);
        return (f32x16)(input & 1 ? both & 0xffff0000u : both << 16);
    }

  private:
    const T *x;
    int64_t stride, features, padded;
    C *data;

    u32x16 read(int64_t row, int64_t input) const {
        const T *p = x + row * stride + input;
        const int count = (int)std::clamp<int64_t>(features - input, 0, LANES * PAIR<C>);
        if constexpr (sizeof(T) == sizeof(C)) {
            u32x16 lanes = {};
            if (count == LANES * PAIR<C>) std::memcpy(&lanes, p, sizeof lanes);
            else std::memcpy(&lanes, p, count * sizeof(T));
            return lanes;
        } else {
            return (u32x16)load_first(p, count);
        }
    }
};

// out[t][o + n] = the lanes of totals[n][V], for `count` outputs from o on and all rows t of the panel.
template <int V, class T>
inline void store_outputs(const f32x16 (*totals)[V], int count, int64_t rows, T *out, int64_t out_stride) {
    for (int v = 0; v < V; ++v) {
        u32x16 lanes[LANES] = {};
        for (int n = 0; n < count; ++n) lanes[n] = (u32x16)totals[n][v];
        transpose16(lanes);
        const int valid = (int)std::min<int64_t>(LANES, rows - v * LANES);
        for (int t = 0; t < valid; ++t) store_first(out + (v * LANES + t) * out_stride, (f32x16)lanes[t], count);
    }
}

// totals[n] += scales[n] * (products of N rows of weights, CHUNK apart, with the V vectors of a panel at x).
template <int N, int V, int CHUNK, class C>
inline void multiply_rows(int depth, const C *weights, const C *x, int64_t x_stride, const float *scales,
                          f32x16 (*totals)[V]) {
    f32x16 sums[N][V] = {};
    for (int i = 0; i < depth; i += PAIR<C>) {
        f32x16 columns[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) columns[v] = load16((const float *)(x + v * x_stride + i * LANES));
#pragma GCC unroll 12
        for (int n = 0; n < N; ++n) {
            float weight;  // or a pair of them
            std::memcpy(&weight, weights + n * CHUNK + i, sizeof weight);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
#ifdef SIMD_AVX512_BF16
                if constexpr (PAIR<C> == 2)
                    sums[n][v] = (f32x16)_mm512_dpbf16_ps((__m512)sums[n][v], (__m512bh)_mm512_set1_ps(weight),
                                                          (__m512bh)columns[v]);
                else
#endif
                    sums[n][v] += weight * columns[v];
        }
    }
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < V; ++v) totals[n][v] += scales[n] * sums[n][v];
}

// out [rows of the panel][outputs] for the outputs `begin` to `end`, in the vector registers. A Source gives:
//   CHUNK                  inputs unpacked at once; features, of a row,
//   expand(o, chunk, to)   the weights of a chunk of row o, zeros behind the last; may write WORDS more than CHUNK,
//   ahead(o, block)        asks for the codes of a block, counted from row o on: tiles of rows are more streams than the
//                          hardware follows, so the next tile is asked for in the order of addresses,
//   SCALED, scale(o, chunk)   whether and by what their products are multiplied,
//   finish(o, panel, totals)  what is to be added to the sums of row o, [vectors of the panel].
template <int V, class T, class Source>
inline void multiply_in_registers(Source source, const Panel<T> &panel, int64_t begin, int64_t end, T *out,
                                  int64_t out_stride) {
    using C = Operand<T>;
    constexpr int CHUNK = Source::CHUNK, ROWS = REGISTER_SUMS, TOGETHER = REGISTER_SUMS / V;
    alignas(64) C weights[ROWS * CHUNK + WORDS] = {};
    float scales[ROWS] = {};
    for (int64_t o = begin; o < end; o += ROWS) {
        const int count = (int)std::min<int64_t>(ROWS, end - o);
        f32x16 totals[ROWS][V] = {};
        for (int64_t input = 0; input < source.features; input += CHUNK) {
            for (int n = 0; n < count; ++n) {
                source.ahead(o + ROWS, input / CHUNK * ROWS + n);
                source.expand(o + n, input / CHUNK, weights + n * CHUNK);
                scales[n] = source.scale(o + n, input / CHUNK);
            }
            for (int n = 0; n < ROWS; n += TOGETHER)
                multiply_rows<TOGETHER, V, CHUNK>(panel.depth(input, CHUNK), weights + n * CHUNK, panel.at(0, input),
                                                  panel.vector_stride(), scales + n, totals + n);
        }
        for (int n = 0; n < count; ++n) source.finish(o + n, panel, totals[n]);
        store_outputs<V>(totals, count, panel.rows, out + o, out_stride);
    }
}
