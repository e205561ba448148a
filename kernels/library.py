"""The kernels as operators of torch: `import kernels.library` registers `torch.ops.suite.*`.

`torch.compile` then traces through a function that uses them, and a dispatch mode sees them. In eager code the plain
functions (`kernels.gemv.gemv`, ...) are the ones to call: the operator's own dispatch costs some 10 us a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kernels import (
    block_sparse_prefill,
    ema_scan,
    flash_decode,
    flash_prefill,
    gate,
    gathered_prefill,
    gemv,
    kv_move,
    lse_merge,
    lut_gemv,
    rms_norm,
    rope,
    sample,
    segment_reduce,
    select_top,
    span_prefill,
    tree_attention,
    w4_gemm,
)

NAMESPACE = "suite"


def operator(shapes: Callable[..., Any], mutates: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function as `suite::<its name>`; `shapes` gives empty results from the same arguments."""

    def register(function: Callable[..., Any]) -> Any:
        name = f"{NAMESPACE}::{function.__name__.lstrip('_')}"
        op = torch.library.custom_op(name, function, mutates_args=tuple(mutates))
        op.register_fake(shapes)
        return op

    return register


def _with_lse(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


# ---- linear layers ---------------------------------------------------------------------------------------------------


@operator(lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0]))
def _gemv(x: Tensor, weight: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return gemv.gemv(x, weight, residual, bias=bias)


@operator(lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0] // 2))
def _gated_gemv(x: Tensor, weight_gate_up: Tensor, activation: str) -> Tensor:
    return gemv.gated_gemv(x, weight_gate_up, activation)


@operator(lambda gate_up, *_: gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2))
def _gate(gate_up: Tensor, activation: str) -> Tensor:
    return gate.gate(gate_up, activation)


@operator(lambda x, packed, tables, *_: x.new_empty(x.shape[0], tables.shape[0]))
def _lut_gemv(
    x: Tensor,
    packed: Tensor,
    tables: Tensor,
    starts: Tensor | None = None,
    columns: Tensor | None = None,
    values: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    if starts is None or columns is None or values is None:
        return lut_gemv.lut_gemv(x, packed, tables, bias=bias)
    outliers = lut_gemv.Outliers(starts, columns, values)
    return lut_gemv.lut_gemv(x, packed, tables, outliers, bias=bias)


@operator(lambda x, packed, scales: x.new_empty(x.shape[0], packed.shape[0]))
def _w4_gemm(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return w4_gemm.w4_gemm(x, packed, scales)


# ---- around attention ------------------------------------------------------------------------------------------------


@operator(lambda x, *_: x.new_empty(x.shape))
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm.rms_norm(x, weight, eps)


@operator(lambda x, *_: x.new_empty(x.shape), mutates=("residual",))
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Tensor | None = None) -> Tensor:
    return rms_norm.rms_norm(x, weight, eps, residual, steering=steering)


@operator(lambda *_: None, mutates=("q", "k", "key_cache", "value_cache"))
def _rotate_and_append(
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
    rope.rotate_and_append(q, k, v, cos, sin, positions, key_cache, value_cache, rows, slots)


@operator(lambda *_: None, mutates=("key_cache",))
def _rope_shift(key_cache: Tensor, cos: Tensor, sin: Tensor, deltas: Tensor, rows: Tensor, slots: Tensor) -> None:
    rope.shift(key_cache, cos, sin, deltas, rows, slots)


# ---- attention -------------------------------------------------------------------------------------------------------


@operator(_with_lse)
def _flash_decode(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, spans: Tensor, rows: Tensor, scale: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    return flash_decode.flash_decode(q, key_cache, value_cache, spans, rows, scale=scale, softcap=softcap)


@operator(_with_lse)
def _flash_prefill(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, starts: Tensor, counts: Tensor, scale: float, window: int = 0
) -> tuple[Tensor, Tensor]:
    return flash_prefill.flash_prefill(q, key_cache, value_cache, starts, counts, scale=scale, window=window or None)


@operator(_with_lse)
def _gathered_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    starts: Tensor,
    counts: Tensor,
    block: int,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    caches, ranges = (key_cache, value_cache), (starts, counts)
    return gathered_prefill.gathered_prefill(
        q, *caches, indices, *ranges, block=block, scale=scale, window=window or None
    )


@operator(_with_lse)
def _block_sparse_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tiles: Tensor,
    starts: Tensor,
    counts: Tensor,
    query_block: int,
    key_block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    caches, ranges = (key_cache, value_cache), (starts, counts)
    return block_sparse_prefill.block_sparse_prefill(
        q, *caches, tiles, *ranges, block=(query_block, key_block), scale=scale
    )


@operator(_with_lse)
def _span_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    starts: Tensor,
    counts: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    caches, ranges = (key_cache, value_cache), (starts, counts)
    return span_prefill.span_prefill(q, *caches, spans, *ranges, cos=cos, sin=sin, scale=scale)


@operator(_with_lse)
def _tree_attention(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, masks: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return tree_attention.tree_attention(q, key_cache, value_cache, masks, lengths, scale=scale)


@operator(lambda outs, lses: (outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])))
def _lse_merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return lse_merge.lse_merge(outs, lses)


# ---- selection -------------------------------------------------------------------------------------------------------


@operator(lambda x, offsets, kind: x.new_empty(*x.shape[:-2], len(offsets) - 1, x.shape[-1], dtype=torch.float32))
def _segment_sum(x: Tensor, offsets: Tensor, kind: str) -> Tensor:
    return segment_reduce.segment_sum(x, offsets, kind)


@operator(lambda q, keys, offsets, *_: q.new_empty(*q.shape[:2], len(offsets) - 1, dtype=torch.float32))
def _segment_mass(
    q: Tensor, keys: Tensor, offsets: Tensor, positions: Tensor, scale: float, softcap: float = 0.0
) -> Tensor:
    return segment_reduce.segment_mass(q, keys, offsets, positions, scale=scale, softcap=softcap)


@operator(lambda q, reps, k, *_: q.new_empty(*q.shape[:2], k, dtype=torch.int32))
def _select_top(q: Tensor, reps: Tensor, k: int, last: Tensor, first: int = 0) -> Tensor:
    return select_top.select_top(q, reps, k, last, first=first)


# ---- the rest --------------------------------------------------------------------------------------------------------


@operator(lambda z, p, initial: (z.new_empty(z.shape), initial.new_empty(initial.shape)))
def _ema_scan(z: Tensor, p: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return ema_scan.ema_scan(z, p, initial)


@operator(lambda source, index: source.new_empty(*source.shape[:2], index.shape[-1], source.shape[3]))
def _kv_gather(source: Tensor, index: Tensor) -> Tensor:
    return kv_move.gather(source, index)


@operator(lambda *_: None, mutates=("caches",))
def _kv_compact(caches: list[Tensor], index: Tensor, starts: Tensor) -> None:
    kv_move.compact(caches, index, starts)


@operator(lambda logits, *_: logits.new_empty(len(logits), dtype=torch.int32))
def _sample(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    return sample.sample(logits, uniforms, temperature=temperature, top_k=top_k, top_p=top_p)
