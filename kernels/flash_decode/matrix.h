// Decode attention of bf16 heads in the matrix unit (AMX), where a tile of 16 keys is multiplied with all heads of a
// group at once. The keys are loaded as they lie in the cache; pairs of values are interleaved on their way.
//
// A tile register cannot be loaded until what it reads has left the store buffer. So the work on a block is spread over
// three turns: its logits and interleaved values in one, its softmax in the next, its weighted values in the third.
#pragma once

#include "amx.h"
#include "flash_decode/worker.h"

#ifdef SIMD_AMX

// Pairs of bf16: what one 32-bit column of a tile holds.
struct bf16x2 {
    bf16 first, second;
};

// products[h]: head h of 16 rows of four heads.
inline void transpose_heads(const f32x16 (&rows)[4], f32x16 (&products)[4]) {
    constexpr int A = 0, B = 1, C = 2, D = 3;
#define HEADS_OF(X, Y, H) \
    SHUFFLE(rows[X], rows[Y], H, H + 4, H + 8, H + 12, H + 16, H + 20, H + 24, H + 28, H + 1, H + 5, H + 9, H + 13, \
            H + 17, H + 21, H + 25, H + 29)
    const f32x16 low01 = HEADS_OF(A, B, 0), high01 = HEADS_OF(C, D, 0);
    const f32x16 low23 = HEADS_OF(A, B, 2), high23 = HEADS_OF(C, D, 2);
#undef HEADS_OF
    products[0] = SHUFFLE(low01, high01, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    products[1] = SHUFFLE(low01, high01, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    products[2] = SHUFFLE(low23, high23, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    products[3] = SHUFFLE(low23, high23, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// The rows of the next block, asked for a few at a time: more at once than the memory has in work would stall
// everything behind them, and between two bursts it would idle.
struct Coming {
    const Block *block;
    const bf16 *keys, *values;
    int64_t dim;
    int tile = 0, row = 0;

    void ask(int rows) {
        for (; rows > 0 && tile < block->size; --rows) {
            const int64_t first = block->tiles[tile].token[row] * dim;
            for (int64_t d = 0; d < dim; d += AMX_DEPTH) {
                __builtin_prefetch(keys + first + d);
                __builtin_prefetch(values + first + d);
            }
            if (++row == block->tiles[tile].count) ++tile, row = 0;
        }
    }
};

class MatrixWorker : Heads<bf16> {
    static constexpr int DEPTH = AMX_DEPTH, RING = 3;
    static constexpr int SET = 16;  // heads that are worked on together, at most
    static constexpr int BLOCK_TILES = 2, STEP = BLOCK_TILES * LANES;  // tokens of one product with the values
    static constexpr int FEW_ROWS = 3;     // asked for at a time

  public:
    static bool serves(const Problem<bf16> &problem) {
        const int64_t heads = problem.group_heads();
        return has_matrix_unit() && problem.dim % DEPTH == 0 && (heads <= SET || heads % SET == 0);
    }

    explicit MatrixWorker(const Problem<bf16> &problem)
        : Heads<bf16>(problem), sets((heads + SET - 1) / SET), columns(heads <= 4 ? 4 : SET),
          unit(true, shapes(std::min<int64_t>(heads, SET), columns)),
          packed_queries(scratch<bf16x2>(0, sets * dim / 2 * columns)),
          products(scratch<float>(1, 2 * sets * STEP * columns)), packed_weights(scratch<bf16>(2, heads * STEP)),
          packed_values(scratch<bf16x2>(3, 3 * STEP / 2 * dim)), gathered(scratch<bf16>(4, 2 * STEP * dim)) {
        std::fill_n(packed_queries, sets * dim / 2 * columns, bf16x2{});
    }

    // Add tokens [begin, end) of the item's selection to the state.
    void run(int64_t item, int64_t begin, int64_t end, State &state) {
        load_queries(item);
        pack_queries();
        const int64_t row = problem.cache_rows[problem.row(item)], kv_head = problem.kv_head(item);
        const bf16 *keys = problem.keys.at(row, kv_head), *values = problem.values.at(row, kv_head);
        Cursor cursor(problem.spans_of(item), begin, end, BLOCK_TILES, problem.cos != nullptr);
        Block blocks[RING];
        cursor.next(blocks[0]);
        gather_keys(keys, blocks[0], 0);
        for (int64_t turn = 0;; ++turn) {
            const Block &block = blocks[turn % RING];
            Block &after = blocks[(turn + 1) % RING];
            cursor.next(after);
            coming = {&after, keys, values, dim};
            for (int i = 0; i < block.size; ++i) {
                multiply_keys(item, keys, block.tiles[i], i, turn);
                coming.ask(FEW_ROWS);
                interleave(values, block.tiles[i], i, turn);
                coming.ask(FEW_ROWS);
            }
            if (block.size < BLOCK_TILES) clear_second_tile(turn);
            if (turn >= 2) multiply_values(turn - 2, state);
            if (turn >= 1) {
                const Block &before = blocks[(turn - 1) % RING];
                if (before.size == 0) break;
                weigh(item, before, turn - 1, state);
            }
            coming.ask(after.size * LANES);
            gather_keys(keys, after, turn + 1);
        }
    }

  private:
    // Registers 0 to 2: products, keys and queries; 3 and 4: weights and values; 5 and 6: output.
    static TileShapes shapes(int64_t heads, int64_t columns) {
        TileShapes shapes;
        shapes.set(0, AMX_SIDE, columns * sizeof(float));
        shapes.set(1, AMX_SIDE, 64);
        shapes.set(2, AMX_SIDE, columns * sizeof(bf16x2));
        shapes.set(3, heads, 64);
        shapes.set(4, AMX_SIDE, 64);
        shapes.set(5, heads, 64);
        shapes.set(6, heads, 64);
        return shapes;
    }

    // Whole cache lines of the calling thread, which keeps them from layer to layer and from token to token.
    template <class E> static E *scratch(int which, int64_t count) {
        static thread_local std::vector<f32x16> memory[5];
        const size_t lines = (count * sizeof(E) + sizeof(f32x16) - 1) / sizeof(f32x16);
        if (memory[which].size() < lines) memory[which].resize(lines);
        return (E *)memory[which].data();
    }

    // [sets][dim / 2][columns], a pair of dimensions of each head.
    void pack_queries() {
        for (int64_t h = 0; h < heads; ++h) {
            bf16x2 *to = packed_queries + h / SET * (dim / 2 * columns) + h % SET;
            for (int64_t d = 0; d < dim / 2; ++d)
                to[d * columns] = {queries[h * dim + 2 * d], queries[h * dim + 2 * d + 1]};
        }
    }

    // Tiles that are no sixteen rows in a row of the cache, side by side.
    void gather_keys(const bf16 *keys, const Block &block, int64_t turn) {
        for (int i = 0; i < block.size; ++i)
            if (!block.tiles[i].adjacent)
                for (int t = 0; t < LANES; ++t)
                    for (int64_t d = 0; d < dim; d += DEPTH)
                        std::memcpy(gathered_tile(i, turn) + t * dim + d, keys + block.tiles[i].token[t] * dim + d, 64);
    }

    bf16 *gathered_tile(int i, int64_t turn) const {
        return gathered + ((turn % 2) * BLOCK_TILES + i) * LANES * dim;
    }
    float *products_of(int64_t turn, int64_t set) const {
        return products + ((turn % 2) * sets + set) * STEP * columns;
    }
    bf16x2 *values_of(int64_t turn) const { return packed_values + (turn % 3) * (STEP / 2) * dim; }

    // Products of all heads with tile i of a block, [sets][token][columns].
    void multiply_keys(int64_t item, const bf16 *keys, const Tile &tile, int i, int64_t turn) {
        if (problem.cos && rotate_queries(item, tile.position)) pack_queries();
        const bf16 *rows = tile.adjacent ? keys + tile.token[0] * dim : gathered_tile(i, turn);
        for (int64_t set = 0; set < sets; ++set)
            multiply_tile(rows, packed_queries + set * (dim / 2 * columns), products_of(turn, set) + i * LANES * columns);
    }

    void multiply_tile(const bf16 *rows, const bf16x2 *set_queries, float *out) const {
        asm volatile("" ::: "memory");  // the compiler does not know that tile loads read memory
        _tile_zero(0);
        for (int64_t d = 0; d < dim; d += DEPTH) {
            _tile_loadd(1, rows + d, dim * sizeof(bf16));
            _tile_loadd(2, set_queries + d / 2 * columns, columns * sizeof(bf16x2));
            _tile_dpbf16ps(0, 1, 2);
        }
        _tile_stored(0, out, columns * sizeof(float));
        asm volatile("" ::: "memory");
    }

    // Values of tile i of a block as pairs of tokens, [token / 2][dim], in the element order of load32. Lanes without a
    // token are zeros.
    void interleave(const bf16 *values, const Tile &tile, int i, int64_t turn) const {
        bf16x2 *to = values_of(turn) + i * (LANES / 2) * dim;
        for (int t = 0; t < LANES; t += 2, to += dim) {
            const bf16 *first = values + tile.token[t] * dim, *second = values + tile.token[t + 1] * dim;
            for (int64_t d = 0; d < dim; d += DEPTH) {
                const u32x16 a = t < tile.count ? bits(first + d) : u32x16{};
                const u32x16 b = t + 1 < tile.count ? bits(second + d) : u32x16{};
                const u32x16 even = (a & 0xffffu) | (b << 16), odd = (a >> 16) | (b & 0xffff0000u);
                std::memcpy(to + d, &even, sizeof even);
                std::memcpy(to + d + LANES, &odd, sizeof odd);
            }
        }
    }

    void clear_second_tile(int64_t turn) const {
        std::fill_n(values_of(turn) + LANES / 2 * dim, LANES / 2 * dim, bf16x2{});
    }

    static u32x16 bits(const bf16 *p) {
        u32x16 x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }

    // Products to the weights of the softmax, [heads][STEP] in bf16, zeros where there is no second tile.
    void weigh(int64_t item, const Block &block, int64_t turn, State &state) {
        for (int64_t set = 0; set < sets; ++set)
            for (int i = 0; i < block.size; ++i)
                to_logits(item, set * SET, products_of(turn, set) + i * LANES * columns, i, block.tiles[i]);
        for (int64_t h = 0; h < heads; ++h) {
            softmax(h, block, state);
            coming.ask(FEW_ROWS);
            const float *w = &weights[h * Block::TOKENS];
            const f32x16 second = block.size == BLOCK_TILES ? load16(w + LANES) : f32x16{};
            const auto both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)load16(w));
            std::memcpy(packed_weights + h * STEP, &both, sizeof both);
        }
    }

    void to_logits(int64_t item, int64_t first_head, const float *rows, int i, const Tile &tile) {
        const auto keep = [&](int64_t column, f32x16 product) {
            const int64_t h = first_head + column;
            if (h < heads) store16(&weights[h * Block::TOKENS + i * LANES], logit(item, h, product, tile));
        };
        if (columns == 4) {
            const f32x16 four[4] = {load16(rows), load16(rows + 16), load16(rows + 32), load16(rows + 48)};
            f32x16 by_head[4];
            transpose_heads(four, by_head);
            for (int h = 0; h < 4; ++h) keep(h, by_head[h]);
        } else {
            u32x16 square[LANES];
            for (int t = 0; t < LANES; ++t) square[t] = (u32x16)load16(rows + t * LANES);
            transpose16(square);
            for (int h = 0; h < LANES; ++h) keep(h, (f32x16)square[h]);
        }
    }

    // Adds the weighted values of a block to the output of all heads.
    void multiply_values(int64_t turn, State &state) {
        asm volatile("" ::: "memory");
        const int64_t line = dim * sizeof(float);
        const bf16x2 *pairs = values_of(turn);
        for (int64_t step = 0; step < sets * dim; step += DEPTH) {
            const int64_t first_head = step / dim * SET, d = step % dim;
            coming.ask(FEW_ROWS);
            float *output = state.output + first_head * dim + d;
            if (d == 0) _tile_loadd(3, packed_weights + first_head * STEP, STEP * sizeof(bf16));
            _tile_loadd(5, output, line);
            _tile_loadd(6, output + LANES, line);
            _tile_loadd(4, pairs + d, dim * sizeof(bf16x2));
            _tile_dpbf16ps(5, 3, 4);
            _tile_loadd(4, pairs + d + LANES, dim * sizeof(bf16x2));
            _tile_dpbf16ps(6, 3, 4);
            _tile_stored(5, output, line);
            _tile_stored(6, output + LANES, line);
        }
        asm volatile("" ::: "memory");
    }

    const int64_t sets;     // of heads
    const int64_t columns;  // of the products of a set: heads, filled up
    const MatrixUnit unit;
    Coming coming{};
    bf16x2 *const packed_queries;
    float *const products;
    bf16 *const packed_weights;
    bf16x2 *const packed_values;
    bf16 *const gathered;
};

#endif
