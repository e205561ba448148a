"""Attention of query blocks to listed tokens: gathered-key prefill (card dhsa.md, "Kernels")."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32
from kernels.build import Functions
from kernels.flash_prefill import SIGNATURE, check, int_arguments, native_arguments, outputs, readable
from kernels.gathered_prefill import reference
from kernels.gathered_prefill.cost import gathered_prefill_cost

_gathered_prefill = Functions(
    "gathered_prefill",
    SIGNATURE + "piii",
    {torch.float32: "gathered_prefill_f32", torch.bfloat16: "gathered_prefill_bf16"},
)


def gathered_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    starts: Ints,
    counts: Ints,
    rows: Ints | None = None,
    *,
    block: int,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D] -> (out [B, T, H, D], lse [B, T, H] fp32), exact softmax attention to the tokens listed.

    indices [B, S, ceil(T / block), n] int32: the cache slots that the `block` queries [i block, (i + 1) block) of a row
    may see, in any order; negative entries are padding. S = 1: all heads share a list, S = G: one per KV head,
    S = H: one per query head. Query i of row b sees a listed token where it is no later than the query, at slot
    starts[b] + i, and within the last `window` slots. A token listed twice counts twice, as if it were two tokens of
    the cache. Tokens that no query of a block may see are not read.
    The other arguments are those of `kernels.flash_prefill.flash_prefill`; a query without tokens gives 0 and -inf.
    """
    starts, counts, rows = int_arguments(starts, counts, rows)
    check(q, key_cache, starts, counts, scale, window, indices.shape[1])
    if indices.shape[0] != q.shape[0] or indices.shape[2] != -(-q.shape[1] // block):
        raise ValueError(f"indices {list(indices.shape)} do not fit q {list(q.shape)} in blocks of {block}")
    out, lse = outputs(q, out)
    if counting.active is not None:
        cost = gathered_prefill_cost(q, key_cache.shape[1], indices, starts, counts, block, window)
        counting.record("gathered_prefill", cost)
    matches = readable(q, key_cache, value_cache, out)
    function = _gathered_prefill[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        given = q, key_cache, value_cache, as_int32(indices), starts, counts, rows
        if matches and arguments.on_gpu(q):
            from kernels.gathered_prefill import triton as gpu

            gpu.gathered_prefill(*given, block=block, scale=scale, window=window, softcap=softcap, out=out, lse=lse)
            return out, lse
        exact, lse = reference.gathered_prefill(*given, block=block, scale=scale, window=window, softcap=softcap)
        return out.copy_(exact), lse
    indices = as_int32(indices)
    function(
        *native_arguments(q, key_cache, value_cache, starts, counts, rows, out, lse, scale, softcap, window),
        indices.data_ptr(),
        indices.shape[1],
        block,
        indices.shape[3],
    )
    return out, lse
