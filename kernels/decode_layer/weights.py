"""What a decoder layer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import ACTIVATIONS
from kernels.lut_gemv import Outliers

PROJECTIONS = ("qkv", "out", "gate_up", "down")
"""The fields of `LayerWeights` that are matrices."""

Tables = Sequence[tuple[Tensor, Tensor]]
"""cos and sin [P, D/2] fp32 of every layer."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes and constants that all layers of a model share. `scale` and `softcap` are those of the attention logits."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: str
    eps: float
    scale: float
    softcap: float = 0.0

    @property
    def qkv_width(self) -> int:
        """Columns of the joint projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def integers(self) -> list[int]:
        """The fields of the C struct `Shape`."""
        sizes = [self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate]
        return [*sizes, ACTIVATIONS.index(self.activation)]


class LutMatrix(NamedTuple):
    """[out, in] as codes of 3 or 4 bits into one table per row, and outliers: what `kernels.lut_gemv` takes."""

    packed: Tensor
    tables: Tensor
    outliers: Outliers | None = None


class Int4Matrix(NamedTuple):
    """[out, in] as int4 in groups of 128 inputs with fp16 scales: what `kernels.w4_gemm` takes."""

    packed: Tensor
    scales: Tensor


Matrix = Tensor | LutMatrix | Int4Matrix
"""[out, in] in any of its forms."""


def parts_of(matrix: Matrix) -> list[Tensor]:
    """The tensors a matrix consists of."""
    if isinstance(matrix, Tensor):
        return [matrix]
    if isinstance(matrix, Int4Matrix):
        return [*matrix]
    return [matrix.packed, matrix.tables, *(matrix.outliers or ())]


def readable(matrix: Matrix, dtype: torch.dtype) -> bool:
    """Whether the kernel can read it beside activations of this dtype."""
    codes, whole, half = torch.int16, torch.int32, torch.float16
    if isinstance(matrix, Tensor):
        wanted = [dtype]
    elif isinstance(matrix, Int4Matrix):
        wanted = [codes, half]
    else:
        wanted = [codes, dtype] if matrix.outliers is None else [codes, dtype, whole, whole, dtype]
    parts = parts_of(matrix)
    return [part.dtype for part in parts] == wanted and all(part.is_contiguous() for part in parts)


def matrix_fields(matrix: Matrix) -> list[int]:
    """The fields of the C struct `Projection`: a form, and where the parts lie."""
    if isinstance(matrix, Tensor):
        form = 0
    elif isinstance(matrix, Int4Matrix):
        form = 3
    else:
        form = {8: 1, 16: 2}[matrix.tables.shape[1]]
    pointers = [part.data_ptr() for part in parts_of(matrix)]
    return [form, *pointers, *[0] * (5 - len(pointers))]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer, contiguous: norms fp32, everything else in the dtype of the activations, or packed.

    qkv [(H + 2 G) D, hidden], out [hidden, H D], gate_up [2 I, hidden] (gate rows first), down [hidden, I].
    `window` is the number of tokens a query sees, 0 for all. The order of the fields is that of the C struct.
    """

    attention_norm: Tensor
    qkv: Matrix
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    out_bias: Tensor | None
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    post_mlp_norm: Tensor | None
    window: int = 0


@dataclass(frozen=True)
class Caches:
    """Keys and values of every layer, each [B, G, C, D] and contiguous."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]


@dataclass(frozen=True)
class NewTokens:
    """Where query row i belongs: cache row, slot in it, position in the text; integers [N].

    `spans` int32 [N, n, 3]: in every layer it sees the slots [start, stop) of its n spans, the nodes of a tree for
    instance; [L, N, n, 3]: those of each layer; without them everything up to its own slot. `turned`: the third column
    is the position that the query is rotated to for the span; else that is free, and the query's position its own.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    spans: Tensor | None = None
    turned: bool = False

    def seen(self, layer: int) -> Tensor | None:
        """The spans [N, n, 3] of one layer."""
        return self.spans if self.spans is None or self.spans.dim() == 3 else self.spans[layer]
