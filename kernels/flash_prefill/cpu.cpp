// Causal attention of new tokens over a KV cache, by a team of threads.
#include "flash_prefill/arguments.h"
#include "flash_prefill/packed_cache.h"

namespace {

constexpr int64_t MOST_ROWS = 256;   // of an item: keys and values come from the L2 cache or beyond once per item
constexpr int64_t LEAST_ROWS = 64;
constexpr int64_t ITEMS_PER_THREAD = 8;

template <class T> struct CausalKeys {
    const Prefill<T> &p;
    PackedCache<T> cache;

    explicit CausalKeys(const Prefill<T> &p) : p(p), cache(p) {}

    void visit(const Item &item, Rows<T> &rows) const {
        const int64_t begin = std::max<int64_t>(0, item.first_position + 1 - p.window);
        for (int64_t first = begin / UNIT * UNIT; first <= item.last_position; first += UNIT)
            rows.attend(cache.piece(item, first, UNIT));
    }
};

// Many rows share what is loaded, unless threads would have nothing to do.
template <class T> int64_t queries_per_block(const Prefill<T> &p, int64_t threads) {
    int64_t rows = MOST_ROWS;
    const auto items = [&] { return p.batch * p.kv_heads * p.width * p.group_heads() / rows; };
    while (threads > 1 && rows > LEAST_ROWS && items() < ITEMS_PER_THREAD * threads) rows /= 2;
    return std::max<int64_t>(1, rows / p.group_heads());
}

template <class T> void prefill(Prefill<T> p, int64_t threads) {
    p.block = queries_per_block(p, threads);
    CausalKeys<T> source(p);
#pragma omp parallel num_threads(team(threads, p.work(), WORTH_A_TEAM))
    {
        source.cache.pack();
        attend_all(p, source);
    }
}

}  // namespace

extern "C" void flash_prefill_f32(PREFILL_PARAMETERS(float)) { prefill(PREFILL_OF(float, 1, 1), threads); }
extern "C" void flash_prefill_bf16(PREFILL_PARAMETERS(bf16)) { prefill(PREFILL_OF(bf16, 1, 1), threads); }
