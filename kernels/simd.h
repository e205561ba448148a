// Vectors of 16 floats for all kernels: AVX-512 where the compiler has it, GCC vector extensions (any machine)
// elsewhere. Kernels are written once, in terms of these helpers. Sums are always kept in fp32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define SIMD_AVX512 1
#endif
#if defined(SIMD_AVX512) && defined(__AVX512BF16__)
#define SIMD_AVX512_BF16 1
#endif

struct bf16 {
    uint16_t bits;
};

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

constexpr int LANES = 16;
constexpr float NEGATIVE_INFINITY = -std::numeric_limits<float>::infinity();

static inline f32x16 broadcast(float x) { return f32x16{} + x; }

// ---- loads -----------------------------------------------------------------------------------------------------

static inline f32x16 load16(const float *p) {
    f32x16 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

static inline f32x16 load16(const bf16 *p) {
    u16x16 half;
    std::memcpy(&half, p, sizeof half);
    return (f32x16)(__builtin_convertvector(half, u32x16) << 16);
}

// 32 elements as two vectors, in the order that costs least: bf16 gives the even and the odd ones.
static inline void load32(const float *p, f32x16 &a, f32x16 &b) {
    a = load16(p);
    b = load16(p + LANES);
}

static inline void load32(const bf16 *p, f32x16 &even, f32x16 &odd) {
    u32x16 both;
    std::memcpy(&both, p, sizeof both);
    even = (f32x16)(both << 16);
    odd = (f32x16)(both & 0xffff0000u);
}

// 32 floats in order, in the two halves that load32 makes of elements of this type.
static inline void halves(const float *, f32x16 a, f32x16 b, f32x16 &first, f32x16 &second) {
    first = a;
    second = b;
}

static inline void halves(const bf16 *, f32x16 a, f32x16 b, f32x16 &even, f32x16 &odd) {
    even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// The first `count` <= 16 elements and zeros; memory behind them is not touched.
template <class T> static inline f32x16 load_first(const T *p, int count) {
    if (count == LANES) return load16(p);
    T padded[LANES] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load16(padded);
}

// ---- stores ----------------------------------------------------------------------------------------------------

static inline void store16(float *p, f32x16 x) { std::memcpy(p, &x, sizeof x); }

// The bits of the nearest bf16 (ties to even, as in torch) in the lower half of each lane.
static inline u32x16 bf16_bits(f32x16 x) {
#ifdef SIMD_AVX512_BF16
    return (u32x16)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    u32x16 bits = (u32x16)x;
    u32x16 is_nan = (u32x16)(x != x);
    return (((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) & ~is_nan) | (is_nan & 0x7fc0u);
#endif
}

static inline void store16(bf16 *p, f32x16 x) {
    u16x16 half = __builtin_convertvector(bf16_bits(x), u16x16);
    std::memcpy(p, &half, sizeof half);
}

// The inverse of load32.
static inline void store32(float *p, f32x16 a, f32x16 b) {
    store16(p, a);
    store16(p + LANES, b);
}

static inline void store32(bf16 *p, f32x16 even, f32x16 odd) {
    u32x16 both = bf16_bits(even) | (bf16_bits(odd) << 16);
    std::memcpy(p, &both, sizeof both);
}

template <class T> static inline void store_first(T *p, f32x16 x, int count) {
    if (count == LANES) return store16(p, x);
    T padded[LANES];
    store16(padded, x);
    std::memcpy(p, padded, count * sizeof(T));
}

// ---- reductions ------------------------------------------------------------------------------------------------

static inline float sum16(f32x16 x) {
#ifdef SIMD_AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < LANES; ++i) sum += x[i];
    return sum;
#endif
}

static inline float max16(f32x16 x) {
#ifdef SIMD_AVX512
    return _mm512_reduce_max_ps((__m512)x);
#else
    float largest = x[0];
    for (int i = 1; i < LANES; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
#endif
}

static inline bool any(i32x16 mask) {
#ifdef SIMD_AVX512
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#else
    int32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= mask[i];
    return bits != 0;
#endif
}

#ifdef SIMD_AVX512
// Four vectors to one with partial sums of each in every 128-bit lane.
static inline __m512 sums4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}

// Adds neighbouring 128-bit lanes: those of a to the lower half, those of b to the upper.
static inline __m512 add_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
#endif

// Sums of 16 vectors at once: lane i of the result is the sum of x[i].
static inline f32x16 sums16(const f32x16 *x) {
#ifdef SIMD_AVX512
    __m512 quads[4];
    for (int i = 0; i < 4; ++i) quads[i] = sums4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    return add_lanes(add_lanes(quads[0], quads[1]), add_lanes(quads[2], quads[3]));
#else
    f32x16 sums;
    for (int i = 0; i < LANES; ++i) sums[i] = sum16(x[i]);
    return sums;
#endif
}

// ---- exchanges --------------------------------------------------------------------------------------------------

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

// ---- elementary functions --------------------------------------------------------------------------------------

// 2^x to about 2 ulp; 0 for -inf, and where the result would be denormal it may be.
static inline f32x16 exp2_16(f32x16 x) {
#ifdef SIMD_AVX512
    f32x16 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // 0 for -inf
#else
    x = x > 127.f ? broadcast(127.f) : x;
    i32x16 vanishes = x < -126.f;
    x = vanishes ? broadcast(0.f) : x;
    i32x16 whole = __builtin_convertvector(x + (x < 0.f ? broadcast(-.5f) : broadcast(.5f)), i32x16);
    f32x16 r = x - __builtin_convertvector(whole, f32x16);
#endif
    // Taylor coefficients ln(2)^n / n!: for |r| <= 1/2 the first one left out is below 1.2e-7.
    f32x16 y = broadcast(1.5403530e-4f);
    y = y * r + 1.3333558e-3f;
    y = y * r + 9.6181291e-3f;
    y = y * r + 5.5504109e-2f;
    y = y * r + 2.4022651e-1f;
    y = y * r + 6.9314718e-1f;
    y = y * r + 1.f;
#ifdef SIMD_AVX512
    return _mm512_scalef_ps(y, _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    f32x16 power = (f32x16)((whole + 127) << 23);
    return vanishes ? broadcast(0.f) : y * power;
#endif
}

constexpr float LOG2E = 1.44269504f;
constexpr float LN2 = 0.69314718f;

static inline f32x16 tanh16(f32x16 x) { return 1.f - 2.f / (exp2_16(x * (2.f * LOG2E)) + 1.f); }

static inline f32x16 silu16(f32x16 x) { return x / (exp2_16(x * -LOG2E) + 1.f); }

// gelu with the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415).
static inline f32x16 gelu_tanh16(f32x16 x) {
    return .5f * x * (1.f + tanh16(.79788456f * (x + .044715f * x * x * x)));
}

// ---- dot products ----------------------------------------------------------------------------------------------

// step: `sum` plus the products of WIDTH elements of a and b, in 16 partial sums. first: of `count` < WIDTH elements.
template <class T> struct Dot;

template <> struct Dot<float> {
    static constexpr int WIDTH = 16;
    static inline f32x16 step(f32x16 sum, const float *a, const float *b) { return sum + load16(a) * load16(b); }
    static inline f32x16 first(f32x16 sum, const float *a, const float *b, int count) {
        return sum + load_first(a, count) * load_first(b, count);
    }
};

template <> struct Dot<bf16> {
    static constexpr int WIDTH = 32;
    static inline f32x16 step(f32x16 sum, const bf16 *a, const bf16 *b) {
#ifdef SIMD_AVX512_BF16
        return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
#else
        sum += load16(a) * load16(b);
        return sum + load16(a + LANES) * load16(b + LANES);
#endif
    }
    static inline f32x16 first(f32x16 sum, const bf16 *a, const bf16 *b, int count) {
        bf16 x[WIDTH] = {}, y[WIDTH] = {};
        std::memcpy(x, a, count * sizeof(bf16));
        std::memcpy(y, b, count * sizeof(bf16));
        return step(sum, x, y);
    }
};

// ---- threads ---------------------------------------------------------------------------------------------------

// All threads or one: libgomp ends the threads that a smaller team leaves over and would start them anew next time.
static inline int team(int64_t threads, int64_t work, int64_t worth_a_team) {
    return work < worth_a_team ? 1 : (int)threads;
}

// The part of `items` that thread `index` of `threads` does.
struct Share {
    int64_t begin, end;
    Share(int64_t items, int64_t index, int64_t threads)
        : begin(items * index / threads), end(items * (index + 1) / threads) {}
};
