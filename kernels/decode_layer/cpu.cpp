// Whole decoder layers for a few query rows in one parallel region: norm, q|k|v, rotary embedding, append to the cache,
// attention over all of it, output projection, norm, gated feed-forward network. Between two parts the team meets at a
// barrier, which costs a fraction of starting a team anew, and nothing returns to Python.
#include "decode_layer/projection.h"
#include "flash_decode/decoder.h"
#include "rms_norm/normalise.h"
#include "rope/rotate.h"

#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 17;  // weight elements of the layers

// The order of the fields is that of `LayerStack` in Python; a null pointer leaves a part out.
template <class T> struct Layer {
    const float *attention_norm;
    Projection<T> qkv;
    const T *qkv_bias;
    const float *q_norm, *k_norm;
    Projection<T> out;
    const T *out_bias;
    const float *post_attention_norm, *mlp_norm;
    Projection<T> gate_up, down;
    const float *post_mlp_norm;
    int64_t window;  // tokens a query sees, its own included; 0 for all
    T *keys, *values;
    const float *cos, *sin;
};

struct Shape {
    int64_t hidden, heads, kv_heads, dim, intermediate, activation;
};

struct Reals {
    float eps, scale, softcap;
};

constexpr int64_t MATRICES = 4;  // of a layer

enum Part { PROJECT = 1, ATTEND = 2, FINISH = 4 };

// Buffers of one pass over `rows` query rows.
template <class T> struct Buffers {
    T *x;         // [rows][hidden], updated in place
    T *qkv;       // [rows][(H + 2 G) D]
    T *attended;  // [rows][H D]
    T *gated;     // [rows][intermediate]
    T *sublayer;  // [rows][hidden]
    T *normed;    // [threads][rows][hidden]
    float *lse;   // [rows][H]
    T *queries;   // [layers][rows][H D], rotated to their own positions; null where nobody wants them
};

// Where the new tokens go: batch row, slot and position of each; strides of the caches. What each sees is in `spans`
// [rows][span_count], those of one layer `layer_spans` after those of the last, or the same in all layers (0); without
// them it is everything up to itself, or a window of that. `turned`: queries are rotated to the positions of the spans.
struct Tokens {
    const int32_t *cache_rows, *slots, *positions;
    int64_t cache_outer, cache_inner;
    const Span *spans;
    int64_t span_count, layer_spans, turned;
};

