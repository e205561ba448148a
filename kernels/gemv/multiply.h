// The share that one thread of a team has in a few-row linear layer: y[n][o] = sum_i x[n][i] w[o][i] + more.
//
// The weights stream once, sixteen rows (outputs) at a time. One x row, or two short ones, take the weight rows one by
// one, which is pure streaming; more take them in squares of four by four, so that each vector loaded is used four
// times; a dozen or more are a lane each. Threads own ranges of outputs.
#pragma once

#include "gemv/lanes.h"
#include "gemv/matrix.h"

#include <algorithm>
#include <atomic>

constexpr int SIDE = 4;                    // x rows and weight rows of a tile
constexpr int64_t CHUNK = 1024;            // features, so that many x rows stay in the L1 cache
constexpr int64_t STREAM_BYTES = 4096;     // per x row, up to which two of them still stream
constexpr int64_t AHEAD_BYTES = 8192;      // two pages: the hardware's own prefetcher stops at the end of each

// x [rows][features] against `count` <= BLOCK weight rows [count][features].
template <class T> struct Task {
    const T *x;
    int64_t x_stride, rows, features;
    const T *weight;
    int count;
};

// sums[j][k] += products of X rows of x with W weight rows from feature `begin` to `end`, in 16 partial sums each.
template <int W, int X, class T>
inline void tile(const Task<T> &task, int64_t n, int o, int64_t begin, int64_t end, f32x16 (&sums)[X][W]) {
    using D = Dot<T>;
    const T *x = task.x + n * task.x_stride, *weight = task.weight + o * task.features;
    // Several streams at once are more than the hardware follows: ask for the next W rows, in the order of addresses.
    const bool whole = end - begin == task.features;
    const T *ahead = weight + W * task.features + begin;
    const int64_t along = whole ? W : 1, across = whole ? D::WIDTH : task.features;
    int64_t i = begin;
    for (; i + D::WIDTH <= end; i += D::WIDTH) {
        if (W == 1) __builtin_prefetch(weight + i + AHEAD_BYTES / sizeof(T), 0, 2);
        else
            for (int k = 0; k < W; ++k) __builtin_prefetch(ahead + (i - begin) * along + k * across);
        for (int j = 0; j < X; ++j)
            for (int k = 0; k < W; ++k)
                sums[j][k] = D::step(sums[j][k], weight + k * task.features + i, x + j * task.x_stride + i);
    }
    if (i < end)
        for (int j = 0; j < X; ++j)
            for (int k = 0; k < W; ++k)
                sums[j][k] =
                    D::first(sums[j][k], weight + k * task.features + i, x + j * task.x_stride + i, (int)(end - i));
}

// One weight row at a time.
template <int X, class T> inline void stream(const Task<T> &task, float *products) {
    f32x16 sums[X][BLOCK] = {};
    for (int o = 0; o < task.count; ++o) {
        f32x16 row[X][1] = {};
        tile<1, X>(task, 0, o, 0, task.features, row);
        for (int j = 0; j < X; ++j) sums[j][o] = row[j][0];
    }
    for (int j = 0; j < X; ++j) store16(products + j * BLOCK, sums16(sums[j]));
}

// W weight rows times X rows of x, added to their products.
template <int W, int X, class T>
inline void square(const Task<T> &task, int64_t n, int o, int64_t begin, int64_t end, float *products) {
    f32x16 sums[X][W] = {};
    tile<W, X>(task, n, o, begin, end, sums);
    f32x16 padded[SIDE][SIDE] = {};
    for (int j = 0; j < X; ++j)
        for (int k = 0; k < W; ++k) padded[j][k] = sums[j][k];
    float reduced[SIDE * SIDE];
    store16(reduced, sums16(padded[0]));
    for (int j = 0; j < X; ++j)
        for (int k = 0; k < W; ++k) products[(n + j) * BLOCK + o + k] += reduced[j * SIDE + k];
}

template <int W, class T>
inline void squares(const Task<T> &task, int o, int64_t begin, int64_t end, float *products) {
    int64_t n = 0;
    for (; n + SIDE <= task.rows; n += SIDE) square<W, SIDE>(task, n, o, begin, end, products);
    for (; n + 2 <= task.rows; n += 2) square<W, 2>(task, n, o, begin, end, products);
    if (n < task.rows) square<W, 1>(task, n, o, begin, end, products);
}

// products[n][o] for all x rows of the task, of which there are at most MAX_ROWS.
template <class T> inline void multiply(const Task<T> &task, float *products) {
    if (task.rows == 1) return stream<1>(task, products);
    if (task.rows == 2 && task.features * sizeof(T) <= STREAM_BYTES) return stream<2>(task, products);
    std::fill_n(products, task.rows * BLOCK, 0.f);
    for (int64_t begin = 0; begin < task.features; begin += CHUNK) {
        const int64_t end = std::min(begin + CHUNK, task.features);
        int o = 0;
        for (; o + SIDE <= task.count; o += SIDE) squares<SIDE>(task, o, begin, end, products);
        for (; o < task.count; ++o) squares<1>(task, o, begin, end, products);
    }
}

