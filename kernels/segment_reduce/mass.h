// Softmax probabilities of query rows summed per segment of keys, in one pass and without a row of probabilities.
//
// A block of query vectors (rows and the query heads of one KV head) meets the keys tile by tile. A tile is transposed
// once, so that a lane is a key and a query element is broadcast, and serves all queries of the block. A segment's sum
// is kept together with the largest logit known when it was closed; a later, larger logit only changes the open
// segment and the total, and all sums are brought to one scale at the end. Logits are in units of log2.
#pragma once

#include "simd.h"
#include "view.h"

#include <algorithm>
#include <cmath>
#include <vector>

constexpr int TILE_KEYS = 64, TILE_VECTORS = TILE_KEYS / LANES;
constexpr int TILE_QUERIES = 4;    // four queries times four vectors of keys fill half of the registers
constexpr int BLOCK_QUERIES = 64;  // query vectors that share a transposed tile
constexpr int PLAIN_TILES = 32;    // summed in fp32; longer segments go on in fp64

// How queries and keys are multiplied: each 32-bit word of a packed row has DEPTH elements.
template <class T> struct Pack {
    static constexpr int DEPTH = 1;
    static f32x16 load(const T *row, int count) { return load_first(row, count); }
    static f32x16 step(f32x16 sum, f32x16 keys, float query) { return sum + keys * query; }
};

#ifdef SIMD_AVX512_BF16
template <> struct Pack<bf16> {
    static constexpr int DEPTH = 2;
    static f32x16 load(const bf16 *row, int count) {
        bf16 padded[2 * LANES] = {};
        std::memcpy(padded, row, count * sizeof(bf16));
        f32x16 words;
        std::memcpy(&words, padded, sizeof words);
        return words;
    }
    static f32x16 step(f32x16 sum, f32x16 keys, float query) {
        return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)keys, (__m512bh)broadcast_bits(query));
    }
    static __m512i broadcast_bits(float word) {
        int32_t bits;
        std::memcpy(&bits, &word, sizeof bits);
        return _mm512_set1_epi32(bits);
    }
};
#endif

// Exchanges blocks of STEP x STEP across the diagonal.
template <int STEP> inline void exchange(f32x16 *x) {
    i32x16 low, high;
    for (int i = 0; i < LANES; ++i) {
        low[i] = i & STEP ? LANES + i - STEP : i;
        high[i] = i & STEP ? LANES + i : i + STEP;
    }
    for (int i = 0; i < LANES; ++i)
        if (!(i & STEP)) {
            const f32x16 a = x[i], b = x[i + STEP];
            x[i] = __builtin_shuffle(a, b, low);
            x[i + STEP] = __builtin_shuffle(a, b, high);
        }
}

inline void transpose16(f32x16 *x) {
    exchange<8>(x);
    exchange<4>(x);
    exchange<2>(x);
    exchange<1>(x);
}

// Part of a tile that lies in one segment, or (segment -1) in none.
struct Piece {
    int64_t segment;
    int begin, end;
};

// Which segments the keys of a tile belong to; asked for tiles in ascending order.
class Walker {
  public:
    Walker(const int32_t *offsets, int64_t segments) : offsets(offsets), segments(segments) {}

    void pieces(int64_t first, int count, std::vector<Piece> &found) {
        found.clear();
        for (int begin = 0; begin < count;) {
            while (next < segments && offsets[next + 1] <= first + begin) ++next;
            const bool inside = next < segments && offsets[next] <= first + begin;
            const int64_t limit = next == segments ? first + count : inside ? offsets[next + 1] : offsets[next];
            const int end = (int)std::min<int64_t>(limit - first, count);
            found.push_back({inside ? next : -1, begin, end});
            begin = end;
        }
    }

  private:
    const int32_t *offsets;
    int64_t segments, next = 0;
};