template <class T> class Pass {
  public:
    Pass(const Shape &shape, const Reals &reals, const Buffers<T> &buffers, const Tokens &tokens, int64_t rows,
         int64_t threads)
        : shape(shape), reals(reals), buffers(buffers), tokens(tokens), rows(rows), threads(threads),
          width((shape.heads + 2 * shape.kv_heads) * shape.dim) {}

    // All threads of the team call this.
    void run(const Layer<T> *layers, int64_t count, int64_t parts, const std::vector<Problem<T>> &problems,
             const std::vector<Decoder<T> *> &decoders, Taken *taken) {
        for (int64_t i = 0; i < count; ++i) {
            Taken *of_layer = taken + i * MATRICES * threads;
            if (parts & PROJECT) project(layers[i], of_layer);
            if (parts & ATTEND) attend(layers[i], problems[i], *decoders[i], kept_queries(i));
            if (parts & FINISH) finish(layers[i], of_layer);
        }
    }

  private:
    // Every thread normalises all rows for itself: less work than waiting for another.
    const T *normalised(const T *x, const float *weight) const {
        T *out = buffers.normed + omp_get_thread_num() * rows * shape.hidden;
        for (int64_t n = 0; n < rows; ++n)
            normalise(x + n * shape.hidden, out + n * shape.hidden, weight, reals.eps, shape.hidden);
        return out;
    }

    void multiply_by(const T *x, int64_t features, const Projection<T> &weight, const T *bias, const T *residual,
                     T *out, int64_t outputs, Taken *taken) const {
        weight.as_matrix(features, [&](const auto &matrix) {
            const Gemv<std::decay_t<decltype(matrix)>, T> linear{matrix, x, features, bias, 0, residual, outputs,
                                                                 out, outputs, rows, outputs};
            linear.run(omp_get_thread_num(), threads, taken);
        });
#pragma omp barrier
    }

    void multiply_gated(const T *x, const Projection<T> &weight, Taken *taken) const {
        weight.as_matrix(shape.hidden, [&](const auto &matrix) {
            const GatedGemv<std::decay_t<decltype(matrix)>> linear{matrix, x, shape.hidden, buffers.gated,
                                                                   shape.intermediate, shape.activation, rows,
                                                                   shape.intermediate};
            linear.run(omp_get_thread_num(), threads, taken);
        });
#pragma omp barrier
    }

    // Calls work(row, head) for this thread's part of `heads` heads of all rows.
    template <class Work> void for_heads(int64_t heads, Work work) const {
        const Share share(rows * heads, omp_get_thread_num(), threads);
        for (int64_t item = share.begin; item < share.end; ++item) work(item / heads, item % heads);
#pragma omp barrier
    }

    T *head_of(int64_t n, int64_t head) const { return buffers.qkv + n * width + head * shape.dim; }

    void project(const Layer<T> &layer, Taken *taken) const {
        const T *normed = normalised(buffers.x, layer.attention_norm);
        multiply_by(normed, shape.hidden, layer.qkv, layer.qkv_bias, nullptr, buffers.qkv, width, taken);
        if (!layer.q_norm) return;
        for_heads(shape.heads + shape.kv_heads, [&](int64_t n, int64_t head) {
            const float *weight = head < shape.heads ? layer.q_norm : layer.k_norm;
            T *x = head_of(n, head);
            normalise(x, x, weight, reals.eps, shape.dim);
        });
    }

    T *kept_queries(int64_t layer) const {
        return buffers.queries ? buffers.queries + layer * rows * shape.heads * shape.dim : nullptr;
    }

    void attend(const Layer<T> &layer, const Problem<T> &problem, Decoder<T> &decoder, T *queries) const {
        for_heads(shape.heads + 2 * shape.kv_heads, [&](int64_t n, int64_t head) {
            if (head < shape.heads) turn(layer, n, head, queries);
            else store(layer, n, head - shape.heads);
        });
        if (decoder.shares()) {
            decoder.work_shared(problem, omp_get_thread_num());
#pragma omp barrier
        }
        decoder.work(problem, omp_get_thread_num());
#pragma omp barrier
#pragma omp single
        decoder.finish(problem);
    }

    void rotate_own(const Layer<T> &layer, int64_t n, const T *x, T *out) const {
        const int64_t half = shape.dim / 2, angle = tokens.positions[n] * half;
        rotate(x, layer.cos + angle, layer.sin + angle, half, out);
    }

    // Rotates a query in place, unless attention does, and into `queries` if they are wanted.
    void turn(const Layer<T> &layer, int64_t n, int64_t head, T *queries) const {
        T *x = head_of(n, head);
        if (queries) rotate_own(layer, n, x, queries + (n * shape.heads + head) * shape.dim);
        if (!tokens.turned) rotate_own(layer, n, x, x);
    }

    // Rotates a key into the cache; copies a value, whose heads come behind, into the cache.
    void store(const Layer<T> &layer, int64_t n, int64_t head) const {
        const T *x = head_of(n, shape.heads + head);
        if (head < shape.kv_heads) return rotate_own(layer, n, x, at(layer.keys, n, head));
        std::copy_n(x, shape.dim, at(layer.values, n, head - shape.kv_heads));
    }

    T *at(T *cache, int64_t n, int64_t kv_head) const {
        return cache + tokens.cache_rows[n] * tokens.cache_outer + kv_head * tokens.cache_inner +
               tokens.slots[n] * shape.dim;
    }

    void finish(const Layer<T> &layer, Taken *taken) const {
        const int64_t attended = shape.heads * shape.dim;
        add(buffers.attended, attended, layer.out, layer.out_bias, layer.post_attention_norm, taken + threads);
        multiply_gated(normalised(buffers.x, layer.mlp_norm), layer.gate_up, taken + 2 * threads);
        add(buffers.gated, shape.intermediate, layer.down, nullptr, layer.post_mlp_norm, taken + 3 * threads);
    }

    // x += y weight^T + bias, normalised before it is added where the architecture says so (Gemma).
    void add(const T *y, int64_t features, const Projection<T> &weight, const T *bias, const float *norm,
             Taken *taken) const {
        if (!norm) return multiply_by(y, features, weight, bias, buffers.x, buffers.x, shape.hidden, taken);
        multiply_by(y, features, weight, bias, nullptr, buffers.sublayer, shape.hidden, taken);
#pragma omp single
        for (int64_t n = 0; n < rows; ++n) {
            T *sum = buffers.x + n * shape.hidden, *part = buffers.sublayer + n * shape.hidden;
            normalise(part, part, norm, reals.eps, shape.hidden);
            for_vectors(shape.hidden, [&](int64_t i, int count) {
                store_first(sum + i, load_first(sum + i, count) + load_first(part + i, count), count);
            });
        }
    }

    const Shape &shape;
    const Reals &reals;
    const Buffers<T> &buffers;
    const Tokens &tokens;
    const int64_t rows, threads, width;
};

