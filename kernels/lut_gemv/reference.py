"""Naive product with weights from one lookup table per output row, plus sparse outliers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.lut_gemv.packing import unpack


class Outliers(NamedTuple):
    """A sparse [out, in] in compressed sparse rows: what is added to the weights that the tables give.

    starts [out + 1] int32: row o has the entries starts[o], ..., starts[o + 1] - 1; columns [nnz] int32, in any order;
    values [nnz] in the dtype of x. In SqueezeLLM a value is w - z, z being what the table gives at that place.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor


def dense_weight(packed: Tensor, tables: Tensor, features: int) -> Tensor:
    """Codes int16 [out, words] and tables [out, 2^bits] -> weight [out, features]."""
    bits = tables.shape[1].bit_length() - 1
    return tables.gather(1, unpack(packed, bits, features).long())


def dequantise(
    packed: Tensor, tables: Tensor, outliers: Outliers | None, features: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What tables and outliers together stand for, [out, features] in fp32 or fp64."""
    weight = dense_weight(packed, tables, features).to(dtype)
    if outliers is not None:
        rows = torch.repeat_interleave(torch.arange(len(weight)), outliers.starts.diff())
        weight.index_put_((rows, outliers.columns.long()), outliers.values.to(dtype), accumulate=True)
    return weight


def lut_gemv(
    x: Tensor, packed: Tensor, tables: Tensor, outliers: Outliers | None = None, bias: Tensor | None = None
) -> Tensor:
    """The contract of `kernels.lut_gemv.lut_gemv`, computed in fp32 (fp64 for fp64 inputs)."""
    dtype = accumulate_dtype(x)
    wide = x.to(dtype)
    y = wide @ dense_weight(packed, tables, x.shape[1]).to(dtype).T
    if outliers is not None:
        starts = outliers.starts.tolist()
        for o in range(len(starts) - 1):
            entries = slice(starts[o], starts[o + 1])
            y[:, o] += wide[:, outliers.columns[entries].long()] @ outliers.values[entries].to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(x.dtype)
