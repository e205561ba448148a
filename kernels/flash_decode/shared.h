// What query rows that follow each other begin with in common: the prompt of chains sampled side by side, the text
// before a draft tree. It is read once for all of them, as a product of matrices (Hydragen, arXiv 2402.05099): UNIT
// tokens at a time are packed and multiplied with all query heads of the rows that read a KV head.
#pragma once

#include "flash_decode/problem.h"
#include "flash_decode/state.h"
#include "flash_prefill/rows.h"

#include <vector>

// Rows [first, first + rows) of a problem, whose selections begin with the same tokens.
struct Gang {
    int64_t first, rows;
    std::vector<int32_t> tokens;

    int64_t units() const { return ((int64_t)tokens.size() + UNIT - 1) / UNIT; }
};

// Tokens that two selections begin with in common.
inline int64_t common(const Span *a, const Span *b, int64_t count) {
    int64_t tokens = 0;
    for (int64_t i = 0; i < count && a[i].start == b[i].start; ++i) {
        tokens += std::min(a[i].stop, b[i].stop) - a[i].start;
        if (a[i].stop != b[i].stop) break;
    }
    return tokens;
}

// A row joins the gang before it where more reading is saved with it than without. Packing has to pay: fewer heads, or
// fewer tokens, are faster one by one.
template <class T> std::vector<Gang> gangs_of(const Problem<T> &problem) {
    constexpr int64_t WORTH_SHARING = 128, MANY_HEADS = 16;  // tokens; of a gang that read the same KV head
    std::vector<Gang> gangs;
    if (problem.selections != 1 || problem.cos || problem.tree.bits) return gangs;
    for (int64_t first = 0, next; first < problem.rows; first = next) {
        const Span *spans = problem.spans_of(first);
        int64_t tokens = problem.tokens(first);
        for (next = first + 1; next < problem.rows; ++next) {
            if (problem.cache_rows[next] != problem.cache_rows[first]) break;
            const int64_t fewer = std::min(tokens, common(spans, problem.spans_of(next), problem.span_count));
            if (fewer < WORTH_SHARING || fewer * (next - first) < tokens * (next - first - 1)) break;
            tokens = fewer;
        }
        if (next - first == 1 || (next - first) * problem.group_heads() < MANY_HEADS) continue;
        Gang gang{first, next - first, {}};
        for (; (int64_t)gang.tokens.size() < tokens; ++spans)
            for (int32_t t = spans->start; t < spans->stop && (int64_t)gang.tokens.size() < tokens; ++t)
                gang.tokens.push_back(t);
        gangs.push_back(std::move(gang));
    }
    return gangs;
}

// The softmax sums of all gangs. The units of all gangs and KV heads form one sequence that is cut into equal parts,
// one per thread; what several threads have of a gang is merged when its rows go on.
template <class T> class Shared {
    using E = typename Packed<T>::Element;

    // Units [begin, end) of one gang and KV head, which one thread reads.
    struct Part {
        int64_t thread, gang, kv_head, begin, end;
        Rows<T> rows;
    };

  public:
    Shared(const Problem<T> &problem, int64_t team_size)
        : rules{problem.scale, problem.softcap, NO_TOKEN, sizeof(E) == 2 && has_matrix_unit()}, layout{problem.dim},
          gangs(gangs_of(problem)), gang_of(problem.rows, -1) {
        int64_t units = 0, unit = 0;
        for (const Gang &gang : gangs) units += gang.units() * problem.kv_heads;
        for (int64_t g = 0; g < (int64_t)gangs.size(); ++g) {
            std::fill_n(&gang_of[gangs[g].first], gangs[g].rows, g);
            for (int64_t head = 0; head < problem.kv_heads; unit += gangs[g].units(), ++head) {
                first_parts.push_back(parts.size());
                for (int64_t thread = 0; thread < team_size; ++thread) {
                    const Share share(units, thread, team_size);
                    const int64_t begin = std::max(share.begin - unit, (int64_t)0);
                    const int64_t end = std::min(share.end - unit, gangs[g].units());
                    if (begin >= end) continue;
                    parts.push_back({thread, g, head, begin, end, {rules, layout, gangs[g].rows * problem.group_heads()}});
                }
            }
        }
        first_parts.push_back(parts.size());
    }

    bool empty() const { return gangs.empty(); }

    // Of a row's selection, how many tokens are read here.
    int64_t tokens(int64_t row) const { return gang_of[row] < 0 ? 0 : gangs[gang_of[row]].tokens.size(); }

    // Every thread of the team calls this, and all are done before the first row goes on.
    void work(const Problem<T> &problem, int64_t thread) {
        const MatrixUnit unit(rules.matrix_unit);
        const Buffer<E> packed = buffer<E>(layout.elements());
        for (Part &part : parts)
            if (part.thread == thread) read(problem, part, layout.unit(packed.get(), 0));
    }

    // Adds to the empty state of an item what its row shares.
    void begin(const Problem<T> &problem, int64_t item, State &state) const {
        const int64_t g = gang_of[problem.row(item)];
        if (g < 0) return;
        const int64_t first = (problem.row(item) - gangs[g].first) * state.heads;
        const int64_t place = g * problem.kv_heads + problem.kv_head(item);
        for (int64_t part = first_parts[place]; part < first_parts[place + 1]; ++part)
            for (int64_t h = 0; h < state.heads; ++h) {
                const Sums sums = parts[part].rows.sums_of(first + h);
                state.add_plain<T>(h, sums.output, sums.totals, sums.largest);
            }
    }

  private:
    static void ask(const T *row, int64_t dim) {
        for (int64_t d = 0; d < dim; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + d, 0, 2);
    }

    void read(const Problem<T> &problem, Part &part, const Unit<E> &unit) {
        const Gang &gang = gangs[part.gang];
        const int64_t count = gang.tokens.size(), heads = problem.group_heads(), first_head = part.kv_head * heads;
        part.rows.reset();
        for (int64_t row = gang.first; row < gang.first + gang.rows; ++row)
            for (int64_t h = 0; h < heads; ++h) part.rows.add(problem.q.at(row, first_head + h), count - 1);
        part.rows.start();
        const int64_t cache_row = problem.cache_rows[gang.first];
        const T *keys = problem.keys.at(cache_row, part.kv_head), *values = problem.values.at(cache_row, part.kv_head);
        for (int64_t first = part.begin * UNIT; first < std::min(part.end * UNIT, count); first += UNIT) {
            const int64_t width = (std::min<int64_t>(count - first, UNIT) + 31) / 32 * 32;
            const auto slot = [&](int64_t i) { return first + i < count ? gang.tokens[first + i] : -1; };
            pack_unit(keys, values, layout, unit, width, [&](int64_t i) {
                if (const int64_t later = slot(i + UNIT); later >= 0) {
                    ask(keys + later * problem.dim, problem.dim);
                    ask(values + later * problem.dim, problem.dim);
                }
                return slot(i);
            });
            part.rows.attend({unit.keys, unit.values, nullptr, first, first + width - 1, width});
        }
    }

    const Rules rules;
    const Layout<T> layout;
    std::vector<Gang> gangs;
    std::vector<int64_t> gang_of;  // of each row; -1 for none
    std::vector<Part> parts;           // by gang and KV head
    std::vector<int64_t> first_parts;  // of each gang and KV head
};
