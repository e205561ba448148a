// The matrix unit of Intel processors (AMX): 16 x 16 sums of 32 products each in one instruction.
#pragma once

#include "simd.h"

#if defined(SIMD_AVX512_BF16) && defined(__AMX_BF16__) && defined(__linux__)
#define SIMD_AMX 1
#endif

#ifdef SIMD_AMX
#include <sys/syscall.h>
#include <unistd.h>

constexpr int AMX_SIDE = 16, AMX_DEPTH = 32;

// Linux grants the use of the unit to a process that asks; all its threads then have it.
static inline bool has_matrix_unit() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
}

// What each of the eight tile registers holds, as the instruction wants it.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t count, int64_t bytes) {
        rows[tile] = (uint8_t)count;
        row_bytes[tile] = (uint16_t)bytes;
    }
    static TileShapes whole() {
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) shapes.set(tile, AMX_SIDE, 64);
        return shapes;
    }
};

// Sets the unit up in this thread and leaves it as it was: torch's own kernels use it too.
class MatrixUnit {
  public:
    explicit MatrixUnit(bool wanted, const TileShapes &shapes = TileShapes::whole()) : on(wanted) {
        if (!on) return;
        _tile_storeconfig(&before);
        load(shapes);
    }
    ~MatrixUnit() {
        if (on) load(before);
    }
    MatrixUnit(const MatrixUnit &) = delete;
    MatrixUnit &operator=(const MatrixUnit &) = delete;

  private:
    // GCC 12 declares that `_tile_loadconfig` reads eight bytes, and may drop the stores to the others.
    static void load(const TileShapes &shapes) {
        asm volatile("" : : "r"(&shapes) : "memory");
        _tile_loadconfig(&shapes);
    }

    TileShapes before;
    bool on;
};

struct AmxProduct {
    const bf16 *a;
    int64_t a_stride;
    const bf16 *b;  // pairs; the stride counts columns
    int64_t b_stride;
    float *c;
    int64_t c_stride, columns, depth;
    bool add;
};

// Sums of R x N tiles from column n on. Tiles 0-3 are sums, 4-5 rows of A, 6-7 columns of B.
template <int R, int N> inline void amx_tiles(const AmxProduct &p, int64_t n) {
    const int64_t a_bytes = p.a_stride * 2, b_bytes = p.b_stride * 4, c_bytes = p.c_stride * 4;
    float *c = p.c + n, *lower_c = c + AMX_SIDE * p.c_stride;
    if (p.add) {
        _tile_loadd(0, c, c_bytes);
        if (N > 1) _tile_loadd(1, c + AMX_SIDE, c_bytes);
        if (R > 1) _tile_loadd(2, lower_c, c_bytes);
        if (R > 1 && N > 1) _tile_loadd(3, lower_c + AMX_SIDE, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < p.depth; k += AMX_DEPTH) {
        const bf16 *a = p.a + k, *b = p.b + k * p.b_stride + n * 2;
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(4, a, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (N > 1) _tile_loadd(7, b + AMX_SIDE * 2, b_bytes);
        if (N > 1) _tile_dpbf16ps(1, 4, 7);
        if (R > 1) _tile_loadd(5, a + AMX_SIDE * p.a_stride, a_bytes);
        if (R > 1) _tile_dpbf16ps(2, 5, 6);
        if (R > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_bytes);
    if (N > 1) _tile_stored(1, c + AMX_SIDE, c_bytes);
    if (R > 1) _tile_stored(2, lower_c, c_bytes);
    if (R > 1 && N > 1) _tile_stored(3, lower_c + AMX_SIDE, c_bytes);
}

// R * AMX_SIDE rows; whole multiples of AMX_SIDE columns and of AMX_DEPTH in depth.
template <int R> inline void multiply_amx(const AmxProduct &p) {
    asm volatile("" ::: "memory");  // the compiler does not know that tile loads read memory
    int64_t n = 0;
    for (; n + 2 * AMX_SIDE <= p.columns; n += 2 * AMX_SIDE) amx_tiles<R, 2>(p, n);
    if (n < p.columns) amx_tiles<R, 1>(p, n);
    asm volatile("" ::: "memory");
}

#else

static inline bool has_matrix_unit() { return false; }
struct MatrixUnit {
    explicit MatrixUnit(bool) {}
    ~MatrixUnit() {}  // not trivial, so that no compiler calls it unused
};

#endif
