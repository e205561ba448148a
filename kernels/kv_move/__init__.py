"""Moves of tokens inside and out of KV caches, for all layers in one call: gather, compaction, slot and page copies."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32
from kernels.build import Functions
from kernels.kv_move import reference
from kernels.kv_move.cost import move_cost

_gather = Functions("kv_move", "piippiiiii", {"": "gather_tokens"})
_compact = Functions("kv_move", "piiippiiiii", {"": "compact_tokens"})
_copy = Functions("kv_move", "piiippiiii", {"": "copy_slots"})


def gather(source: Tensor, index: Tensor, *, out: Tensor | None = None) -> Tensor:
    """source [B, G, C, D], index int32 [B, n] or [n] -> [B, G, n, D]: out[b, :, i] = source[b, :, index[b, i]].

    Negative entries give zeros. Bits are moved, not numbers: any dtype, NaN payloads included. Any batch and head
    strides of the source; `out` must be contiguous.
    """
    batch, heads, _, dim = source.shape
    chosen = as_int32(index if index.dim() == 2 else index.expand(batch, -1))
    if len(chosen) != batch:
        raise ValueError(f"index {list(index.shape)} does not fit {batch} cache rows")
    if out is None:
        out = source.new_empty(batch, heads, chosen.shape[1], dim)
    if counting.active is not None:
        counting.record(
            "kv_gather", move_cost(int((chosen >= 0).sum()), heads, dim, source.element_size(), 4 * chosen.numel())
        )
    matches = _rows_are_whole(source) and out.is_contiguous() and out.dtype is source.dtype
    function = _gather[""] if source.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(source):
            from kernels.kv_move import triton as gpu

            return gpu.gather(source, chosen, out)
        return out.copy_(reference.gather(source, chosen))
    size = source.element_size()
    strides = source.stride(0) * size, source.stride(1) * size
    shape = batch, heads, chosen.shape[1], dim * size, torch.get_num_threads()
    function(source.data_ptr(), *strides, out.data_ptr(), chosen.data_ptr(), *shape)
    return out


def compact(caches: Sequence[Tensor], index: Tensor, starts: Ints) -> None:
    """Move tokens index[b, i] of row b to starts[b] + i, i = 0 ... n - 1, in every cache [B, G, C, D] of a list.

    As if all were read before the first is written. Commits the accepted path of a draft tree: caches of all layers,
    keys and values, in one call. index int32 [B, n]; entries from the first negative one on are padding. All caches
    have one shape, dtype and strides, and tokens D apart. Source: _speculative, section 7.
    """
    first = _first(caches)
    batch, heads, _, dim = first.shape
    chosen, targets = as_int32(index), as_int32(starts)
    if chosen.dim() != 2 or len(chosen) != batch or len(targets) != batch:
        raise ValueError(f"index {list(index.shape)} and {len(targets)} starts do not fit {batch} cache rows")
    if counting.active is not None:
        moved = int((chosen >= 0).int().cumprod(1).sum())
        cost = move_cost(moved * len(caches), heads, dim, first.element_size(), 4 * (chosen.numel() + batch))
        counting.record("kv_compact", cost)
    matches = all(map(_rows_are_whole, caches))
    function = _compact[""] if first.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(first):
            from kernels.kv_move import triton as gpu

            return gpu.compact(caches, chosen, targets)
        return reference.compact(caches, chosen, targets)
    shape = batch, heads, chosen.shape[1], dim * first.element_size(), torch.get_num_threads()
    function(*_table(caches), chosen.data_ptr(), targets.data_ptr(), *shape)
    return None


def copy_slots(caches: Sequence[Tensor], pairs: Tensor, lengths: Ints) -> None:
    """Copy the first lengths[i] tokens of cache row pairs[i, 0] to row pairs[i, 1], in every cache of a list.

    Caches [S, G, C, D] are slots (Flover's reordering, card flover, section 5) or a pool of pages (then C is the page
    and lengths are C). pairs int32 [n, 2]. As if all were read before the first is written, so that rows may change
    places; no row may be written twice. All caches have one shape, dtype and strides, and tokens D apart.
    """
    first = _first(caches)
    _, heads, _, dim = first.shape
    chosen, counts = as_int32(pairs), as_int32(lengths)
    if chosen.dim() != 2 or chosen.shape[1] != 2 or len(counts) != len(chosen):
        raise ValueError(f"pairs {list(pairs.shape)} and {len(counts)} lengths do not fit")
    if counting.active is not None:
        cost = move_cost(int(counts.sum()) * len(caches), heads, dim, first.element_size(), 12 * len(chosen))
        counting.record("kv_copy", cost)
    matches = all(map(_rows_are_whole, caches))
    function = _copy[""] if first.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(first):
            from kernels.kv_move import triton as gpu

            return gpu.copy_slots(caches, chosen, counts)
        return reference.copy_slots(caches, chosen, counts)
    shape = len(chosen), heads, dim * first.element_size(), torch.get_num_threads()
    function(*_table(caches), chosen.data_ptr(), counts.data_ptr(), *shape)
    return None


def _first(caches: Sequence[Tensor]) -> Tensor:
    if not caches:
        raise ValueError("there is no cache to move tokens in")
    first = caches[0]
    if any(x.shape != first.shape or x.stride() != first.stride() or x.dtype is not first.dtype for x in caches):
        raise ValueError("caches that are moved together have one shape, dtype and strides")
    return first


def _rows_are_whole(cache: Tensor) -> bool:
    return cache.stride()[2:] == (cache.shape[3], 1)


def _table(caches: Sequence[Tensor]) -> tuple[ctypes.Array[ctypes.c_int64], int, int, int]:
    """The caches' pointers, their number, and the batch and head strides in bytes."""
    first, size = caches[0], caches[0].element_size()
    pointers = (ctypes.c_int64 * len(caches))(*(cache.data_ptr() for cache in caches))
    return pointers, len(caches), first.stride(0) * size, first.stride(1) * size
