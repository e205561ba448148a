// Products of small matrices: up to SUB rows of A [rows][depth] times a packed B [depth / PAIR][columns][PAIR].
//
// The layout of B is what the bf16 instructions of AVX-512 and of AMX both want: two elements of the depth side by
// side. A thread that has a matrix unit (AMX) uses it for bf16; otherwise tiles of ROWS x VECTORS vectors of sums stay
// in registers. Without bf16 instructions everything is widened to fp32 when it is packed.
#pragma once

#include "amx.h"
#include "packed.h"

#include <algorithm>

constexpr int SUB = 32;  // rows of A that are allocated; those behind the last one hold anything finite

template <class E> struct Matrix {
    E *data;
    int64_t stride;  // in elements between rows; of a packed B, in columns between rows of pairs
};

// c [rows][columns] = (or +=, if `add`) a [rows][depth] * b.
template <class E> struct Product {
    Matrix<const E> a, b;
    Matrix<float> c;
    int64_t rows, columns, depth;
    bool add;
};

#ifdef SIMD_AVX512
constexpr int ROWS = 6, VECTORS = 4;  // 24 registers of sums, 4 of B, 1 of A
#else
constexpr int ROWS = 6, VECTORS = 1;  // 12 registers of sums where a register has 8 lanes
#endif

// R rows and N vectors of columns from row r and column n on.
template <int R, int N, class E> void multiply_tile(const Product<E> &p, int64_t r, int64_t n) {
    constexpr int PAIR = sizeof(float) / sizeof(E);
    f32x16 sums[R][N] = {};
    float *c = p.c.data + r * p.c.stride + n;
    if (p.add)
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < N; ++j) sums[i][j] = load16(c + i * p.c.stride + j * LANES);
    const E *a = p.a.data + r * p.a.stride, *b = p.b.data + n * PAIR;
    for (int64_t k = 0; k < p.depth; k += PAIR, b += p.b.stride * PAIR)
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < N; ++j)
                sums[i][j] = multiply_add(a + i * p.a.stride + k, b + j * LANES * PAIR, sums[i][j]);
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < N; ++j) store16(c + i * p.c.stride + j * LANES, sums[i][j]);
}

template <int N, class E> void multiply_rows(const Product<E> &p, int64_t n) {
    int64_t r = 0;
    for (; r + ROWS <= p.rows; r += ROWS) multiply_tile<ROWS, N>(p, r, n);
    for (; r + 2 <= p.rows; r += 2) multiply_tile<2, N>(p, r, n);
    if (r < p.rows) multiply_tile<1, N>(p, r, n);
}

// `columns` is a multiple of LANES.
template <class E> void multiply_vectors(const Product<E> &p) {
    int64_t n = 0;
    for (; n + VECTORS * LANES <= p.columns; n += VECTORS * LANES) multiply_rows<VECTORS>(p, n);
    for (; VECTORS > 2 && n + 2 * LANES <= p.columns; n += 2 * LANES) multiply_rows<2>(p, n);
    for (; n < p.columns; n += LANES) multiply_rows<1>(p, n);
}

template <class E> void multiply(const Product<E> &p, bool) { multiply_vectors(p); }

#ifdef SIMD_AMX
template <> inline void multiply(const Product<bf16> &p, bool matrix_unit) {
    if (!matrix_unit) return multiply_vectors(p);
    const AmxProduct amx{p.a.data, p.a.stride, p.b.data, p.b.stride, p.c.data, p.c.stride, p.columns, p.depth, p.add};
    return p.rows > AMX_SIDE ? multiply_amx<2>(amx) : multiply_amx<1>(amx);
}
#endif
