// Attention of the nodes of draft trees, over a team of threads: decode attention in which all nodes of a tree, times
// the query heads of a KV head, are the heads of a group, and the last tokens have a mask.
#include "flash_decode/decoder.h"

#include <cstring>
#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // elements of K and V
constexpr int64_t SET = 16;                // heads that a worker takes together, at most

template <class T> struct Trees {
    const T *q;
    int64_t q_batch, q_node, q_head;
    const int32_t *lengths, *counts;
    T *out;
    float *lse;
    int64_t batch, nodes, heads, kv_heads, dim;

    int64_t node_heads() const { return heads / kv_heads; }
    // Rows of a KV head, [node][head], filled up to whole sets.
    int64_t group_rows() const {
        const int64_t rows = nodes * node_heads();
        return rows <= SET ? rows : (rows + SET - 1) / SET * SET;
    }
    int64_t all_rows() const { return batch * kv_heads * group_rows(); }

    // Calls work(row, batch row, node, head) with the place of each in the rows of all groups.
    template <class Work> void for_rows(Work work) const {
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t g = 0; g < kv_heads; ++g)
                for (int64_t n = 0; n < nodes; ++n)
                    for (int64_t j = 0; j < node_heads(); ++j)
                        work((b * kv_heads + g) * group_rows() + n * node_heads() + j, b, n, g * node_heads() + j);
    }
    void pack(T *rows) const {
        for_rows([&](int64_t row, int64_t b, int64_t n, int64_t h) {
            if (n < counts[b]) std::copy_n(q + b * q_batch + n * q_node + h * q_head, dim, rows + row * dim);
        });
    }
    void unpack(const T *rows, const float *row_lse) const {
        for_rows([&](int64_t row, int64_t b, int64_t n, int64_t h) {
            const int64_t to = (b * nodes + n) * heads + h;
            const bool real = n < counts[b];
            if (real) std::copy_n(rows + row * dim, dim, out + to * dim);
            else std::memset(out + to * dim, 0, dim * sizeof(T));
            lse[to] = real ? row_lse[row] : NEGATIVE_INFINITY;
        });
    }
    std::vector<Span> spans() const {
        std::vector<Span> spans;
        for (int64_t b = 0; b < batch; ++b) spans.push_back({0, counts[b] ? lengths[b] + counts[b] : 0, 0});
        return spans;
    }
};

template <class T>
void attend(const Trees<T> &trees, View<const T> keys, View<const T> values, const uint64_t *bits, float scale,
            float softcap, int64_t threads) {
    const int64_t rows = trees.all_rows(), heads = trees.kv_heads * trees.group_rows(), dim = trees.dim;
    std::vector<T> queries(rows * dim), outputs(rows * dim);
    std::vector<float> lse(rows);
    std::vector<int32_t> cache_rows(trees.batch);
    for (int64_t b = 0; b < trees.batch; ++b) cache_rows[b] = (int32_t)b;
    trees.pack(queries.data());
    const std::vector<Span> spans = trees.spans();
    Problem<T> problem{{queries.data(), heads * dim, dim}, keys, values, spans.data(), 1, 1, cache_rows.data(),
                       nullptr, nullptr, scale, softcap, outputs.data(), lse.data(), trees.batch, heads,
                       trees.kv_heads, dim, {bits, trees.lengths, trees.nodes, trees.node_heads()}};
    const int64_t team_size = team(threads, problem.elements(), WORTH_A_TEAM);
    Decoder<T> decoder(problem, team_size);
#pragma omp parallel for schedule(static) num_threads(team_size)
    for (int64_t thread = 0; thread < team_size; ++thread) decoder.work(problem, thread);
    decoder.finish(problem);
    trees.unpack(outputs.data(), lse.data());
}

}  // namespace

#define TREE_ATTENTION(NAME, T)                                                                                       \
    extern "C" void NAME(const T *q, int64_t q_batch, int64_t q_node, int64_t q_head, const T *keys,                 \
                         int64_t key_outer, int64_t key_inner, const T *values, int64_t value_outer,                 \
                         int64_t value_inner, const uint64_t *bits, const int32_t *lengths, const int32_t *counts,   \
                         float scale, float softcap, T *out, float *lse, int64_t batch, int64_t nodes,               \
                         int64_t heads, int64_t kv_heads, int64_t dim, int64_t threads) {                             \
        const Trees<T> trees{q, q_batch, q_node, q_head, lengths, counts, out, lse, batch, nodes, heads, kv_heads,   \
                             dim};                                                                                    \
        attend<T>(trees, {keys, key_outer, key_inner}, {values, value_outer, value_inner}, bits, scale, softcap,     \
                  threads);                                                                                           \
    }

TREE_ATTENTION(tree_attention_f32, float)
TREE_ATTENTION(tree_attention_bf16, bf16)
