// Attention of query blocks to chosen blocks of keys, and to single tokens beside them, by a team of threads.
#include "flash_prefill/arguments.h"
#include "flash_prefill/gather.h"
#include "flash_prefill/packed_cache.h"

namespace {

template <class T> struct TiledKeys {
    const Prefill<T> &p;
    const PackedCache<T> &cache;
    const bool *tiles;  // [batch][selections][blocks][key_blocks]
    int64_t key_blocks, key_block;

    void visit(const Item &item, Rows<T> &rows) const {
        const bool *kept = tiles + ((item.b * p.selections + item.selection) * p.blocks() + item.block) * key_blocks;
        const int64_t seen = std::min(key_blocks, item.last_position / key_block + 1);
        for (int64_t first = 0; first < seen; ++first) {
            if (!kept[first]) continue;
            int64_t stop = first + 1;
            while (stop < seen && kept[stop]) ++stop;
            attend_run(cache, item, first * key_block, stop * key_block, rows);
            first = stop;
        }
    }
};

struct VerticalSlash {
    const int32_t *block_count, *block_offset;  // [batch][selections][blocks], and each [most_blocks]
    const int32_t *column_count, *column_index;
    int64_t most_blocks, most_columns, key_block;
};

template <class T> struct VerticalSlashKeys {
    const Prefill<T> &p;
    const PackedCache<T> &cache;
    const VerticalSlash &lists;
    Gatherer<T> gatherer;

    void visit(const Item &item, Rows<T> &rows) {
        const int64_t list = (item.b * p.selections + item.selection) * p.blocks() + item.block;
        const int32_t *offsets = lists.block_offset + list * lists.most_blocks;
        const int32_t *columns = lists.column_index + list * lists.most_columns;
        for (int64_t i = 0, run; i < lists.block_count[list]; i += run) {
            // Blocks that follow each other are one run.
            for (run = 1; i + run < lists.block_count[list]; ++run)
                if (offsets[i + run] != offsets[i] + run * lists.key_block) break;
            attend_blocks(item, offsets[i], offsets[i] + run * lists.key_block, rows);
        }
        for (int64_t i = 0; i < lists.column_count[list]; ++i) gatherer.add(item, columns[i], rows);
        gatherer.flush(item, rows);
    }

    void attend_blocks(const Item &item, int64_t first, int64_t stop, Rows<T> &rows) {
        if (first >= 0 && first % STEP == 0 && stop % STEP == 0) return attend_run(cache, item, first, stop, rows);
        for (int64_t token = first; token < std::min(stop, item.last_position + 1); ++token)
            gatherer.add(item, token, rows);
    }
};

template <class T> void tile_prefill(const Prefill<T> &p, const bool *tiles, int64_t key_blocks, int64_t key_block,
                                     int64_t threads) {
    PackedCache<T> cache(p);
    const TiledKeys<T> source{p, cache, tiles, key_blocks, key_block};
#pragma omp parallel num_threads(team(threads, p.work(), WORTH_A_TEAM))
    {
        cache.pack();
        attend_all(p, source);
    }
}

template <class T> void vertical_slash_prefill(const Prefill<T> &p, const VerticalSlash &lists, int64_t threads) {
    PackedCache<T> cache(p);
#pragma omp parallel num_threads(team(threads, p.work(), WORTH_A_TEAM))
    {
        VerticalSlashKeys<T> source{p, cache, lists, Gatherer<T>(p)};
        cache.pack();
        attend_all(p, source);
    }
}

}  // namespace

#define BLOCK_SPARSE_PREFILL(NAME, T)                                                                                 \
    extern "C" void NAME(PREFILL_PARAMETERS(T), const bool *tiles, int64_t selections, int64_t block,                \
                         int64_t key_blocks, int64_t key_block) {                                                     \
        tile_prefill<T>(PREFILL_OF(T, selections, block), tiles, key_blocks, key_block, threads);                     \
    }

#define VERTICAL_SLASH_PREFILL(NAME, T)                                                                               \
    extern "C" void NAME(PREFILL_PARAMETERS(T), const int32_t *block_count, const int32_t *block_offset,             \
                         const int32_t *column_count, const int32_t *column_index, int64_t selections,               \
                         int64_t block, int64_t most_blocks, int64_t most_columns) {                                  \
        const VerticalSlash lists{block_count, block_offset, column_count, column_index, most_blocks, most_columns,  \
                                  block};                                                                             \
        vertical_slash_prefill<T>(PREFILL_OF(T, selections, block), lists, threads);                                  \
    }

BLOCK_SPARSE_PREFILL(block_sparse_prefill_f32, float)
BLOCK_SPARSE_PREFILL(block_sparse_prefill_bf16, bf16)
VERTICAL_SLASH_PREFILL(vertical_slash_prefill_f32, float)
VERTICAL_SLASH_PREFILL(vertical_slash_prefill_bf16, bf16)
