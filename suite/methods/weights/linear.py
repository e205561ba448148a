"""Linear layers whose weights lie packed in memory: what the weights family puts in place of the decoder's own.

Shapes: N rows of activations; `in` and `out` features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from kernels.decode_layer import Int4Matrix, LutMatrix
from kernels.lut_gemv import Outliers, lut_gemv
from kernels.lut_gemv import reference as lut
from kernels.w4_gemm import dequantise, w4_gemm
from suite.models.decoder import Decoder, Linear


class QuantisedLinear(nn.Module):
    """y = x Qᵀ (+ b) (+ residual), one kernel call on packed weights; the bias is the original layer's own tensor.

    A subclass names in `FIELDS` the tensors its weights consist of. They are buffers: what is saved, and what is read.
    """

    FIELDS: ClassVar[tuple[str, ...]]

    def __init__(self, features: int, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> None:
        super().__init__()
        self.features = features
        self.bias = None if bias is None else bias.detach()
        for name in self.FIELDS:
            self.register_buffer(name, tensors.get(name))

    def tensors(self) -> dict[str, Tensor]:
        """The packed weights by field, without the bias."""
        return {name: tensor for name in self.FIELDS if (tensor := getattr(self, name)) is not None}

    def weight_bytes(self) -> int:
        """Bytes of the packed weights: what a step of one token reads."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.multiply(x.reshape(-1, self.features))
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if residual is None else y + residual

    @property
    @abstractmethod
    def matrix(self) -> LutMatrix | Int4Matrix:
        """The packed weights as fused layers read them (`suite.models.fused`)."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """x [N, in] -> y [N, out], bias included."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weights these codes stand for, fp32 [out, in]: for reports and tests, never for a forward pass."""


class LutLinear(QuantisedLinear):
    """Codes of 3 or 4 bits into one table per output row, and a sparse part in compressed rows where there is one."""

    FIELDS = ("packed", "tables", "starts", "columns", "values")
    packed: Tensor
    tables: Tensor
    starts: Tensor | None
    columns: Tensor
    values: Tensor

    @property
    def matrix(self) -> LutMatrix:
        sparse = None if self.starts is None else Outliers(self.starts, self.columns, self.values)
        return LutMatrix(self.packed, self.tables, sparse)

    def multiply(self, x: Tensor) -> Tensor:
        return lut_gemv(x, *self.matrix, bias=self.bias)

    def dense(self) -> Tensor:
        return lut.dequantise(*self.matrix, self.features)


class W4Linear(QuantisedLinear):
    """Symmetric int4 in groups of 128 inputs with fp16 scales."""

    FIELDS = ("packed", "scales")
    packed: Tensor
    scales: Tensor

    @property
    def matrix(self) -> Int4Matrix:
        return Int4Matrix(self.packed, self.scales)

    def multiply(self, x: Tensor) -> Tensor:
        y = w4_gemm(x, *self.matrix)
        return y if self.bias is None else y + self.bias

    def dense(self) -> Tensor:
        return dequantise(self.packed, self.scales, self.features, torch.float32)


def projections(decoder: Decoder) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, owner, attribute) of what is quantised: all matrices of the layers, never the embedding or the head."""
    for index, layer in enumerate(decoder.layers):
        for half, attributes in (("attention", ("qkv", "out")), ("mlp", ("gate_up", "down"))):
            owner = cast(nn.Module, getattr(layer, half))
            yield from ((f"layers.{index}.{half}.{attribute}", owner, attribute) for attribute in attributes)


def plain_linears(decoder: Decoder) -> dict[str, Linear]:
    """The decoder's own matrices by name; those that are not plain (quantised already) are left out."""
    found = {name: getattr(owner, attribute) for name, owner, attribute in projections(decoder)}
    return {name: module for name, module in found.items() if type(module) is Linear}


def parts(name: str, linear: Linear, decoder: Decoder) -> list[int]:
    """Output rows of the matrices that are stored as one: q, k and v, or gate and up."""
    config, outputs = decoder.config, linear.weight.shape[0]
    if name.endswith("qkv"):
        return [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
    return [outputs // 2] * 2 if name.endswith("gate_up") else [outputs]
