// activation(gate) * up of rows [gate | up].
#include "simd.h"

#include <algorithm>
#include <omp.h>

namespace {

constexpr int64_t WORTH_A_TEAM = 1 << 16;  // results

template <bool SILU, class T> inline void gate_row(const T *row, T *out, int64_t intermediate) {
    for (int64_t i = 0; i < intermediate; i += LANES) {
        const int count = (int)std::min<int64_t>(LANES, intermediate - i);
        const f32x16 gate = load_first(row + i, count), up = load_first(row + intermediate + i, count);
        store_first(out + i, (SILU ? silu16(gate) : gelu_tanh16(gate)) * up, count);
    }
}

template <class T>
void gate(const T *gate_up, int64_t stride, T *out, int64_t out_stride, int64_t activation, int64_t rows,
          int64_t intermediate, int64_t threads) {
#pragma omp parallel num_threads(team(threads, rows * intermediate, WORTH_A_TEAM))
    {
        const Share share(rows, omp_get_thread_num(), omp_get_num_threads());
        for (int64_t n = share.begin; n < share.end; ++n)
            if (activation == 0) gate_row<true>(gate_up + n * stride, out + n * out_stride, intermediate);
            else gate_row<false>(gate_up + n * stride, out + n * out_stride, intermediate);
    }
}

}  // namespace

#define GATE(NAME, T)                                                                                                 \
    extern "C" void NAME(const T *gate_up, int64_t stride, T *out, int64_t out_stride, int64_t activation,           \
                         int64_t rows, int64_t intermediate, int64_t threads) {                                       \
        gate(gate_up, stride, out, out_stride, activation, rows, intermediate, threads);                              \
    }

GATE(gate_f32, float)
GATE(gate_bf16, bf16)
