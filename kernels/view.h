// Strided tensors as kernels see them.
#pragma once

#include <cstdint>

// [outer][inner][...] with strides in elements.
template <class T> struct View {
    T *data;
    int64_t outer, inner;
    T *at(int64_t n, int64_t h) const { return data + n * outer + h * inner; }
};
