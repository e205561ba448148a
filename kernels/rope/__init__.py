"""Rotary position embedding (half-split layout) and the append to the KV cache, alone or in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import counting
from kernels.arguments import as_int32
from kernels.build import Functions
from kernels.rope import reference
from kernels.rope.cost import append_cost, rotate_cost

# One C function does all three: without tables it does not rotate, without caches it does not append.
_rope = Functions(
    "rope",
    "piipiipiippppiipiippiiiii",
    {torch.float32: "rope_f32", torch.bfloat16: "rope_bf16"},
)


def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate q [N, H, D] and k [N, G, D] in place to positions [N]; cos and sin are fp32 tables [P, D/2].

    (x1, x2) = halves of x -> (x1 cos - x2 sin, x2 cos + x1 sin), as in HF Llama. q and k may be strided views.
    """
    if counting.active is not None:
        _record_rotation(q, k)
    function = _rope.get(q.dtype) if q.is_cpu and q.stride(2) == 1 and k.stride(2) == 1 else None
    if function is None or cos.dtype is not torch.float32:
        return reference.apply(q, k, cos, sin, positions)
    positions = as_int32(positions)
    function(
        *_view(q),
        *_view(k),
        None,
        0,
        0,
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        *_NO_CACHES,
        *_shape(q, k),
    )
    return None


def append(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Write k and v [N, G, D] to [rows[i], :, slots[i]] of the caches [B, G, C, D] (any batch and head strides)."""
    if counting.active is not None:
        counting.record("kv_append", append_cost(*k.shape, k.element_size()))
    function = _rope.get(k.dtype) if k.is_cpu and k.stride(2) == 1 and v.stride(2) == 1 else None
    if function is None or not _appendable(k, key_cache):
        return reference.append(k, v, key_cache, value_cache, rows, slots)
    rows, slots = as_int32(rows), as_int32(slots)
    function(
        None,
        0,
        0,
        *_view(k),
        *_view(v),
        None,
        None,
        None,
        *_view(key_cache),
        *_view(value_cache),
        rows.data_ptr(),
        slots.data_ptr(),
        *_shape(k, k),
    )
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
        counting.record("kv_append", append_cost(*k.shape, k.element_size()))
    function = _rope.get(q.dtype) if q.is_cpu and q.stride(2) == 1 and k.stride(2) == 1 else None
    if function is None or cos.dtype is not torch.float32 or not _appendable(k, key_cache):
        reference.apply(q, k, cos, sin, positions)
        return reference.append(k, v, key_cache, value_cache, rows, slots)
    positions, rows, slots = as_int32(positions), as_int32(rows), as_int32(slots)
    function(
        *_view(q),
        *_view(k),
        *_view(v),
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        *_view(key_cache),
        *_view(value_cache),
        rows.data_ptr(),
        slots.data_ptr(),
        *_shape(q, k),
    )
    return None


_NO_CACHES = (None, 0, 0, None, 0, 0, None, None)


def _view(x: Tensor) -> tuple[int, int, int]:
    """Pointer and the two leading strides."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    return k.size(0), q.size(1), k.size(1), k.size(2), torch.get_num_threads()


def _appendable(k: Tensor, cache: Tensor) -> bool:
    """The kernel converts no dtypes and expects the elements of a token side by side, tokens D apart."""
    return cache.dtype is k.dtype and cache.stride(2) == cache.size(3)


def _record_rotation(q: Tensor, k: Tensor) -> None:
    counting.record("rope", rotate_cost(q.size(0), q.size(1) + k.size(1), q.size(2), q.element_size()))
