// Moves of tokens in KV caches as bytes, over a team of threads.
#include "simd.h"

#include <algorithm>
#include <omp.h>
#include <vector>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // bytes

// Caches of one shape: [rows][heads] with strides in bytes, and tokens of `size` bytes that lie side by side.
struct Caches {
    char *const *caches;
    int64_t count, row_stride, head_stride, heads, size;

    char *at(int64_t cache, int64_t row, int64_t head) const {
        return caches[cache] + row * row_stride + head * head_stride;
    }
    // Calls work(cache, head) for every part that is moved alone.
    template <class Work> void each(int64_t tokens, int64_t threads, Work work) const {
#pragma omp parallel for schedule(static) num_threads(team(threads, count *heads *tokens *size, WORTH_A_TEAM))
        for (int64_t i = 0; i < count * heads; ++i) work(i / heads, i % heads);
    }
};

// A move in order never overwrites what is still to be read if every token comes from its own place or from behind, and
// later ones from further behind.
bool keeps_order(const int32_t *index, int64_t n, int64_t start) {
    for (int64_t i = 0; i < n; ++i)
        if (index[i] < start + i || (i > 0 && index[i] <= index[i - 1])) return false;
    return true;
}

void move_tokens(char *tokens, const int32_t *index, int64_t n, int64_t start, int64_t size, bool in_order,
                 std::vector<char> &scratch) {
    char *target = tokens + start * size;
    if (in_order) {
        for (int64_t i = 0; i < n; ++i)
            if (index[i] != start + i) std::memcpy(target + i * size, tokens + index[i] * size, size);
        return;
    }
    scratch.resize(n * size);
    for (int64_t i = 0; i < n; ++i) std::memcpy(&scratch[i * size], tokens + index[i] * size, size);
    std::memcpy(target, scratch.data(), n * size);
}

}  // namespace

extern "C" void gather_tokens(const char *source, int64_t row_stride, int64_t head_stride, char *out,
                              const int32_t *index, int64_t rows, int64_t heads, int64_t n, int64_t size,
                              int64_t threads) {
#pragma omp parallel num_threads(team(threads, rows *heads *n *size, WORTH_A_TEAM))
    {
        const Share share(rows * heads * n, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t i = share.begin; i < share.end; ++i) {
            const int64_t row = i / n / heads, token = index[row * n + i % n];
            const char *head = source + row * row_stride + i / n % heads * head_stride;
            if (token >= 0) std::memcpy(out + i * size, head + token * size, size);
            else std::memset(out + i * size, 0, size);
        }
    }
}

extern "C" void compact_tokens(char *const *pointers, int64_t count, int64_t row_stride, int64_t head_stride,
                               const int32_t *index, const int32_t *starts, int64_t rows, int64_t heads, int64_t n,
                               int64_t size, int64_t threads) {
    const Caches caches{pointers, count, row_stride, head_stride, heads, size};
    std::vector<int64_t> lengths(rows);
    std::vector<char> in_order(rows);
    for (int64_t b = 0; b < rows; ++b) {
        const int32_t *list = index + b * n;
        lengths[b] = std::find_if(list, list + n, [](int32_t token) { return token < 0; }) - list;
        in_order[b] = keeps_order(list, lengths[b], starts[b]);
    }
    caches.each(rows * n, threads, [&](int64_t cache, int64_t head) {
        static thread_local std::vector<char> scratch;
        for (int64_t b = 0; b < rows; ++b)
            move_tokens(caches.at(cache, b, head), index + b * n, lengths[b], starts[b], size, in_order[b], scratch);
    });
}

extern "C" void copy_slots(char *const *pointers, int64_t count, int64_t row_stride, int64_t head_stride,
                           const int32_t *pairs, const int32_t *lengths, int64_t n, int64_t heads, int64_t size,
                           int64_t threads) {
    const Caches caches{pointers, count, row_stride, head_stride, heads, size};
    // A row that is read after another copy has written it needs its old contents kept.
    bool conflict = false;
    int64_t tokens = 0;
    for (int64_t i = 0; i < n; ++i) {
        tokens += lengths[i];
        for (int64_t j = 0; j < i; ++j) conflict |= pairs[2 * i] == pairs[2 * j + 1];
    }
    caches.each(tokens, threads, [&](int64_t cache, int64_t head) {
        static thread_local std::vector<char> scratch;
        if (conflict) scratch.resize(tokens * size);
        int64_t kept = 0;
        for (int64_t i = 0; i < n; kept += lengths[i++] * size) {
            char *to = conflict ? &scratch[kept] : caches.at(cache, pairs[2 * i + 1], head);
            std::memmove(to, caches.at(cache, pairs[2 * i], head), lengths[i] * size);
        }
        kept = 0;
        for (int64_t i = 0; conflict && i < n; kept += lengths[i++] * size)
            std::memcpy(caches.at(cache, pairs[2 * i + 1], head), &scratch[kept], lengths[i] * size);
    });
}
