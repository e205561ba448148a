// Token spans of a KV cache, cut into blocks.
#pragma once

#include "simd.h"

#include <algorithm>

struct Span {
    int32_t start, stop, position;
};

// Up to LANES tokens read by one query position. They may come from several spans, so short spans cost no more than
// long ones. Lanes without a token repeat the last one.
struct Tile {
    int32_t token[LANES];
    int32_t position;
    int count = 0;
    bool adjacent = false;  // sixteen tokens of one span
};

// What one softmax update covers.
struct Block {
    static constexpr int MOST_TILES = 4, TOKENS = MOST_TILES * LANES;
    Tile tiles[MOST_TILES];
    int size = 0;
};

// Cuts tokens [begin, end) of the sequence that the spans of an item make into blocks. Their order does not matter to a
// softmax: sixteen tokens in a row are a tile, and what a span has beside them waits for the rest of other spans.
class Cursor {
  public:
    // `rotating`: the tokens of a tile have one query position.
    Cursor(const Span *spans, int64_t begin, int64_t end, int block_tiles, bool rotating)
        : span(spans), skipped(begin), left(end - begin), block_tiles(block_tiles), rotating(rotating) {}

    void next(Block &block) {
        for (block.size = 0; block.size < block_tiles && (left > 0 || rest.count > 0);) fill(block.tiles[block.size++]);
    }

  private:
    void fill(Tile &tile) {
        tile.count = 0;
        while (left > 0) {
            const int64_t length = span->stop - span->start;
            if (skipped >= length) {
                skipped -= length;
                ++span;
                continue;
            }
            const int run = (int)std::min({(int64_t)LANES, left, length - skipped});
            if (run == LANES) return take(tile, run);
            if (rotating && rest.count && rest.position != span->position) break;
            take(rest, std::min(run, LANES - rest.count));
            if (rest.count == LANES) break;
        }
        tile = rest;
        rest.count = 0;
        complete(tile);
    }

    void take(Tile &tile, int count) {
        const int32_t first = span->start + (int32_t)skipped;
        for (int i = 0; i < count; ++i) tile.token[tile.count + i] = first + i;
        tile.adjacent = count == LANES;
        tile.position = span->position;
        tile.count += count;
        skipped += count;
        left -= count;
    }

    static void complete(Tile &tile) {
        std::fill(tile.token + tile.count, tile.token + LANES, tile.token[tile.count - 1]);
    }

    const Span *span;
    int64_t skipped, left;  // tokens of `span` already passed; tokens still to come
    int block_tiles;
    bool rotating;
    Tile rest;
};
