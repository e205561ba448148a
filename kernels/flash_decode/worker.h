// How one thread adds tokens to the running softmax of an item.
#pragma once

#include "flash_decode/problem.h"
#include "flash_decode/state.h"
#include "flash_decode/vectors.h"
#include "rope/rotate.h"

#include <algorithm>
#include <vector>

// The query heads of an item and the weights they give to the tokens of a block.
template <class T> class Heads {
  protected:
    explicit Heads(const Problem<T> &problem)
        : problem(problem), dim(problem.dim), heads(problem.group_heads()), queries(heads * dim),
          weights(heads * Block::TOKENS) {}

    const T *query(int64_t item, int64_t h) const {
        return problem.q.at(problem.row(item), problem.first_head(item) + h);
    }

    void load_queries(int64_t item) {
        position = -1;
        for (int64_t h = 0; h < heads; ++h) std::copy_n(query(item, h), dim, &queries[h * dim]);
    }

    // Whether the queries changed.
    bool rotate_queries(int64_t item, int64_t new_position) {
        if (new_position == position) return false;
        position = new_position;
        const int64_t half = dim / 2;
        const float *cos = problem.cos + position * half, *sin = problem.sin + position * half;
        for (int64_t h = 0; h < heads; ++h) rotate(query(item, h), cos, sin, half, &queries[h * dim]);
        return true;
    }

    // Products of head h with the 16 keys of a tile to logits; lanes without a key, or a visible one, become -inf.
    f32x16 logit(int64_t item, int64_t h, f32x16 product, const Tile &tile) const {
        static constexpr i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const f32x16 x = problem.softcap > 0
                             ? tanh16(product * (problem.scale / problem.softcap)) * (problem.softcap * LOG2E)
                             : product * (problem.scale * LOG2E);
        const f32x16 valid = lane < tile.count ? x : broadcast(NEGATIVE_INFINITY);
        return problem.tree.bits ? visible(valid, problem.row(item), h, tile) : valid;
    }

    f32x16 visible(f32x16 x, int64_t row, int64_t h, const Tile &tile) const {
        const TreeMask &tree = problem.tree;
        const int64_t length = tree.lengths[row], node = h / tree.node_heads;
        if (tile.token[tile.count - 1] < length || node >= tree.nodes) return x;
        for (int lane = 0; lane < tile.count; ++lane) {
            const int64_t place = tile.token[lane] - length;
            if (place >= 0 && !(tree.bits[row * tree.nodes + node] >> place & 1)) x[lane] = NEGATIVE_INFINITY;
        }
        return x;
    }

    // Logits of head h to weights 2^(logit - largest), in place.
    void softmax(int64_t h, const Block &block, State &state) {
        float *w = &weights[h * Block::TOKENS];
        f32x16 peak = load16(w);
        for (int i = 1; i < block.size; ++i) {
            const f32x16 x = load16(w + i * LANES);
            peak = x > peak ? x : peak;
        }
        if (any(peak > state.largest[h])) state.raise(h, max16(peak));
        f32x16 total = load16(state.totals + h * LANES);
        const float zero = std::max(state.largest[h], -1e30f);  // finite, also where nothing was visible yet
        for (int i = 0; i < block.size; ++i) {
            const f32x16 x = exp2_16(load16(w + i * LANES) - zero);
            store16(w + i * LANES, x);
            total += x;
        }
        store16(state.totals + h * LANES, total);
    }

    const Problem<T> &problem;
    const int64_t dim, heads;
    std::vector<T> queries;      // [heads][dim], rotated to `position`
    std::vector<float> weights;  // [heads][Block::TOKENS]

  private:
    int64_t position = -1;
};

template <class T> class VectorWorker : Heads<T> {
    using Heads<T>::problem, Heads<T>::dim, Heads<T>::heads, Heads<T>::queries, Heads<T>::weights;

    static constexpr int AHEAD = 2;  // blocks that are asked for before they are needed

  public:
    explicit VectorWorker(const Problem<T> &problem) : Heads<T>(problem) {}

    // Add tokens [begin, end) of the item's selection to the state.
    void run(int64_t item, int64_t begin, int64_t end, State &state) {
        this->load_queries(item);
        const int64_t row = problem.cache_rows[problem.row(item)], kv_head = problem.kv_head(item);
        const T *keys = problem.keys.at(row, kv_head), *values = problem.values.at(row, kv_head);
        // Two pages of keys: they, their values and the weights of all heads stay in the L1 cache.
        const int64_t tiles = std::clamp<int64_t>(8192 / (LANES * dim * sizeof(T)), 1, Block::MOST_TILES);
        Cursor cursor(problem.spans_of(item), begin, end, (int)tiles, problem.cos != nullptr);
        Block blocks[AHEAD + 1];
        for (int i = 0; i < AHEAD; ++i) cursor.next(blocks[i]);
        for (int now = 0; blocks[now].size; now = (now + 1) % (AHEAD + 1)) {
            const Block &block = blocks[now];
            Block &after = blocks[(now + AHEAD) % (AHEAD + 1)];
            cursor.next(after);
            logits(item, keys, block, after);
            for (int64_t h = 0; h < heads; ++h) this->softmax(h, block, state);
            for_head_tiles(heads, [&](int64_t h, auto tile) {
                weigh_columns<tile.value>(&weights[h * Block::TOKENS], values, dim, block, h ? nullptr : &after,
                                          state.output + h * dim);
            });
        }
    }

  private:
    // Logits of all heads for the keys of a block into weights[h][...]. Meanwhile the first heads ask for a later
    // block's keys, as they do for its values later: the hardware follows neither jumps between spans nor page borders.
    void logits(int64_t item, const T *keys, const Block &block, const Block &after) {
        for (int i = 0; i < block.size; ++i) {
            const Tile &tile = block.tiles[i];
            if (problem.cos) this->rotate_queries(item, tile.position);
            const Tile *later = i < after.size ? &after.tiles[i] : nullptr;
            for_head_tiles(heads, [&](int64_t h, auto tile_heads) {
                f32x16 products[tile_heads.value];
                dots<tile_heads.value>(&queries[h * dim], keys, tile, h ? nullptr : later, dim, products);
                for (int j = 0; j < tile_heads.value; ++j)
                    store16(&weights[(h + j) * Block::TOKENS + i * LANES], this->logit(item, h + j, products[j], tile));
            });
        }
    }
};