// A matrix [outputs][features] as it lies in memory. Another kind of matrix has an `Element` and a `Multiplier` too.
template <class T> struct Plain {
    using Element = T;
    const T *weight;
    int64_t features;

    // The products of one x with blocks of weight rows, for one thread.
    class Multiplier {
      public:
        static constexpr int64_t ROWS = MAX_ROWS;  // of x in one call

        Multiplier(const Plain &matrix, const T *x, int64_t x_stride, int64_t rows)
            : matrix(matrix), x(x), x_stride(x_stride), unit(x, x_stride, rows, matrix.features),
              lanes(x, x_stride, unit.serves(BLOCK) ? 0 : rows, matrix.features) {}

        // products[n][k] of x rows [first, first + rows) with `count` <= BLOCK weight rows from o on.
        void operator()(int64_t first, int64_t rows, int64_t o, int count, float *products) {
            const T *weight = matrix.weight + o * matrix.features;
            if (unit.serves(count)) unit.multiply(first, weight, products);
            else if (lanes.serves(count, rows)) lanes.multiply(first, weight, products);
            else
                multiply(Task<T>{x + first * x_stride, x_stride, rows, matrix.features, weight, count}, products);
        }

      private:
        const Plain matrix;
        const T *x;
        const int64_t x_stride;
        MatrixProduct<T> unit;
        LaneProduct<T> lanes;
    };
};

// The blocks of its share that a thread has begun, in a cache line of its own; 0 at the start.
struct alignas(64) Taken {
    std::atomic<int64_t> blocks{0};
};

// Calls work(first_row, rows, first_output, count) for the blocks of the output that this thread of a team does: its own
// share in the order of addresses, which is the order in which it asks for weights in advance, and then what the others
// have not begun, as cores are not equally fast at all times. `taken` is [threads].
template <int64_t ROWS, class Work>
inline void for_blocks(int64_t rows, int64_t outputs, int64_t thread, int64_t threads, Taken *taken, Work work) {
    const int64_t blocks = (outputs + BLOCK - 1) / BLOCK;
    const auto block = [&](int64_t b) {
        const int count = (int)std::min<int64_t>(BLOCK, outputs - b * BLOCK);
        for (int64_t n = 0; n < rows; n += ROWS) work(n, std::min<int64_t>(ROWS, rows - n), b * BLOCK, count);
    };
    for (int64_t i = 0; i < threads; ++i) {
        const int64_t owner = (thread + i) % threads;
        const Share share(blocks, owner, threads);
        const auto next = [&] { return share.begin + taken[owner].blocks.fetch_add(1, std::memory_order_relaxed); };
        for (int64_t b; (b = next()) < share.end;) block(b);
    }
}

// x [rows][features], matrix [outputs][features] -> out [rows][outputs] = x matrix^T + bias + residual.
template <class Matrix, class O> struct Gemv {
    using T = typename Matrix::Element;
    Matrix matrix;
    const T *x;
    int64_t x_stride;
    const void *bias;
    int64_t bias_is_f32;
    const O *residual;
    int64_t residual_stride;
    O *out;
    int64_t out_stride, rows, outputs;

    void run(int64_t thread, int64_t threads, Taken *taken) const {
        using Multiplier = typename Matrix::Multiplier;
        Multiplier multiplier(matrix, x, x_stride, rows);
        const auto work = [&](int64_t first, int64_t n_rows, int64_t o, int count) {
            float products[Multiplier::ROWS * BLOCK];
            multiplier(first, n_rows, o, count, products);
            const f32x16 shift = bias_of(o, count);
            for (int64_t n = 0; n < n_rows; ++n) {
                f32x16 y = load16(products + n * BLOCK) + shift;
                if (residual) y += load_first(residual + (first + n) * residual_stride + o, count);
                store_first(out + (first + n) * out_stride + o, y, count);
            }
        };
        for_blocks<Multiplier::ROWS>(rows, outputs, thread, threads, taken, work);
    }

  private:
    f32x16 bias_of(int64_t o, int count) const {
        if (!bias) return broadcast(0.f);
        return bias_is_f32 ? load_first((const float *)bias + o, count) : load_first((const T *)bias + o, count);
    }
};

// matrix [2 intermediate][features], gate rows first -> out [rows][intermediate] = activation(gate) * up.
template <class Matrix> struct GatedGemv {
    using T = typename Matrix::Element;
    Matrix matrix;
    const T *x;
    int64_t x_stride;
    T *out;
    int64_t out_stride, activation, rows, intermediate;

    void run(int64_t thread, int64_t threads, Taken *taken) const {
        using Multiplier = typename Matrix::Multiplier;
        Multiplier multiplier(matrix, x, x_stride, rows);
        const auto work = [&](int64_t first, int64_t n_rows, int64_t o, int count) {
            float gates[Multiplier::ROWS * BLOCK], ups[Multiplier::ROWS * BLOCK];
            multiplier(first, n_rows, o, count, gates);
            multiplier(first, n_rows, intermediate + o, count, ups);
            for (int64_t n = 0; n < n_rows; ++n) {
                const f32x16 gate = load16(gates + n * BLOCK);
                const f32x16 active = activation == 0 ? silu16(gate) : gelu_tanh16(gate);
                store_first(out + (first + n) * out_stride + o, active * load16(ups + n * BLOCK), count);
            }
        };
        for_blocks<Multiplier::ROWS>(rows, intermediate, thread, threads, taken, work);
    }
};
