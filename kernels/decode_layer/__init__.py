"""Decoder layers for a few query rows, each in one call: what batch-1 decoding costs beside the kernels is calls.

    stack = LayerStack(shape, weights, torch.bfloat16)    # pointers are laid out once
    stack.run(x, caches, tables, tokens)               # all layers, dense causal attention or given spans
    qkv = stack.project(layer, x); ...; stack.finish(layer, x, attended)     # one layer around an attention of its own

The layers are those of the Llama family (Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3), their matrices plain or packed
as for `kernels.lut_gemv` and `kernels.w4_gemm`. The arithmetic, and the rounding between the parts, are those of the
separate kernels. Served by C++ only; elsewhere the naive reference runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kernels import counting
from kernels.arguments import as_int32
from kernels.build import Functions
from kernels.decode_layer import reference
from kernels.decode_layer.cost import layer_costs
from kernels.decode_layer.weights import (
    PROJECTIONS,
    Caches,
    Int4Matrix,
    LayerShape,
    LayerWeights,
    LutMatrix,
    Matrix,
    NewTokens,
    Tables,
    matrix_fields,
    readable,
)

__all__ = [
    "Caches",
    "Int4Matrix",
    "LayerShape",
    "LayerStack",
    "LayerWeights",
    "LutMatrix",
    "Matrix",
    "NewTokens",
    "Tables",
    "readable",
    "servable",
]

_PROJECT, _ATTEND, _FINISH = 1, 2, 4
_decode_layers = Functions(
    "decode_layer", "piippppii", {torch.float32: "decode_layers_f32", torch.bfloat16: "decode_layers_bf16"}
)


def servable(shape: LayerShape, dtype: torch.dtype) -> bool:
    """Whether the C++ kernel runs such layers on this machine: fp32 or bf16, and whole vectors in a head."""
    return shape.head_dim % 16 == 0 and _decode_layers[dtype] is not None


class LayerStack:
    """Consecutive decoder layers for activations of `dtype`, whose matrices are `readable` beside it.

    The weights must stay where they are: in-place changes are seen, new tensors not.
    """

    def __init__(self, shape: LayerShape, layers: Sequence[LayerWeights], dtype: torch.dtype) -> None:
        self.shape, self.layers = shape, list(layers)
        self._dtype = dtype
        names = [field.name for field in fields(LayerWeights)]
        rows = [[value for name in names for value in _struct(name, getattr(layer, name))] for layer in layers]
        self._table = torch.tensor([[*row, 0, 0, 0, 0] for row in rows], dtype=torch.int64)
        self._row_bytes = self._table.stride(0) * 8
        self._shape = torch.tensor(shape.integers, dtype=torch.int64)
        self._reals = torch.tensor([shape.eps, shape.scale, shape.softcap], dtype=torch.float32)
        self._known: tuple[int, ...] = ()
        self._scratch: tuple[tuple[int, int], _Scratch] | None = None

    def run(
        self,
        x: Tensor,
        caches: Caches,
        tables: Tables,
        tokens: NewTokens,
        part: range | None = None,
        queries: Tensor | None = None,
    ) -> None:
        """x [N, hidden] through all layers, or `part` of them, in place; the new keys and values go into the caches.

        Query row i sees the tokens up to its own slot, of its cache row, or the last `window` of them; or its spans.
        `queries` [L, N, H D] receives the rotated queries of the layers that are run.
        """
        part = range(len(self.layers)) if part is None else part
        if counting.active is not None:
            layer_costs(self.shape, self.layers, part, x, tokens, ("project", "attend", "finish"))
        if self._function(x) is None or (queries is not None and not queries.is_contiguous()):
            return reference.run(self.shape, self.layers, x, caches, tables, tokens, part, queries)
        self._point_at(caches, tables)
        rows, slots, positions = (as_int32(where) for where in (tokens.rows, tokens.slots, tokens.positions))
        strides = caches.keys[0].stride()
        spans = None if tokens.spans is None else as_int32(tokens.spans)
        seen = (0, 0, 0) if spans is None else _spans_of(spans, part.start)
        placed = rows.data_ptr(), slots.data_ptr(), positions.data_ptr()
        where = torch.tensor([*placed, strides[0], strides[1], *seen, int(tokens.turned)])
        buffers = self._buffers(x).at(x, queries=None if queries is None else queries[part.start])
        self._call(part.start, len(part), _PROJECT | _ATTEND | _FINISH, buffers, where.data_ptr(), x)
        return None

    def project(self, layer: int, x: Tensor) -> Tensor:
        """x [N, hidden] -> q|k|v [N, (H + 2 G) D], biased and normed, not rotated; the next call overwrites it."""
        if counting.active is not None:
            layer_costs(self.shape, self.layers, range(layer, layer + 1), x, None, ("project",))
        if self._function(x) is None:
            return reference.project(self.shape, self.layers[layer], x)
        scratch = self._buffers(x)
        self._call(layer, 1, _PROJECT, scratch.at(x), None, x)
        return scratch.qkv

    def finish(self, layer: int, x: Tensor, attended: Tensor) -> None:
        """x [N, hidden] += the rest of the layer behind its attention's output [N, H D]."""
        if counting.active is not None:
            layer_costs(self.shape, self.layers, range(layer, layer + 1), x, None, ("finish",))
        if self._function(x) is None or not attended.is_contiguous():
            return reference.finish(self.shape, self.layers[layer], x, attended)
        scratch = self._buffers(x)
        self._call(layer, 1, _FINISH, scratch.at(x, attended), None, x)
        return None

    def _function(self, x: Tensor) -> object | None:
        """The C function, if it can read this x."""
        fits = x.is_cpu and x.dtype is self._dtype and x.is_contiguous() and self.shape.head_dim % 16 == 0
        return _decode_layers[x.dtype] if fits else None

    def _call(self, layer: int, count: int, parts: int, buffers: int, tokens: int | None, x: Tensor) -> None:
        function = _decode_layers[x.dtype]
        assert function is not None
        function(
            self._table.data_ptr() + layer * self._row_bytes,
            count,
            parts,
            self._shape.data_ptr(),
            self._reals.data_ptr(),
            buffers,
            tokens,
            x.shape[0],
            torch.get_num_threads(),
        )

    def _point_at(self, caches: Caches, tables: Tables) -> None:
        """Writes where caches and tables lie into the table, if they have moved."""
        known = (caches.keys[0].data_ptr(), caches.values[-1].data_ptr(), *(cos.data_ptr() for cos, _ in tables))
        if known != self._known:
            rows = zip(caches.keys, caches.values, tables, strict=True)
            pointers = [[k.data_ptr(), v.data_ptr(), cos.data_ptr(), sin.data_ptr()] for k, v, (cos, sin) in rows]
            self._table[:, -4:] = torch.tensor(pointers)
            self._known = known

    def _buffers(self, x: Tensor) -> _Scratch:
        """Buffers for so many rows and threads, kept from call to call."""
        wanted = (x.shape[0], torch.get_num_threads())
        if self._scratch is None or self._scratch[0] != wanted:
            self._scratch = wanted, _Scratch(self.shape, *wanted, x.dtype)
        return self._scratch[1]


