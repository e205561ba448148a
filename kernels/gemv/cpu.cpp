// Few-row linear layers: y[n][o] = sum_i x[n][i] w[o][i] (+ bias[o] + residual[n][o]).
//
// The weights stream once. Sixteen outputs are made at a time: four weight rows against up to four x rows, so that
// each weight vector loaded serves four x rows and up to sixteen sums are in flight. Threads own ranges of outputs.
#include "simd.h"

#include <algorithm>
#include <omp.h>

namespace {

constexpr int BLOCK = 16;   // outputs per block: one store of a vector
constexpr int QUAD = 4;     // weight rows read side by side
constexpr int MAX_X = 16;   // x rows served by one pass over a block of weights
constexpr int64_t WORTH_A_TEAM = 1 << 15;  // weight elements; below, waking the team takes longer than the work

template <class T> struct Inputs {
    const T *x;
    int64_t x_stride;
    int64_t features;
};

// products[n][o] for X rows of x and W rows of weight; `products` has rows of BLOCK floats.
template <int W, int X, class T>
inline void tile(const T *x, const Inputs<T> &in, const T *weight, float *products) {
    using D = Dot<T>;
    f32x16 sums[X][W] = {};
    const int64_t whole = in.features / D::WIDTH * D::WIDTH;
    for (int64_t i = 0; i < whole; i += D::WIDTH)
        for (int n = 0; n < X; ++n)
            for (int o = 0; o < W; ++o)
                sums[n][o] = D::step(sums[n][o], weight + o * in.features + i, x + n * in.x_stride + i);
    const int rest = (int)(in.features - whole);
    for (int n = 0; n < X; ++n)
        for (int o = 0; o < W; ++o) {
            f32x16 sum = sums[n][o];
            if (rest) sum = D::first(sum, weight + o * in.features + whole, x + n * in.x_stride + whole, rest);
            products[n * BLOCK + o] = sum16(sum);
        }
}

// W weight rows against all `rows` x rows.
template <int W, class T>
inline void strip(const Inputs<T> &in, int64_t rows, const T *weight, float *products) {
    int64_t n = 0;
    for (; n + 4 <= rows; n += 4) tile<W, 4>(in.x + n * in.x_stride, in, weight, products + n * BLOCK);
    if (n + 2 <= rows) {
        tile<W, 2>(in.x + n * in.x_stride, in, weight, products + n * BLOCK);
        n += 2;
    }
    if (n < rows) tile<W, 1>(in.x + n * in.x_stride, in, weight, products + n * BLOCK);
}

// `count` <= BLOCK consecutive outputs for up to MAX_X rows.
template <class T>
inline void block(const Inputs<T> &in, int64_t rows, const T *weight, int count, float *products) {
    int o = 0;
    for (; o + QUAD <= count; o += QUAD) strip<QUAD>(in, rows, weight + o * in.features, products + o);
    for (; o < count; ++o) strip<1>(in, rows, weight + o * in.features, products + o);
}

// Calls work(first_row, rows, first_output, count) for every block of the output, over the team.
template <class Work> void for_blocks(int64_t rows, int64_t features, int64_t outputs, int64_t threads, Work work) {
    const int64_t blocks = (outputs + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(team(threads, features * outputs, WORTH_A_TEAM))
    {
        const Share share(blocks, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t n = 0; n < rows; n += MAX_X)
            for (int64_t b = share.begin; b < share.end; ++b)
                work(n, std::min<int64_t>(MAX_X, rows - n), b * BLOCK, (int)std::min<int64_t>(BLOCK, outputs - b * BLOCK));
    }
}

template <class T, class O>
void gemv(const T *x, int64_t x_stride, const T *weight, const void *bias, int64_t bias_is_f32, const O *residual,
          int64_t residual_stride, O *out, int64_t out_stride, int64_t rows, int64_t features, int64_t outputs,
          int64_t threads) {
    for_blocks(rows, features, outputs, threads, [=](int64_t first, int64_t n_rows, int64_t o, int count) {
        alignas(64) float products[MAX_X * BLOCK];
        block(Inputs<T>{x + first * x_stride, x_stride, features}, n_rows, weight + o * features, count, products);
        f32x16 shift = broadcast(0.f);
        if (bias) shift = bias_is_f32 ? load_first((const float *)bias + o, count) : load_first((const T *)bias + o, count);
        for (int64_t n = 0; n < n_rows; ++n) {
            f32x16 y = load16(products + n * BLOCK) + shift;
            if (residual) y += load_first(residual + (first + n) * residual_stride + o, count);
            store_first(out + (first + n) * out_stride + o, y, count);
        }
    });
}

template <class T>
void gated_gemv(const T *x, int64_t x_stride, const T *weight, T *out, int64_t out_stride, int64_t activation,
                int64_t rows, int64_t features, int64_t intermediate, int64_t threads) {
    for_blocks(rows, 2 * features, intermediate, threads, [=](int64_t first, int64_t n_rows, int64_t o, int count) {
        alignas(64) float gates[MAX_X * BLOCK], ups[MAX_X * BLOCK];
        const Inputs<T> in{x + first * x_stride, x_stride, features};
        block(in, n_rows, weight + o * features, count, gates);
        block(in, n_rows, weight + (intermediate + o) * features, count, ups);
        for (int64_t n = 0; n < n_rows; ++n) {
            const f32x16 gate = load16(gates + n * BLOCK);
            const f32x16 active = activation == 0 ? silu16(gate) : gelu_tanh16(gate);
            store_first(out + (first + n) * out_stride + o, active * load16(ups + n * BLOCK), count);
        }
    });
}

}  // namespace

#define GEMV(NAME, T, O)                                                                                              \
    extern "C" void NAME(const T *x, int64_t x_stride, const T *weight, const void *bias, int64_t bias_is_f32,       \
                         const O *residual, int64_t residual_stride, O *out, int64_t out_stride, int64_t rows,       \
                         int64_t features, int64_t outputs, int64_t threads) {                                       \
        gemv(x, x_stride, weight, bias, bias_is_f32, residual, residual_stride, out, out_stride, rows, features,     \
             outputs, threads);                                                                                       \
    }

GEMV(gemv_f32_f32, float, float)
GEMV(gemv_bf16_bf16, bf16, bf16)
GEMV(gemv_bf16_f32, bf16, float)

#define GATED_GEMV(NAME, T)                                                                                           \
    extern "C" void NAME(const T *x, int64_t x_stride, const T *weight, T *out, int64_t out_stride,                  \
                         int64_t activation, int64_t rows, int64_t features, int64_t intermediate, int64_t threads) { \
        gated_gemv(x, x_stride, weight, out, out_stride, activation, rows, features, intermediate, threads);         \
    }

GATED_GEMV(gated_gemv_f32, float)
GATED_GEMV(gated_gemv_bf16, bf16)
