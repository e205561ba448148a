"""The contract and the realistic shapes of decode_layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import counting, lut_gemv, w4_gemm
from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned
from kernels.decode_layer import (
    Caches,
    Int4Matrix,
    LayerShape,
    LayerStack,
    LayerWeights,
    LutMatrix,
    Matrix,
    NewTokens,
    reference,
)
from kernels.lut_gemv import Outliers
from kernels.lut_gemv.cases import random_outliers
from kernels.rope.cases import tables
from kernels.w4_gemm import GROUP

KINDS = ("plain", "lut 3", "lut 4", "lut 4 sparse", "int4")


def matrix_of(kind: str, rows: int, columns: int, dtype: torch.dtype) -> Matrix:
    """Random weights of one of `KINDS`, of the same size whatever the kind."""
    size = 0.5 / math.sqrt(columns)
    if kind == "plain":
        return torch.normal(0.0, size, (rows, columns)).to(dtype)
    if kind == "int4":
        codes, groups = torch.randint(-8, 8, (rows, columns)), -(-columns // GROUP)
        return Int4Matrix(w4_gemm.pack(codes), (size / 8 * (1 + torch.rand(rows, groups))).half())
    bits = int(kind.split()[1])
    packed, tables = lut_gemv.pack(torch.randint(0, 2**bits, (rows, columns)), bits), size * torch.randn(rows, 2**bits)
    sparse = None
    if kind.endswith("sparse"):
        starts, places, values = random_outliers(torch.randint(0, 4, (rows,), dtype=torch.int32), columns, dtype)
        sparse = Outliers(starts, places, 4 * size * values)
    return LutMatrix(packed, tables.to(dtype), sparse)


def weights_of(
    shape: LayerShape, dtype: torch.dtype, kinds: str = "plain", *, extras: bool = False, window: int = 0
) -> LayerWeights:
    """Random weights of the `kinds` (one for all projections, or "mixed"); `extras` are all that some architecture has
    and Llama has not."""
    turns = iter((*KINDS[1:], *KINDS[1:]) if kinds == "mixed" else [kinds] * 4)

    def matrix(rows: int, columns: int) -> Matrix:
        return matrix_of(next(turns), rows, columns, dtype)

    def norm(width: int) -> Tensor:
        return 1 + 0.1 * torch.randn(width)

    h, D = shape.hidden, shape.head_dim
    return LayerWeights(
        attention_norm=norm(h),
        qkv=matrix(shape.qkv_width, h),
        qkv_bias=torch.randn(shape.qkv_width).to(dtype) if extras else None,
        q_norm=norm(D) if extras else None,
        k_norm=norm(D) if extras else None,
        out=matrix(h, shape.heads * D),
        out_bias=torch.randn(h).to(dtype) if extras else None,
        post_attention_norm=norm(h) if extras else None,
        mlp_norm=norm(h),
        gate_up=matrix(2 * shape.intermediate, h),
        down=matrix(h, shape.intermediate),
        post_mlp_norm=norm(h) if extras else None,
        window=window,
    )


def labelled(name: str, kinds: str) -> str:
    """The name of a case, with the kind of its matrices if they are packed."""
    return name if kinds == "plain" else f"{name}, {kinds}"


def widened(layer: LayerWeights) -> LayerWeights:
    """The same weights in fp64."""
    tensors: dict[str, Any] = {name: x.double() for name, x in vars(layer).items() if isinstance(x, Tensor)}
    return dataclasses.replace(layer, **tensors)


def in_turn(rows: int, past: int) -> NewTokens:
    """New tokens of two cache rows in turn, each of which sees all before it."""
    slots = past + torch.arange(rows) // 2
    return NewTokens(torch.arange(rows) % 2, slots, slots + 3)


def in_a_row(rows: int, past: int) -> NewTokens:
    """New tokens of the second cache row, each of which sees all before it: a chain of drafts."""
    slots = past + torch.arange(rows)
    return NewTokens(torch.ones(rows, dtype=torch.int32), slots, slots + 3)


def in_a_tree(rows: int, past: int) -> NewTokens:
    """A draft tree in the second cache row: token i follows token (i - 1) // 2, and sees no sibling."""
    depths = [(i + 1).bit_length() - 1 for i in range(rows)]
    spans = torch.zeros(rows, max(depths) + 2, 3, dtype=torch.int32)  # spans without a token among them
    spans[:, 0, 1] = past
    for row, depth in enumerate(depths):
        node = row
        for place in range(depth + 1):
            spans[row, place + 1, :2] = past + torch.tensor([node, node + 1])
            node = (node - 1) // 2
    slots = past + torch.arange(rows)
    return NewTokens(torch.ones(rows, dtype=torch.int32), slots, past + torch.tensor(depths), spans)