class _Scratch:
    """What the parts of a layer hand each other."""

    def __init__(self, shape: LayerShape, rows: int, threads: int, dtype: torch.dtype) -> None:
        self.qkv = torch.empty(rows, shape.qkv_width, dtype=dtype)
        self.attended = torch.empty(rows, shape.heads * shape.head_dim, dtype=dtype)
        self.gated = torch.empty(rows, shape.intermediate, dtype=dtype)
        self.sublayer = torch.empty(rows, shape.hidden, dtype=dtype)
        self.normed = torch.empty(threads, rows, shape.hidden, dtype=dtype)
        self.lse = torch.empty(rows, shape.heads)
        own = (self.qkv, self.attended, self.gated, self.sublayer, self.normed, self.lse)
        self._pointers = torch.tensor([0, *(part.data_ptr() for part in own), 0])

    def at(self, x: Tensor, attended: Tensor | None = None, queries: Tensor | None = None) -> int:
        """Address of the C struct of all buffers: x, the attention's output, and where queries go, among them."""
        self._pointers[0] = x.data_ptr()
        self._pointers[2] = (self.attended if attended is None else attended).data_ptr()
        self._pointers[-1] = 0 if queries is None else queries.data_ptr()
        return self._pointers.data_ptr()


def _spans_of(spans: Tensor, layer: int) -> tuple[int, int, int]:
    """The fields of the C struct `Tokens` for spans [N, n, 3] or [L, N, n, 3], from one layer on."""
    if spans.dim() == 3:
        return spans.data_ptr(), spans.shape[1], 0
    return spans[layer].data_ptr(), spans.shape[2], spans.shape[1] * spans.shape[2]


def _struct(name: str, value: Any) -> list[int]:
    """The field of the C struct `Layer`: a projection, a pointer (0 for none) or a number."""
    if name in PROJECTIONS:
        return matrix_fields(value)
    return [value.data_ptr() if isinstance(value, Tensor) else value or 0]