// The attention of each layer. Layers that read the same tokens, as those with the same window do, share a decoder.
template <class T> struct Attention {
    std::vector<std::vector<Span>> spans;
    std::vector<Decoder<T>> kinds;
    std::vector<Problem<T>> problems;
    std::vector<Decoder<T> *> decoders;

    Attention(const Layer<T> *layers, int64_t count, const Shape &shape, const Reals &reals,
              const Buffers<T> &buffers, const Tokens &tokens, int64_t rows, int64_t threads) {
        std::vector<int64_t> reads, kind(count);  // kinds of reading: a window, or the place of the first such spans
        const bool given = tokens.spans != nullptr;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t read = given ? i * tokens.layer_spans : layers[i].window;
            kind[i] = std::find(reads.begin(), reads.end(), read) - reads.begin();
            if (kind[i] == (int64_t)reads.size()) reads.push_back(read);
        }
        if (!given)
            for (int64_t window : reads) spans.push_back(causal(window, tokens, rows));
        const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.dim;
        for (int64_t i = 0; i < count; ++i)
            problems.push_back({{buffers.qkv, width, shape.dim},
                                {layers[i].keys, tokens.cache_outer, tokens.cache_inner},
                                {layers[i].values, tokens.cache_outer, tokens.cache_inner},
                                given ? tokens.spans + reads[kind[i]] : spans[kind[i]].data(), 1,
                                given ? tokens.span_count : 1,
                                tokens.cache_rows, tokens.turned ? layers[i].cos : nullptr,
                                tokens.turned ? layers[i].sin : nullptr, reals.scale, reals.softcap, buffers.attended,
                                buffers.lse, rows, shape.heads, shape.kv_heads, shape.dim});
        kinds.reserve(reads.size());
        for (int64_t k = 0; k < (int64_t)reads.size(); ++k)
            kinds.emplace_back(problems[std::find(kind.begin(), kind.end(), k) - kind.begin()], threads);
        for (int64_t i = 0; i < count; ++i) decoders.push_back(&kinds[kind[i]]);
    }

    static std::vector<Span> causal(int64_t window, const Tokens &tokens, int64_t rows) {
        std::vector<Span> spans;
        for (int64_t n = 0; n < rows; ++n) {
            const int32_t stop = tokens.slots[n] + 1;
            spans.push_back({window ? std::max<int32_t>(0, stop - (int32_t)window) : 0, stop, 0});
        }
        return spans;
    }
};

template <class T>
void decode_layers(const Layer<T> *layers, int64_t count, int64_t parts, const Shape &shape, const Reals &reals,
                   const Buffers<T> &buffers, const Tokens &tokens, int64_t rows, int64_t threads) {
    const int64_t weights = shape.hidden * (shape.hidden + 3 * shape.intermediate) * count;
    const int64_t team_size = team(threads, weights, WORTH_A_TEAM);
    const Attention<T> attention(layers, parts & ATTEND ? count : 0, shape, reals, buffers, tokens, rows, team_size);
    Pass<T> pass(shape, reals, buffers, tokens, rows, team_size);
    std::vector<Taken> taken(count * MATRICES * team_size);
#pragma omp parallel num_threads(team_size)
    pass.run(layers, count, parts, attention.problems, attention.decoders, taken.data());
}

}  // namespace

#define DECODE_LAYERS(NAME, T)                                                                                        \
    extern "C" void NAME(const Layer<T> *layers, int64_t count, int64_t parts, const Shape *shape,                   \
                         const Reals *reals, const Buffers<T> *buffers, const Tokens *tokens, int64_t rows,          \
                         int64_t threads) {                                                                           \
        const Tokens none{};                                                                                          \
        decode_layers(layers, count, parts, *shape, *reals, *buffers, tokens ? *tokens : none, rows, threads);       \
    }

DECODE_LAYERS(decode_layers_f32, float)
DECODE_LAYERS(decode_layers_bf16, bf16)