def in_parts(rows: int, past: int) -> NewTokens:
    """New tokens of two cache rows in turn, each of which sees two parts of its past, others in each of two layers.

    Queries are rotated to places of the parts' own.
    """
    new = in_turn(rows, past)
    spans = torch.zeros(2, rows, 3, 3, dtype=torch.int32)
    for layer in range(2):
        spans[layer, :, 0] = torch.tensor([layer, past // 3 + layer, 5 + layer])
        spans[layer, :, 2] = torch.stack((torch.full((rows,), past // 2), new.slots + 1, new.positions), -1)
    return dataclasses.replace(new, spans=spans, turned=True)


def layer_case(
    name: str,
    shape: LayerShape,
    rows: int,
    past: int,
    kinds: str = "plain",
    *,
    extras: bool = False,
    placed: Callable[[int, int], NewTokens] = in_turn,
    cut: bool = False,
) -> Case:
    """Two layers, the second with a window if there are extras; what lies behind the new tokens is NaN.

    `cut`: each layer in a call of its own, and the queries are wanted.
    """

    def make(dtype: torch.dtype) -> Trial:
        layers = [weights_of(shape, dtype, kinds, extras=extras, window=40 * extras * i) for i in range(2)]
        x = torch.randn(rows, shape.hidden).to(dtype)
        tokens = placed(rows, past)
        stored = poisoned(2, 2, 2, shape.kv_heads, past + rows + 4, shape.head_dim, dtype=dtype)
        stored[..., :past, :] = torch.randn(2, 2, 2, shape.kv_heads, past, shape.head_dim).to(dtype)
        angles = [tables(past + rows + 9, shape.head_dim)] * 2

        def outcome(x: Tensor, stored: Tensor, layers: list[LayerWeights], naive: bool) -> Outputs:
            x, stored = x.clone(), stored.clone()
            caches = Caches(list(stored[0]), list(stored[1]))
            queries = poisoned(2, rows, shape.heads * shape.head_dim, dtype=x.dtype) if cut else None
            run = partial(reference.run, shape, layers) if naive else LayerStack(shape, layers, x.dtype).run
            for part in (range(1), range(1, 2)) if cut else (range(2),):
                run(x, caches, angles, tokens, part, queries)
            outputs = {"x": x, "caches": stored}
            return outputs if queries is None else {**outputs, "queries": queries}

        return Trial(
            lambda: outcome(x, stored, layers, naive=False),
            lambda: outcome(x.double(), stored.double(), [widened(layer) for layer in layers], naive=True),
        )

    return Case("decode_layer", labelled(name, kinds), make)


def split_case(name: str, shape: LayerShape, rows: int, kinds: str = "plain", *, extras: bool = False) -> Case:
    """One layer around an attention of the caller's own."""

    def make(dtype: torch.dtype) -> Trial:
        layer = weights_of(shape, dtype, kinds, extras=extras)
        x = torch.randn(rows, shape.hidden).to(dtype)
        attended = torch.randn(rows, shape.heads * shape.head_dim).to(dtype)

        def run() -> Outputs:
            stack, y = LayerStack(shape, [layer], dtype), x.clone()
            qkv = stack.project(0, y).clone()
            stack.finish(0, y, attended)
            return {"qkv": qkv, "x": y}

        def expected() -> Outputs:
            y = x.double()
            qkv = reference.project(shape, widened(layer), y)
            reference.finish(shape, widened(layer), y, attended.double())
            return {"qkv": qkv, "x": y}

        return Trial(run, expected)

    return Case("decode_layer", labelled(f"split-{name}", kinds), make)


SMOLLM2 = LayerShape(576, 9, 3, 64, 1536, "silu", 1e-5, 0.125)
SMALL = LayerShape(48, 4, 1, 16, 100, "silu", 1e-5, 0.25)
GEMMA = LayerShape(80, 6, 2, 80, 63, "gelu_tanh", 1e-6, 0.2, softcap=5.0)


def speed_case(name: str, shape: LayerShape, past: int, layers: int, kind: str = "plain") -> SpeedCase:
    """All layers of a model at batch 1. No peer: `suite reproduce dense` races whole models."""

    def make(dtype: torch.dtype) -> Race:
        stack = LayerStack(shape, [weights_of(shape, dtype, kind) for _ in range(layers)], dtype)
        stored = torch.randn(2, layers, 1, shape.kv_heads, past + 1, shape.head_dim).to(dtype)
        caches, angles = Caches(list(stored[0]), list(stored[1])), [tables(past + 1, shape.head_dim)] * layers
        at = torch.tensor([past], dtype=torch.int32)
        tokens, x = NewTokens(torch.zeros_like(at), at, at), torch.randn(1, shape.hidden).to(dtype)
        with counting.counting() as counter:
            stack.run(x, caches, angles, tokens)
        return Race(lambda: stack.run(x, caches, angles, tokens), counter.total, {})

    return SpeedCase("decode_layer", labelled(name, kind), make)


CASES = [
    layer_case("smollm2-1", SMOLLM2, 1, 100),
    layer_case("small-1-empty", SMALL, 1, 0),
    layer_case("small-7", SMALL, 7, 63),
    layer_case("gemma-1", GEMMA, 1, 100, extras=True),
    layer_case("gemma-16", GEMMA, 16, 63, extras=True),
    layer_case("tree-smollm2-9", SMOLLM2, 9, 100, placed=in_a_tree),
    layer_case("tree-small-6-empty", SMALL, 6, 0, placed=in_a_tree),
    layer_case("tree-gemma-16", GEMMA, 16, 163, extras=True, placed=in_a_tree),
    layer_case("chain-smollm2-7", SMOLLM2, 7, 200, placed=in_a_row),
    layer_case("parts-smollm2-1", SMOLLM2, 1, 200, placed=in_parts, cut=True),
    layer_case("parts-small-6", SMALL, 6, 63, placed=in_parts),
    layer_case("cut-small-3", SMALL, 3, 63, cut=True),
    layer_case("chain-small-16", SMALL, 16, 200, placed=in_a_row),
    split_case("small-3", SMALL, 3),
    split_case("gemma-1", GEMMA, 1, extras=True),
    *(layer_case("smollm2-1", SMOLLM2, 1, 100, kind) for kind in KINDS[1:]),
    *(layer_case(f"small-{rows}", SMALL, rows, 63, "mixed") for rows in (1, 7, 16, 70)),
    *(layer_case(f"gemma-{rows}", GEMMA, rows, 63, "mixed", extras=True) for rows in (2, 20)),
    layer_case("tree-gemma-13", GEMMA, 13, 63, "mixed", extras=True, placed=in_a_tree),
    split_case("gemma-3", GEMMA, 3, "mixed", extras=True),
]
TEAM_CASES = [
    layer_case("team-smollm2-1", SMOLLM2, 1, 500, "lut 3"),
    layer_case("team-smollm2-20", SMOLLM2, 20, 500, "mixed"),
    layer_case("team-smollm2-3", SMOLLM2, 3, 500),
    layer_case("team-gemma", GEMMA, 2, 9, extras=True),
    layer_case("team-tree", SMOLLM2, 6, 500, placed=in_a_tree),
    layer_case("team-parts", SMOLLM2, 2, 500, placed=in_parts, cut=True),
]
SMALL_CASES: list[Case] = []  # no Triton kernel: on a GPU the separate kernels serve
SPEED_CASES = [
    *(speed_case("smollm2-1K", SMOLLM2, 1024, 30, kind) for kind in KINDS),
    speed_case("smollm2-8K", SMOLLM2, 8192, 30),
]
