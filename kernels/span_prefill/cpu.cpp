// Attention of query blocks to spans of keys that each query chose for itself, by a team of threads.
//
// A (query, span) pair is a row of its own, its query rotated for that span. The rows of an item that read the same
// span stand together, so that it is loaded once for all of them and the product has many rows; in the end the rows of
// a query, which saw different keys, are merged through their log-sum-exp.
#include "flash_prefill/arguments.h"
#include "flash_prefill/gather.h"
#include "flash_prefill/packed_cache.h"
#include "rope/rotate.h"

namespace {

constexpr int64_t MOST_ROWS = 4096;  // (query, span) pairs of an item: many share what is loaded, and sums stay near
constexpr int64_t NONE = -1;

struct Span {
    int32_t start, stop, position;
};

struct Choice {
    const Span *spans;  // [batch][width][selections][count]
    int64_t count;
    const float *cos, *sin;  // [positions][dim / 2]
};

template <class T> class SpanWorker {
  public:
    SpanWorker(const Prefill<T> &p, const PackedCache<T> &cache, const Choice &choice)
        : p(p), cache(cache), choice(choice), gatherer(p), rows(p.rules(), {p.dim}, pairs() * p.group_heads()),
          turned(buffer<T>(p.dim)), newest(slots(), NONE), before(pairs()), places(pairs()) {}

    void attend(const Item &item) {
        group(item);
        lay_out(item);
        rows.start();
        for (size_t i = 0; i < runs.size(); ++i) {
            const int64_t next = i + 1 < runs.size() ? runs[i + 1].row : rows.size();
            rows.focus(runs[i].row, next);
            attend(item, runs[i]);
        }
        merge(item);
    }

  private:
    // A span that some queries chose: the longest they see of it, and the first of their rows.
    struct Run {
        int64_t start, stop, row;
    };

    int64_t pairs() const { return std::min(p.block, p.width) * choice.count; }
    int64_t slots() const {
        int64_t most = 0;
        for (int64_t b = 0; b < p.batch; ++b) most = std::max<int64_t>(most, p.starts[b] + p.counts[b]);
        return most;
    }
    const Span *spans(const Item &item, int64_t query) const {
        return choice.spans + ((item.b * p.width + query) * p.selections + item.selection) * choice.count;
    }
    int64_t stop(const Item &item, const Span &span, int64_t query) const {
        return std::min<int64_t>(span.stop, p.starts[item.b] + query + 1);
    }

    // Chains the pairs by where their span starts, early queries first.
    void group(const Item &item) {
        runs.clear();
        for (int64_t query = item.last - 1; query >= item.first; --query)
            for (int64_t s = 0; s < choice.count; ++s) {
                const int64_t pair = (query - item.first) * choice.count + s;
                const Span span = spans(item, query)[s];
                places[pair] = NONE;
                if (span.start >= stop(item, span, query)) continue;
                if (newest[span.start] == NONE) runs.push_back({span.start, 0, 0});
                before[pair] = newest[span.start];
                newest[span.start] = (int32_t)pair;
            }
        std::sort(runs.begin(), runs.end(), [](const Run &a, const Run &b) { return a.start < b.start; });
    }

    void lay_out(const Item &item) {
        rows.reset();
        for (Run &run : runs) {
            run.row = rows.size();
            for (int64_t pair = newest[run.start]; pair != NONE; pair = before[pair]) {
                const int64_t query = item.first + pair / choice.count;
                const Span span = spans(item, query)[pair % choice.count];
                places[pair] = (int32_t)rows.size();
                add(item, query, span);
                run.stop = std::max(run.stop, stop(item, span, query));
            }
            newest[run.start] = NONE;
        }
    }

    void add(const Item &item, int64_t query, const Span &span) {
        const int64_t half = p.dim / 2, angle = span.position * half;
        for (int64_t h = 0; h < p.group_heads(); ++h) {
            const int64_t head = item.group * p.group_heads() + h;
            const T *raw = p.q + item.b * p.q_batch + query * p.q_token + head * p.q_head;
            rotate(raw, choice.cos + angle, choice.sin + angle, half, turned.get());
            rows.add(turned.get(), stop(item, span, query) - 1);
        }
    }

    void attend(const Item &item, const Run &run) {
        if (run.start % STEP == 0) return attend_run(cache, item, run.start, (run.stop + STEP - 1) / STEP * STEP, rows);
        for (int64_t token = run.start; token < run.stop; ++token) gatherer.add(item, token, rows);
        gatherer.flush(item, rows);
    }

    void merge(const Item &item) {
        for (int64_t query = item.block * p.block; query < std::min((item.block + 1) * p.block, p.width); ++query)
            for (int64_t h = 0; h < p.group_heads(); ++h) {
                const int64_t to = (item.b * p.width + query) * p.heads + item.group * p.group_heads() + h;
                const int64_t row = query < item.last ? merged(query - item.first, h) : NONE;
                if (row != NONE) {
                    rows.finish(row, p.out + to * p.dim, p.lse + to);
                } else {
                    std::memset(p.out + to * p.dim, 0, p.dim * sizeof(T));
                    p.lse[to] = NEGATIVE_INFINITY;
                }
            }
    }

    // The row that has what head h of a query saw, in the order of its spans.
    int64_t merged(int64_t query, int64_t h) {
        int64_t row = NONE;
        for (int64_t s = 0; s < choice.count; ++s) {
            const int64_t place = places[query * choice.count + s];
            if (place == NONE) continue;
            if (row == NONE) row = place + h;
            else rows.merge(row, place + h);
        }
        return row;
    }

    const Prefill<T> &p;
    const PackedCache<T> &cache;
    const Choice &choice;
    Gatherer<T> gatherer;
    Rows<T> rows;
    Buffer<T> turned;
    std::vector<Run> runs;
    std::vector<int32_t> newest, before;  // by start of a span: the newest pair of its chain; by pair: the one behind it
    std::vector<int32_t> places;          // by pair: its first row
};

template <class T> void prefill(Prefill<T> p, const Choice &choice, int64_t threads) {
    p.block = std::max<int64_t>(1, MOST_ROWS / (std::max<int64_t>(1, choice.count) * p.group_heads()));
    PackedCache<T> cache(p);
#pragma omp parallel num_threads(team(threads, p.work(), WORTH_A_TEAM))
    {
        const MatrixUnit unit(p.rules().matrix_unit);
        cache.pack();
        SpanWorker<T> worker(p, cache, choice);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < p.batch * p.groups() * p.blocks(); ++index) worker.attend(Item(p, index));
    }
}

}  // namespace

#define SPAN_PREFILL(NAME, T)                                                                                         \
    extern "C" void NAME(PREFILL_PARAMETERS(T), const int32_t *spans, int64_t selections, int64_t span_count,        \
                         const float *cos, const float *sin) {                                                        \
        const Choice choice{reinterpret_cast<const Span *>(spans), span_count, cos, sin};                             \
        prefill<T>(PREFILL_OF(T, selections, 1), choice, threads);                                                    \
    }

SPAN_PREFILL(span_prefill_f32, float)
SPAN_PREFILL(span_prefill_bf16, bf16)