// The running softmax of one query vector.
struct MassState {
    float *mass, *peaks;  // [segments]: sums, and the largest logit they are relative to
    int64_t visible;      // keys
    float largest = NEGATIVE_INFINITY;
    double total = 0, part = 0;  // of closed segments, and of the open one
    f32x16 recent = {};          // of the open one too
    int64_t open = -1;
    int tiles = 0;  // in `recent`

    void flush() {
        part += sum16(recent);
        recent = f32x16{};
        tiles = 0;
    }
    void close() {
        flush();
        total += part;
        if (open >= 0) {
            mass[open] = (float)part;
            peaks[open] = largest;
        }
        part = 0;
    }
    void raise(float peak) {
        const float factor = std::exp2(largest - peak);
        total *= factor;
        part *= factor;
        recent *= factor;
        largest = peak;
    }
    void add(const Piece &piece, const f32x16 *p) {
        for (int v = piece.begin / LANES; v * LANES < piece.end; ++v) {
            const i32x16 lane = LANE_NUMBERS + v * LANES;
            const i32x16 inside = (lane >= piece.begin) & (lane < piece.end);
            recent += (f32x16)((i32x16)p[v] & inside);
        }
    }
    // Logits of a tile that begins with key `first`.
    void update(f32x16 *logits, int64_t first, const std::vector<Piece> &pieces) {
        const int count = (int)std::min<int64_t>(visible - first, TILE_KEYS);
        if (count <= 0) return;
        f32x16 most = broadcast(NEGATIVE_INFINITY);
        for (int v = 0; v < TILE_VECTORS; ++v) {
            logits[v] = LANE_NUMBERS + v * LANES < count ? logits[v] : broadcast(NEGATIVE_INFINITY);
            most = logits[v] > most ? logits[v] : most;
        }
        const float peak = max16(most);
        if (peak > largest) raise(peak);
        for (int v = 0; v < TILE_VECTORS; ++v) logits[v] = exp2_16(logits[v] - std::max(largest, LEAST));
        if (++tiles > PLAIN_TILES) flush();
        for (const Piece &piece : pieces) {
            if (piece.begin >= count) break;
            if (piece.segment != open) {
                close();
                open = piece.segment;
            }
            add(piece, logits);
        }
    }
    void finish(int64_t segments) {
        close();
        const float inverse = total > 0 ? (float)(1 / total) : 0.f;
        for (int64_t i = 0; i < segments; i += LANES) {
            const int count = (int)std::min<int64_t>(LANES, segments - i);
            const f32x16 factor = exp2_16(load_first(peaks + i, count) - std::max(largest, LEAST)) * inverse;
            store_first(mass + i, load_first(mass + i, count) * factor, count);
        }
    }

    static constexpr float LEAST = -3e38f;  // finite, so that nothing but infinite logits gives weights of 0
    static constexpr i32x16 LANE_NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};

template <class T> struct MassProblem {
    View<const T> q;  // [rows][heads][dim]
    const T *keys;    // [kv_heads][tokens][dim]
    int64_t key_head, key_token;
    const int32_t *positions, *offsets;
    float scale, softcap;
    float *out;  // [rows][heads][segments]
    int64_t rows, heads, kv_heads, tokens, dim, segments;

    int64_t group() const { return heads / kv_heads; }
    int64_t vectors() const { return rows * group(); }  // of one KV head
    int64_t blocks() const { return (vectors() + BLOCK_QUERIES - 1) / BLOCK_QUERIES; }
    int64_t words() const {
        constexpr int width = LANES * Pack<T>::DEPTH;
        return (dim + width - 1) / width * LANES;
    }
};

