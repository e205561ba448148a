// Split-KV exact attention of query rows over token spans of a KV cache (flash-decoding).
//
// An item is one query row and one group of query heads that read the same spans of one KV head: the H/G heads of a
// KV head, or a single head when every query head has its own spans. The tokens of all items form one long sequence
// that is cut into equal parts, one per thread, wherever the cuts fall; an item cut in two is merged through its
// log-sum-exp. So any number of rows, heads and splits is balanced, and the result depends on the team size only.
//
// What rows begin with in common is read before, once for all of them; their items are then the tokens behind it.
//
// Logits are kept in units of log2, so that the softmax needs 2^x only.
#pragma once

#include "flash_decode/matrix.h"
#include "flash_decode/shared.h"
#include "flash_decode/worker.h"

#include <algorithm>
#include <vector>

// How the tokens of a problem's items are dealt to a team. Problems that differ in their pointers only may share one:
// every thread calls `work_shared` if anything is, and when all are done `work`; after all of those, one of them `finish`.
template <class T> class Decoder {
  public:
    Decoder(const Problem<T> &problem, int64_t team_size)
        : group_heads(problem.group_heads()), dim(problem.dim), shared(problem, team_size),
          offsets(problem.items() + 1), team_size(team_size) {
        for (int64_t item = 0; item < problem.items(); ++item)
            offsets[item + 1] = offsets[item] + problem.tokens(item) - shared.tokens(problem.row(item));
        memory.resize(2 * team_size * State::size(group_heads, dim));
    }

    bool shares() const { return !shared.empty(); }
    void work_shared(const Problem<T> &problem, int64_t thread) { shared.work(problem, thread); }

    void work(const Problem<T> &problem, int64_t thread) {
#ifdef SIMD_AMX
        if constexpr (std::is_same_v<T, bf16>)
            if (MatrixWorker::serves(problem)) return work_with<MatrixWorker>(problem, thread);
#endif
        work_with<VectorWorker<T>>(problem, thread);
    }

    // Items without tokens, and those that several threads have parts of.
    void finish(const Problem<T> &problem) {
        for (int64_t item = 0; item < problem.items(); ++item)
            if (offsets[item] == offsets[item + 1]) finish(problem, item, begun(problem, item, 0, 0));
        for (int64_t thread = 0; thread + 1 < team_size; ++thread) merge(problem, thread);
    }

  private:
    template <class Worker> void work_with(const Problem<T> &problem, int64_t thread) {
        Worker worker(problem);
        const Share part = share(thread);
        cleared(thread, 0);
        for (int64_t token = part.begin; token < part.end;) {
            const int64_t item = item_of(token), begin = offsets[item], end = std::min(offsets[item + 1], part.end);
            State state = begin < part.begin ? slot(thread, 0) : begun(problem, item, thread, 1);
            const int64_t skipped = shared.tokens(problem.row(item)) - begin;
            worker.run(item, skipped + token, skipped + end, state);
            if (begin >= part.begin && offsets[item + 1] <= part.end) finish(problem, item, state);
            token = end;
        }
    }

    Share share(int64_t thread) const { return Share(offsets.back(), thread, team_size); }

    // Slot 0 of a thread holds an item begun by an earlier thread, slot 1 its own current item.
    State slot(int64_t thread, int which) {
        return State(&memory[(2 * thread + which) * State::size(group_heads, dim)], group_heads, dim);
    }
    State cleared(int64_t thread, int which) {
        State state = slot(thread, which);
        state.reset();
        return state;
    }

    State begun(const Problem<T> &problem, int64_t item, int64_t thread, int which) {
        State state = cleared(thread, which);
        shared.begin(problem, item, state);
        return state;
    }

    int64_t item_of(int64_t token) const {
        return std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
    }

    // If the last item of this thread began here and goes on in others: collect their parts.
    void merge(const Problem<T> &problem, int64_t thread) {
        const Share part = share(thread);
        if (part.begin == part.end) return;
        const int64_t item = item_of(part.end - 1);
        if (offsets[item] < part.begin || offsets[item + 1] <= part.end) return;
        State state = slot(thread, 1);
        for (int64_t next = thread + 1; next < team_size && share(next).begin < offsets[item + 1]; ++next)
            state.merge(slot(next, 0));
        finish(problem, item, state);
    }

    void finish(const Problem<T> &problem, int64_t item, const State &state) {
        const int64_t head = problem.row(item) * problem.heads + problem.first_head(item);
        state.finish(problem.out + head * problem.dim, problem.lse + head);
    }

    const int64_t group_heads, dim;
    Shared<T> shared;
    std::vector<int64_t> offsets;  // first token of each item in the common sequence
    std::vector<float> memory;
    const int64_t team_size;
};
