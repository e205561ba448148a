// A linear layer with a packed matrix, over a team of threads.
#pragma once

#include "gemv/team.h"
#include "lut_gemv/packed.h"

namespace lut {

// out [rows][outputs] = x matrix^T + bias, for any number of rows: so many at a time as one pass over the codes serves.
template <class Matrix, class T = typename Matrix::Element>
void multiply_all(const Matrix &matrix, const T *x, int64_t x_stride, const T *bias, T *out, int64_t out_stride,
                  int64_t rows, int64_t outputs, int64_t threads) {
    for (int64_t n = 0; n < rows; n += PANEL_ROWS) {
        const Gemv<Matrix, T> linear{matrix, x + n * x_stride, x_stride, bias, false, nullptr, 0,
                                     out + n * out_stride, out_stride, std::min<int64_t>(PANEL_ROWS, rows - n), outputs};
        over_team(linear, matrix.features * outputs, threads);
    }
}

}  // namespace lut
