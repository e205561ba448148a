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
