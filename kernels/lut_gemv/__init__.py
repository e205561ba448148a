"""Linear layers whose weights are 3- or 4-bit codes into one lookup table per output row, plus sparse outliers.

SqueezeLLM (arXiv 2306.07629), methods/squeezellm.md sections 3 and 5: a decode step is bound by the bytes of the
codes. `pack` and `unpack` convert codes to the layout the kernels read (see `kernels.lut_gemv.packing`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.lut_gemv import reference
from kernels.lut_gemv.cost import lut_gemv_cost
from kernels.lut_gemv.packing import pack, row_words, unpack
from kernels.lut_gemv.reference import Outliers

__all__ = ["Outliers", "lut_gemv", "pack", "row_words", "unpack"]

_F32, _BF16 = torch.float32, torch.bfloat16
_BITS = {8: 3, 16: 4}
_functions = Functions(
    "lut_gemv",
    "pipppppppiiiii",
    {(_F32, 3): "lut3_f32", (_F32, 4): "lut4_f32", (_BF16, 3): "lut3_bf16", (_BF16, 4): "lut4_bf16"},
)


def lut_gemv(
    x: Tensor,
    packed: Tensor,
    tables: Tensor,
    outliers: Outliers | None = None,
    *,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [N, in], packed int16 [out, row_words(in, bits)], tables [out, 2^bits] -> y [N, out].

    y[n, o] = sum_i x[n, i] tables[o, codes[o, i]] + sum_k values[k] x[n, columns[k]] + bias[o], k over the outliers of
    row o, summed in fp32; the outliers are added to the weights of their places, they do not replace them. bits is 3 or
    4, as the width of the tables says; tables, bias [out] and the values of the outliers have the dtype of x (bf16 or
    fp32). Any N works; up to 64 rows cost one pass over the codes. Rows of x and out may be strided.
    No rows or no outputs give an empty result.
    """
    rows, features = x.shape
    outputs, entries = tables.shape
    bits = _BITS.get(entries, 0)
    if not bits or packed.shape != (outputs, row_words(features, bits)):
        _complain(x, packed, tables)
    if out is None:
        out = x.new_empty(rows, outputs)
    if counting.active is not None:
        _record(x, bits, outputs, outliers, bias)
    matches = _readable(x, packed, tables, outliers, bias, out)
    function = _functions[x.dtype, bits] if x.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.lut_gemv import triton as gpu

            return gpu.lut_gemv(x, packed, tables, outliers, bias, out)
        return out.copy_(reference.lut_gemv(x, packed, tables, outliers, bias))
    starts, columns, values = (None, None, None) if outliers is None else outliers
    function(
        x.data_ptr(),
        x.stride()[0],
        packed.data_ptr(),
        tables.data_ptr(),
        None if starts is None else starts.data_ptr(),
        None if columns is None else columns.data_ptr(),
        None if values is None else values.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride()[0],
        rows,
        features,
        outputs,
        torch.get_num_threads(),
    )
    return out


def _complain(x: Tensor, packed: Tensor, tables: Tensor) -> None:
    outputs, entries = tables.shape
    if entries not in _BITS:
        raise ValueError(f"a table has 8 or 16 entries, not {entries}")
    wanted = (outputs, row_words(x.shape[1], _BITS[entries]))
    raise ValueError(f"packed must be {list(wanted)} for {x.shape[1]} inputs, not {list(packed.shape)}")


def _readable(
    x: Tensor, packed: Tensor, tables: Tensor, outliers: Outliers | None, bias: Tensor | None, out: Tensor
) -> bool:
    """The kernels read whole rows of codes and tables, and convert nothing."""
    dtype = x.dtype
    if packed.dtype is not torch.int16 or tables.dtype is not dtype or out.dtype is not dtype:
        return False
    if bias is not None and (bias.dtype is not dtype or not bias.is_contiguous()):
        return False
    if outliers is not None and not _plain(outliers, dtype):
        return False
    return x.stride()[1] == 1 and out.stride()[1] == 1 and packed.is_contiguous() and tables.is_contiguous()


def _plain(outliers: Outliers, dtype: torch.dtype) -> bool:
    starts, columns, values = outliers
    if starts.dtype is not torch.int32 or columns.dtype is not torch.int32 or values.dtype is not dtype:
        return False
    return starts.is_contiguous() and columns.is_contiguous() and values.is_contiguous()


def _record(x: Tensor, bits: int, outputs: int, outliers: Outliers | None, bias: Tensor | None) -> None:
    cost = lut_gemv_cost(
        x.shape[0],
        x.shape[1],
        outputs,
        bits,
        x.element_size(),
        outliers=None if outliers is None else outliers.values.numel(),
        bias_bytes=0 if bias is None else bias.element_size(),
    )
    counting.record("lut_gemv", cost)
