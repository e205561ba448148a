// Keys and values of UNIT tokens in the layouts that multiply.h wants for B.
//
// Keys, for Q K^T: [depth / PAIR][UNIT][PAIR], the head dimension padded with zeros; values, for P V:
// [UNIT / PAIR][dim][PAIR]. Missing tokens are zeros.
#pragma once

#include "flash_prefill/multiply.h"

#include <cstdlib>
#include <memory>
#include <new>

constexpr int UNIT = 128;  // tokens packed together, and the most that one softmax update covers

template <class E> struct Unit {
    E *keys, *values;
};

template <class T> struct Layout {
    using Element = typename Packed<T>::Element;
    static constexpr int PAIR = Packed<T>::PAIR;
    int64_t dim;
    int64_t depth() const { return (dim + Packed<T>::DEPTH - 1) / Packed<T>::DEPTH * Packed<T>::DEPTH; }
    int64_t elements() const { return UNIT * (depth() + dim); }
    Unit<Element> unit(Element *memory, int64_t index) const {
        Element *start = memory + index * elements();
        return {start, start + UNIT * depth()};
    }
};

template <class E> struct Free {
    void operator()(E *p) const { std::free(p); }
};
// Memory in whole cache lines, not initialised.
template <class E> using Buffer = std::unique_ptr<E[], Free<E>>;
template <class E> Buffer<E> buffer(int64_t count) {
    void *memory = std::aligned_alloc(64, (count * sizeof(E) + 63) / 64 * 64 + 64);
    if (memory == nullptr) throw std::bad_alloc();
    return Buffer<E>(static_cast<E *>(memory));
}

// ---- 16 lanes of 32 bits: one float, or a pair of bf16 -----------------------------------------------------------

static inline u32x16 lanes(const float *row, int64_t, float *) { return (u32x16)load16(row); }
static inline u32x16 lanes(const bf16 *row, int64_t, float *) { return (u32x16)load16(row); }
#ifdef SIMD_AVX512_BF16
static inline u32x16 lanes(const bf16 *row, int64_t count, bf16 *) {
    return (u32x16)_mm512_maskz_loadu_epi16(count >= 32 ? ~0u : 0xffffu, row);
}
#endif

#define SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)

// Transposes 16 x 16: four rounds, each of which exchanges what lies apart by 1, 2, 4 and 8.
static inline void transpose16(u32x16 (&x)[16]) {
    u32x16 y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = SHUFFLE(x[i], x[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        y[i + 1] = SHUFFLE(x[i], x[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = i; j < i + 2; ++j) {
            x[j] = SHUFFLE(y[j], y[j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[j + 2] = SHUFFLE(y[j], y[j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = i; j < i + 4; ++j) {
            y[j] = SHUFFLE(x[j], x[j + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            y[j + 4] = SHUFFLE(x[j], x[j + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    for (int j = 0; j < 8; ++j) {
        x[j] = SHUFFLE(y[j], y[j + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        x[j + 8] = SHUFFLE(y[j], y[j + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
}

// Where 16 tokens lie; null is a missing one.
template <class T> using Sources = const T *[LANES];

template <class T> void pack_keys(const Sources<T> &tokens, Layout<T> layout, typename Layout<T>::Element *keys) {
    using E = typename Layout<T>::Element;
    constexpr int STEP = LANES * Layout<T>::PAIR;
    for (int64_t d = 0; d < layout.depth(); d += STEP) {
        u32x16 block[LANES];
        for (int i = 0; i < LANES; ++i)
            block[i] = tokens[i] == nullptr ? u32x16{} : lanes(tokens[i] + d, layout.dim - d, (E *)nullptr);
        transpose16(block);
        for (int i = 0; i < LANES; ++i) std::memcpy(keys + (d * UNIT + i * UNIT * Layout<T>::PAIR), &block[i], 64);
    }
}

template <class T> f32x16 load_or_zero(const T *token, int64_t d) {
    return token == nullptr ? f32x16{} : load16(token + d);
}

template <class T> void pack_values(const Sources<T> &tokens, Layout<T> layout, float *values) {
    for (int i = 0; i < LANES; ++i)
        for (int64_t d = 0; d < layout.dim; d += LANES)
            store16(values + i * layout.dim + d, load_or_zero(tokens[i], d));
}

#ifdef SIMD_AVX512_BF16
inline void pack_values(const Sources<bf16> &tokens, Layout<bf16> layout, bf16 *values) {
    for (int i = 0; i < LANES; i += 2)
        for (int64_t d = 0; d < layout.dim; d += LANES) {
            const u32x16 low = (u32x16)load_or_zero(tokens[i], d), high = (u32x16)load_or_zero(tokens[i + 1], d);
            const u32x16 pairs = low >> 16 | high;
            std::memcpy(values + i * layout.dim + 2 * d, &pairs, sizeof pairs);
        }
}
#endif

// `token(i)` for i < UNIT is the index of a token, or negative for none; `width` of them, a multiple of LANES, count.
template <class T, class Token>
void pack_unit(const T *keys, const T *values, Layout<T> layout, Unit<typename Layout<T>::Element> unit, int64_t width,
               const Token &token) {
    for (int64_t first = 0; first < width; first += LANES) {
        Sources<T> key_rows, value_rows;
        for (int i = 0; i < LANES; ++i) {
            const int64_t index = token(first + i);
            key_rows[i] = index < 0 ? nullptr : keys + index * layout.dim;
            value_rows[i] = index < 0 ? nullptr : values + index * layout.dim;
        }
        pack_keys<T>(key_rows, layout, unit.keys + first * Layout<T>::PAIR);
        pack_values(value_rows, layout, unit.values + first * layout.dim);
    }
}
