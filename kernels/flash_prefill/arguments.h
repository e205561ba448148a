// The arguments that all prefill functions begin with, and the `Prefill` they make.
#pragma once

#include "flash_prefill/prefill.h"

#define PREFILL_PARAMETERS(T)                                                                                         \
    const T *q, int64_t q_batch, int64_t q_token, int64_t q_head, const T *keys, int64_t key_outer,                  \
        int64_t key_inner, const T *values, int64_t value_outer, int64_t value_inner, const int32_t *starts,         \
        const int32_t *counts, const int32_t *cache_rows, T *out, float *lse, int64_t batch, int64_t width,          \
        int64_t heads, int64_t kv_heads, int64_t dim, float scale, float softcap, int64_t window,                    \
        int64_t threads

#define PREFILL_OF(T, SELECTIONS, BLOCK)                                                                              \
    Prefill<T> {                                                                                                      \
        q, q_batch, q_token, q_head, {keys, key_outer, key_inner}, {values, value_outer, value_inner}, starts,       \
            counts, cache_rows, out, lse, batch, width, heads, kv_heads, dim, scale, softcap, window, SELECTIONS,    \
            BLOCK                                                                                                     \
    }
