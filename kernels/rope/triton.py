"""Rotary embedding and KV append on the GPU: one program per token."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant


@jit
def rotate_heads(
    x: tl.tensor,
    inner: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    heads: tl.tensor,
    dim: tl.tensor,
    direction: tl.tensor,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """Rotate x [heads, dim] in place by the angles cos and sin [dim/2], backwards if `direction` is -1."""
    h, i, half = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF), dim // 2
    valid = (h < heads) & (i < half)[None, :]
    c, s = tl.load(cos + i, i < half, 0.0)[None, :], direction * tl.load(sin + i, i < half, 0.0)[None, :]
    first = x + h * inner + i[None, :]
    a, b = tl.load(first, valid, 0.0).to(tl.float32), tl.load(first + half, valid, 0.0).to(tl.float32)
    tl.store(first, (a * c - b * s).to(x.dtype.element_ty), valid)
    tl.store(first + half, (b * c + a * s).to(x.dtype.element_ty), valid)


@jit
def copy_heads(
    x: tl.tensor,
    inner: tl.tensor,
    cache: tl.tensor,
    cache_inner: tl.tensor,
    heads: tl.tensor,
    dim: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """x [heads, dim] to one slot of a cache whose heads are `cache_inner` apart."""
    h, d = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    valid = (h < heads) & (d < dim)
    tl.store(cache + h.to(tl.int64) * cache_inner + d, tl.load(x + h * inner + d, valid), valid)


@jit
def rope_kernel(
    q: tl.tensor,
    q_outer: tl.tensor,
    q_inner: tl.tensor,
    k: tl.tensor,
    k_outer: tl.tensor,
    k_inner: tl.tensor,
    v: tl.tensor,
    v_outer: tl.tensor,
    v_inner: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    key_cache: tl.tensor,
    key_outer: tl.tensor,
    key_inner: tl.tensor,
    value_cache: tl.tensor,
    value_outer: tl.tensor,
    value_inner: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    dim: tl.tensor,
    ROTATE: tl.constexpr,
    APPEND: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Token n: rotate q[n] and k[n] to positions[n], write k[n] and v[n] to slot slots[n] of cache row rows[n]."""
    n = tl.program_id(0)
    if ROTATE:
        table = tl.load(positions + n).to(tl.int64) * (dim // 2)
        rotate_heads(q + n * q_outer, q_inner, cos + table, sin + table, heads, dim, 1.0, HEADS, DIM // 2)
        rotate_heads(k + n * k_outer, k_inner, cos + table, sin + table, kv_heads, dim, 1.0, KV_HEADS, DIM // 2)
    if ROTATE and APPEND:
        tl.debug_barrier()  # k is read again, by other threads of this program
    if APPEND:
        row, slot = tl.load(rows + n).to(tl.int64), tl.load(slots + n).to(tl.int64) * dim
        copy_heads(
            k + n * k_outer, k_inner, key_cache + row * key_outer + slot, key_inner, kv_heads, dim, KV_HEADS, DIM
        )
        value_slot = value_cache + row * value_outer + slot
        copy_heads(v + n * v_outer, v_inner, value_slot, value_inner, kv_heads, dim, KV_HEADS, DIM)


@jit
def shift_kernel(
    cache: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    deltas: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    kv_heads: tl.tensor,
    dim: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Token n: the keys in slot slots[n] of cache row rows[n] rotate on by deltas[n]."""
    n = tl.program_id(0)
    delta = tl.load(deltas + n)
    table = tl.abs(delta).to(tl.int64) * (dim // 2)
    keys = cache + tl.load(rows + n).to(tl.int64) * outer + tl.load(slots + n).to(tl.int64) * dim
    direction = tl.where(delta < 0, -1.0, 1.0)
    rotate_heads(keys, inner, cos + table, sin + table, kv_heads, dim, direction, KV_HEADS, DIM // 2)


def shift(cache: Tensor, cos: Tensor, sin: Tensor, deltas: Tensor, rows: Tensor, slots: Tensor) -> None:
    """The contract of `kernels.rope.shift`."""
    _, kv_heads, _, dim = cache.shape
    blocks = {"KV_HEADS": triton.next_power_of_2(kv_heads), "DIM": triton.next_power_of_2(dim)}
    if len(deltas):
        shift_kernel[(len(deltas),)](*_view(cache), cos, sin, deltas, rows, slots, kv_heads, dim, **blocks)


def rope(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    tables: tuple[Tensor, Tensor, Tensor] | None,
    caches: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> None:
    """Rotate by `tables` (cos, sin, positions) if given; append to `caches` (keys, values, rows, slots) if given."""
    cos, sin, positions = tables or (None, None, None)
    key_cache, value_cache, rows, slots = caches or (None, None, None, None)
    tokens, kv_heads, dim = k.shape
    rope_kernel[(tokens,)](
        *_view(q),
        *_view(k),
        *_view(v),
        cos,
        sin,
        positions,
        *_view(key_cache),
        *_view(value_cache),
        rows,
        slots,
        q.shape[1],
        kv_heads,
        dim,
        ROTATE=tables is not None,
        APPEND=caches is not None,
        HEADS=triton.next_power_of_2(q.shape[1]),
        KV_HEADS=triton.next_power_of_2(kv_heads),
        DIM=triton.next_power_of_2(dim),
    )


def _view(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    return (None, 0, 0) if x is None else (x, x.stride(0), x.stride(1))


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: a 32-head, D = 128 model in bf16."""
    types = "*bf16 i32 i32 " * 3 + "*fp32 *fp32 *i32 " + "*bf16 i32 i32 " * 2 + "*i32 *i32 i32 i32 i32"
    shifted = "*bf16 i32 i32 *fp32 *fp32 *i32 *i32 *i32 i32 i32"
    return [
        variant("rope", rope_kernel, types, ROTATE=1, APPEND=1, HEADS=32, KV_HEADS=8, DIM=128),
        variant("rope-shift", shift_kernel, shifted, KV_HEADS=8, DIM=128),
    ]