// One thread's memory.
template <class T> class MassWorker {
  public:
    MassWorker(const MassProblem<T> &problem)
        : problem(problem), words(problem.words()), queries(BLOCK_QUERIES * words), tile(TILE_KEYS * words),
          peaks(BLOCK_QUERIES * problem.segments), states(BLOCK_QUERIES) {}

    // The masses of a block of query vectors of one KV head.
    void run(int64_t kv_head, int64_t block) {
        const int64_t first = block * BLOCK_QUERIES;
        const int count = (int)std::min<int64_t>(BLOCK_QUERIES, problem.vectors() - first);
        int64_t visible = 0;
        for (int i = 0; i < count; ++i) {
            begin(kv_head, first + i, i);
            visible = std::max(visible, states[i].visible);
        }
        Walker walker(problem.offsets, problem.segments);
        for (int64_t key = 0; key < visible; key += TILE_KEYS) {
            const int keys = (int)std::min<int64_t>(TILE_KEYS, visible - key);
            walker.pieces(key, keys, pieces);
            pack(problem.keys + kv_head * problem.key_head + key * problem.key_token, keys);
            for (int i = 0; i < count; i += TILE_QUERIES) multiply(i, std::min(TILE_QUERIES, count - i), key);
        }
        for (int i = 0; i < count; ++i) states[i].finish(problem.segments);
    }

  private:
    using P = Pack<T>;
    const MassProblem<T> problem;
    int64_t words;
    std::vector<float> queries, tile;  // [query][words], [words][key]
    std::vector<float> peaks;
    std::vector<MassState> states;
    std::vector<Piece> pieces;

    f32x16 load(const T *row, int64_t word) const {
        const int64_t left = problem.dim - word * P::DEPTH;
        return P::load(row + word * P::DEPTH, (int)std::min<int64_t>(left, LANES * P::DEPTH));
    }
    void begin(int64_t kv_head, int64_t vector, int i) {
        const int64_t row = vector / problem.group(), head = kv_head * problem.group() + vector % problem.group();
        const T *query = problem.q.at(row, head);
        for (int64_t w = 0; w < words; w += LANES) store16(&queries[i * words + w], load(query, w));
        MassState &state = states[i] = MassState();
        state.mass = problem.out + (row * problem.heads + head) * problem.segments;
        state.peaks = peaks.data() + i * problem.segments;
        state.visible = std::min<int64_t>(problem.positions[row] + 1, problem.tokens);
        std::fill_n(state.mass, problem.segments, 0.f);
        std::fill_n(state.peaks, problem.segments, NEGATIVE_INFINITY);
    }
    void pack(const T *keys, int count) {
        for (int64_t w = 0; w < words; w += LANES)
            for (int v = 0; v < TILE_VECTORS; ++v) {
                f32x16 square[LANES];
                for (int i = 0; i < LANES; ++i) {
                    const int key = v * LANES + i;
                    square[i] = key < count ? load(keys + key * problem.key_token, w) : f32x16{};
                }
                transpose16(square);
                for (int i = 0; i < LANES; ++i) store16(&tile[(w + i) * TILE_KEYS + v * LANES], square[i]);
            }
    }
    f32x16 logit(f32x16 product) const {
        const float scale = problem.scale, cap = problem.softcap;
        return cap > 0 ? tanh16(product * (scale / cap)) * (cap * LOG2E) : product * (scale * LOG2E);
    }
    // Query vectors behind the last of the block are stale and their products unused.
    void multiply(int first, int count, int64_t key) {
        f32x16 sums[TILE_QUERIES][TILE_VECTORS] = {};
        const float *query = &queries[first * words];
        for (int64_t w = 0; w < words; ++w) {
            f32x16 keys[TILE_VECTORS];
            for (int v = 0; v < TILE_VECTORS; ++v) keys[v] = load16(&tile[w * TILE_KEYS + v * LANES]);
            for (int i = 0; i < TILE_QUERIES; ++i)
                for (int v = 0; v < TILE_VECTORS; ++v) sums[i][v] = P::step(sums[i][v], keys[v], query[i * words + w]);
        }
        for (int i = 0; i < count; ++i) {
            for (int v = 0; v < TILE_VECTORS; ++v) sums[i][v] = logit(sums[i][v]);
            states[first + i].update(sums[i], key, pieces);
        }
    }
};
