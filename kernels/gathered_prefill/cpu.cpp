// Attention of query blocks to listed tokens, by a team of threads.
#include "flash_prefill/arguments.h"
#include "flash_prefill/gather.h"

namespace {

template <class T> struct ListedKeys {
    const Prefill<T> &p;
    const int32_t *indices;  // [batch][selections][blocks][listed]
    int64_t listed;
    Gatherer<T> gatherer;

    void visit(const Item &item, Rows<T> &rows) {
        const int32_t *list = indices + ((item.b * p.selections + item.selection) * p.blocks() + item.block) * listed;
        for (int64_t i = 0; i < listed; ++i) gatherer.add(item, list[i], rows);
        gatherer.flush(item, rows);
    }
};

template <class T> void prefill(const Prefill<T> &p, const int32_t *indices, int64_t listed, int64_t threads) {
    const int64_t pairs = p.batch * p.width * p.heads * listed;
#pragma omp parallel num_threads(team(threads, pairs * p.dim, WORTH_A_TEAM))
    {
        ListedKeys<T> source{p, indices, listed, Gatherer<T>(p)};
        attend_all(p, source);
    }
}

}  // namespace

#define GATHERED_PREFILL(NAME, T)                                                                                     \
    extern "C" void NAME(PREFILL_PARAMETERS(T), const int32_t *indices, int64_t selections, int64_t block,           \
                         int64_t listed) {                                                                            \
        prefill<T>(PREFILL_OF(T, selections, block), indices, listed, threads);                                       \
    }

GATHERED_PREFILL(gathered_prefill_f32, float)
GATHERED_PREFILL(gathered_prefill_bf16, bf16)
