"""Verification attention: the nodes of a draft tree against a long cache and their own ancestors, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32, view
from kernels.build import Functions
from kernels.flash_prefill import outputs, readable
from kernels.tree_attention import reference
from kernels.tree_attention.cost import tree_attention_cost
from kernels.tree_attention.masks import MOST_NODES, ancestor_masks

__all__ = ["MOST_NODES", "ancestor_masks", "tree_attention"]

_tree_attention = Functions(
    "tree_attention",
    "piiipiipiipppffppiiiiii",
    {torch.float32: "tree_attention_f32", torch.bfloat16: "tree_attention_bf16"},
)


def tree_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    masks: Tensor,
    lengths: Ints,
    counts: Ints | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, N, H, D] -> (out [B, N, H, D], lse [B, N, H] fp32) of N <= 64 nodes of a draft tree per batch row.

    key_cache, value_cache [B, G, C, D], any batch and head strides: row b holds lengths[b] committed tokens, which
    every node sees, and behind them the keys and values of its nodes, in order. masks [B, N] int64: bit j of
    masks[b, i] says that node i sees node j (`ancestor_masks`: its ancestors and itself). counts [B]: nodes of a ragged
    batch, N by default; nodes behind give 0 and -inf, and their slots are not read. Keys and values of the other nodes
    must be finite. A node that sees nothing gives 0 and -inf. Source: SpecInfer (arXiv 2305.09781); _speculative, 7.
    """
    batch, nodes, heads, head_dim = q.shape
    starts, numbers = as_int32(lengths), as_int32([nodes] * batch if counts is None else counts)
    _check(q, key_cache, masks, starts, numbers)
    out, lse = outputs(q, out)
    if counting.active is not None:
        cost = tree_attention_cost(starts.tolist(), numbers.tolist(), q.shape, key_cache.shape[1], q.element_size())
        counting.record("tree_attention", cost)
    matches = readable(q, key_cache, value_cache, out)
    function = _tree_attention[q.dtype] if q.is_cpu else None
    bits = masks.to(torch.int64).contiguous()
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.tree_attention import triton as gpu

            gpu.tree_attention(q, key_cache, value_cache, bits, starts, numbers, scale, softcap, out, lse)
            return out, lse
        exact, lse = reference.tree_attention(
            q, key_cache, value_cache, bits, starts, numbers, scale=scale, softcap=softcap
        )
        return out.copy_(exact), lse
    caches = *view(key_cache), *view(value_cache), bits.data_ptr(), starts.data_ptr(), numbers.data_ptr()
    sizes = batch, nodes, heads, key_cache.shape[1], head_dim, torch.get_num_threads()
    function(q.data_ptr(), *q.stride()[:3], *caches, scale, softcap, out.data_ptr(), lse.data_ptr(), *sizes)
    return out, lse


def _check(q: Tensor, cache: Tensor, masks: Tensor, lengths: Tensor, counts: Tensor) -> None:
    batch, nodes, heads, _ = q.shape
    if nodes > MOST_NODES:
        raise ValueError(f"a tree has at most {MOST_NODES} nodes, not {nodes}")
    if masks.shape != (batch, nodes) or len(lengths) != batch or len(counts) != batch or heads % cache.shape[1]:
        raise ValueError(
            f"q {list(q.shape)}, masks {list(masks.shape)}, {len(lengths)} lengths, {len(counts)} counts and "
            f"{cache.shape[1]} KV heads do not fit"
        )
    if q.is_cpu and batch and (int(counts.max()) > nodes or int((lengths + counts).max()) > cache.shape[2]):
        raise ValueError(f"counts exceed the {nodes} nodes or, with lengths, the {cache.shape[2]} slots of the cache")
