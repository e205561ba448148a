// Token spans of a KV cache, cut into blocks.
#pragma once

#include "simd.h"

#include <algorithm>

struct Span {
    int32_t start, stop, position;
};

// Up to LANES tokens that follow each other in one span.
struct Tile {
    int64_t token, position;
    int count;
};

// What one softmax update covers. Its tiles may come from different spans, so short spans cost no more than long ones.
struct Block {
    static constexpr int MOST_TILES = 4, TOKENS = MOST_TILES * LANES;
    Tile tiles[MOST_TILES];
    int size = 0;
};

// Cuts tokens [begin, end) of the sequence that the spans of an item make into blocks.
class Cursor {
  public:
    Cursor(const Span *spans, int64_t begin, int64_t end, int block_tiles)
        : span(spans), skipped(begin), left(end - begin), block_tiles(block_tiles) {}

    Block next() {
        Block block;
        while (block.size < block_tiles && left > 0) {
            const int64_t length = span->stop - span->start;
            if (skipped >= length) {
                skipped -= length;
                ++span;
                continue;
            }
            const int count = (int)std::min({(int64_t)LANES, left, length - skipped});
            block.tiles[block.size++] = {span->start + skipped, span->position, count};
            skipped += count;
            left -= count;
        }
        return block;
    }

  private:
    const Span *span;
    int64_t skipped, left;  // tokens of `span` already passed; tokens still to come
    int block_tiles;
};
