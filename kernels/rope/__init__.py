"""Rotary position embedding (half-split layout), the append to the KV cache, and the shift of keys in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import as_int32, view
from kernels.build import Functions
from kernels.rope import reference
from kernels.rope.cost import append_cost, rotate_cost, shift_cost

# One C function rotates and appends: without tables it does not rotate, without caches it does not append.
_rope = Functions(
    "rope",
    "piipiipiippppiipiippiiiii",
    {torch.float32: "rope_f32", torch.bfloat16: "rope_bf16"},
)
_shift = Functions("rope", "piipppppiiii", {torch.float32: "shift_f32", torch.bfloat16: "shift_bf16"})


def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate q [N, H, D] and k [N, G, D] in place to positions [N]; cos and sin are fp32 tables [P, D/2].

    (x1, x2) = halves of x -> (x1 cos - x2 sin, x2 cos + x1 sin), as in HF Llama. q and k may be strided views.
    """
    if counting.active is not None:
        _record_rotation(q, k)
    function = _rope[q.dtype] if q.is_cpu else None
    matches = _rotatable(q, k, cos)
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.rope import triton as gpu

            return gpu.rope(q, k, None, (cos, sin, positions), None)
        return reference.apply(q, k, cos, sin, positions)
    positions = as_int32(positions)
    tables = cos.data_ptr(), sin.data_ptr(), positions.data_ptr()
    function(*view(q), *view(k), None, 0, 0, *tables, *_NO_CACHES, *_shape(q, k))
    return None


def append(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Write k and v [N, G, D] to [rows[i], :, slots[i]] of the caches [B, G, C, D] (any batch and head strides)."""
    if counting.active is not None:
        _record_append(k)
    function = _rope[k.dtype] if k.is_cpu else None
    matches = _appendable(k, v, key_cache)
    if function is None or not matches:
        if matches and arguments.on_gpu(k):
            from kernels.rope import triton as gpu

            return gpu.rope(k, k, v, None, (key_cache, value_cache, rows, slots))
        return reference.append(k, v, key_cache, value_cache, rows, slots)
    rows, slots = as_int32(rows), as_int32(slots)
    caches = *view(key_cache), *view(value_cache), rows.data_ptr(), slots.data_ptr()
    function(None, 0, 0, *view(k), *view(v), None, None, None, *caches, *_shape(k, k))
    return None


def rotate_and_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    slots: Tensor,
) -> None:
    """`apply` and then `append`, in one call: q and k are rotated in place, rotated k and v go into the cache."""
    if counting.active is not None:
        _record_rotation(q, k)
        _record_append(k)
    function = _rope[q.dtype] if q.is_cpu else None
    matches = _rotatable(q, k, cos) and _appendable(k, v, key_cache)
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.rope import triton as gpu

            return gpu.rope(q, k, v, (cos, sin, positions), (key_cache, value_cache, rows, slots))
        reference.apply(q, k, cos, sin, positions)
        return reference.append(k, v, key_cache, value_cache, rows, slots)
    positions, rows, slots = as_int32(positions), as_int32(rows), as_int32(slots)
    tables = cos.data_ptr(), sin.data_ptr(), positions.data_ptr()
    caches = *view(key_cache), *view(value_cache), rows.data_ptr(), slots.data_ptr()
    function(*view(q), *view(k), *view(v), *tables, *caches, *_shape(q, k))
    return None


def shift(key_cache: Tensor, cos: Tensor, sin: Tensor, deltas: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Re-rotate rotated keys where they stand: [rows[i], :, slots[i]] of the cache [B, G, C, D] by deltas[i] [N].

    A key rotated to position p becomes one rotated to p + deltas[i] (negative: backwards), for rotations add up. cos
    and sin are fp32 tables [P, D/2] with |delta| < P, and plain rotations: without the attention factor that YaRN
    tables carry, which the keys have already. No token may be named twice. Users: Hogwild's common cache (arXiv
    2504.06261), TIMRUN's `shift` (card timrun, kernel 4).
    """
    if counting.active is not None:
        _, kv_heads, _, head_dim = key_cache.shape
        counting.record("rope_shift", shift_cost(len(deltas), kv_heads, head_dim, key_cache.element_size()))
    function = _shift[key_cache.dtype] if key_cache.is_cpu else None
    matches = key_cache.stride()[2:] == (key_cache.shape[3], 1) and cos.dtype is torch.float32
    if function is None or not matches:
        if matches and arguments.on_gpu(key_cache):
            from kernels.rope import triton as gpu

            return gpu.shift(key_cache, cos, sin, as_int32(deltas), as_int32(rows), as_int32(slots))
        return reference.shift(key_cache, cos, sin, deltas, rows, slots)
    deltas, rows, slots = as_int32(deltas), as_int32(rows), as_int32(slots)
    index = deltas.data_ptr(), rows.data_ptr(), slots.data_ptr()
    sizes = len(deltas), key_cache.shape[1], key_cache.shape[3], torch.get_num_threads()
    function(*view(key_cache), cos.data_ptr(), sin.data_ptr(), *index, *sizes)
    return None


_NO_CACHES = (None, 0, 0, None, 0, 0, None, None)


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    tokens, kv_heads, head_dim = k.shape
    return tokens, q.shape[1], kv_heads, head_dim, torch.get_num_threads()


def _rotatable(q: Tensor, k: Tensor, cos: Tensor) -> bool:
    return q.stride()[2] == 1 == k.stride()[2] and k.dtype is q.dtype and cos.dtype is torch.float32


def _appendable(k: Tensor, v: Tensor, cache: Tensor) -> bool:
    """The kernel converts no dtypes and expects the elements of a token side by side, tokens D apart."""
    if cache.dtype is not k.dtype or v.dtype is not k.dtype:
        return False
    return k.stride()[2] == 1 == v.stride()[2] and cache.stride()[2] == cache.shape[3]


def _record_rotation(q: Tensor, k: Tensor) -> None:
    counting.record("rope", rotate_cost(q.size(0), q.size(1) + k.size(1), q.size(2), q.element_size()))


def _record_append(k: Tensor) -> None:
    tokens, kv_heads, head_dim = k.shape
    counting.record("kv_append", append_cost(tokens, kv_heads, head_dim, k.element_size()))
