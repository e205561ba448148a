// A projection of a layer: a matrix in whichever form its weights lie in memory.
#pragma once

#include "gemv/multiply.h"
#include "lut_gemv/multiply.h"
#include "w4_gemm/multiply.h"

enum Form : int64_t { PLAIN, LUT3, LUT4, INT4 };

// The order of the fields is that of `matrix_fields` in Python; what a form does not have is null.
template <class T> struct Projection {
    Form form;
    const void *weight;  // T, or packed codes
    const void *tables;  // T, or the scales of int4
    lut::Sparse<T> outliers;

    // Calls use(matrix) with the matrix [outputs][features] that `Gemv` and `GatedGemv` take.
    template <class Use> void as_matrix(int64_t features, Use use) const {
        const auto *codes = (const uint16_t *)weight;
        switch (form) {
            case PLAIN: return use(Plain<T>{(const T *)weight, features});
            case LUT3: return use(lut::Matrix<T, 3>{codes, (const T *)tables, outliers, features});
            case LUT4: return use(lut::Matrix<T, 4>{codes, (const T *)tables, outliers, features});
            case INT4: return use(int4::Matrix<T>{codes, (const _Float16 *)tables, features});
        }
    }
};
