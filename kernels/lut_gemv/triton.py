"""Table-lookup linear layers on the GPU. A program makes BLOCK_O outputs for all rows, its tables in registers."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant
from kernels.lut_gemv.reference import Outliers

ROWS = 16  # the least a tensor core takes; a single row is multiplied without it
BLOCK_O = 16
BLOCK_C = {(3, 1): 32, (4, 1): 64, (3, ROWS): 32, (4, ROWS): 32}
"""Columns of codes that are multiplied at once, by bits and rows of x: more would spill."""
ENTRIES = {1: 32, ROWS: 4}
"""Outliers of a row that are fetched at once, by rows of x."""


@jit
def column_codes(
    words: tl.tensor, width: tl.tensor, valid: tl.tensor, j: tl.constexpr, BITS: tl.constexpr
) -> tl.tensor:
    """Vector j of the codes of columns, whose first words are at `words`, `width` words to the next plane (int32)."""
    if BITS == 4:
        return (tl.load(words, valid, 0) >> 4 * j) & 15
    if j < 15:
        return (tl.load(words + j // 5 * width, valid, 0) >> 3 * (j % 5)) & 7
    low, middle = tl.load(words, valid, 0) >> 15, tl.load(words + width, valid, 0) >> 15
    return (low & 1) | ((middle & 1) << 1) | (((tl.load(words + 2 * width, valid, 0) >> 15) & 1) << 2)


@jit
def outlier_sums(
    x: tl.tensor,
    x_stride: tl.tensor,
    starts: tl.tensor,
    columns: tl.tensor,
    values: tl.tensor,
    o: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    ENTRIES: tl.constexpr,
) -> tl.tensor:
    """The sparse part of outputs o [O] for rows n [N] of x: fp32 [O, N]."""
    sums = tl.zeros((o.shape[0], n.shape[0]), tl.float32)
    first, last = tl.load(starts + o, o < outputs, 0), tl.load(starts + o + 1, o < outputs, 0)
    for step in range(0, tl.max(last - first, 0), ENTRIES):
        k = first[:, None] + step + tl.arange(0, ENTRIES)[None, :]
        valid = k < last[:, None]
        column, factor = tl.load(columns + k, valid, 0), tl.load(values + k, valid, 0.0).to(tl.float32)
        where = n[None, None, :] * x_stride + column[:, :, None]
        a = tl.load(x + where, valid[:, :, None] & (n[None, None, :] < rows), 0.0).to(tl.float32)
        sums += tl.sum(factor[:, :, None] * a, 1)
    return sums


@jit
def lut_gemv_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    packed: tl.tensor,
    tables: tl.tensor,
    starts: tl.tensor,
    columns: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    outputs: tl.tensor,
    BITS: tl.constexpr,
    HAS_OUTLIERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The layout of `packed` is that of `kernels.lut_gemv.packing`; BLOCK_C of its columns are multiplied at once."""
    VECTORS: tl.constexpr = 4 if BITS == 4 else 16
    PLANES: tl.constexpr = 1 if BITS == 4 else 3
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    valid_o, entry = o < outputs, tl.arange(0, 1 << BITS)
    table = tl.load(tables + (o[:, None] << BITS) + entry[None, :], valid_o[:, None], 0.0)
    all_columns = (features + VECTORS - 1) // VECTORS
    row = packed + o.to(tl.int64) * (all_columns * PLANES)
    if ROWS == 1:  # noqa: SIM108 - known when compiling
        products = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    else:
        products = tl.zeros((BLOCK_O, ROWS), tl.float32)
    for start in range(0, all_columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        block = c // 32
        width = tl.minimum(all_columns - block * 32, 32)
        words = row[:, None] + (block * (32 * PLANES) + c % 32)[None, :]
        valid = valid_o[:, None] & (c < all_columns)[None, :]
        for j in tl.static_range(VECTORS):
            codes = column_codes(words, width[None, :], valid, j, BITS)
            weight = tl.gather(table, codes.to(tl.int32), 1)
            i = block * (32 * VECTORS) + j * width + c % 32
            inside = (c < all_columns) & (i < features)
            if ROWS == 1:
                a = tl.load(x + tl.program_id(1) * x_stride + i, inside, 0.0)
                weight = tl.where(inside[None, :], weight.to(tl.float32), 0.0)
                products += weight * a[None, :].to(tl.float32)
            else:
                a = tl.load(x + n[None, :] * x_stride + i[:, None], inside[:, None] & (n[None, :] < rows), 0.0)
                products = dot(tl.where(inside[None, :], weight, 0.0), a, products)
    y = tl.sum(products, 1)[:, None] if ROWS == 1 else products
    if HAS_OUTLIERS:
        y += outlier_sums(x, x_stride, starts, columns, values, o, n, rows, outputs, ENTRIES)
    if HAS_BIAS:
        y += tl.load(bias + o, valid_o, 0.0).to(tl.float32)[:, None]
    where = n[None, :] * out_stride + o[:, None]
    tl.store(out + where, y.to(out.dtype.element_ty), valid_o[:, None] & (n[None, :] < rows))


def lut_gemv(
    x: Tensor, packed: Tensor, tables: Tensor, outliers: Outliers | None, bias: Tensor | None, out: Tensor
) -> Tensor:
    """The contract of `kernels.lut_gemv.lut_gemv`, into `out`."""
    (rows, features), (outputs, entries) = x.shape, tables.shape
    bits, block_rows = entries.bit_length() - 1, 1 if rows == 1 else ROWS
    if not out.numel():
        return out
    lut_gemv_kernel[triton.cdiv(outputs, BLOCK_O), triton.cdiv(rows, block_rows)](
        x,
        x.stride(0),
        packed,
        tables,
        *(outliers or (None, None, None)),
        bias,
        out,
        out.stride(0),
        rows,
        features,
        outputs,
        BITS=bits,
        HAS_OUTLIERS=outliers is not None,
        HAS_BIAS=bias is not None,
        ENTRIES=ENTRIES[block_rows],
        ROWS=block_rows,
        BLOCK_O=BLOCK_O,
        BLOCK_C=BLOCK_C[bits, block_rows],
    )
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: 3 and 4 bits in bf16, one row of x and sixteen."""
    types = "*bf16 i32 *i16 *bf16 *i32 *i32 *bf16 *bf16 *bf16 i32 i32 i32 i32"
    return [
        variant(
            f"lut_gemv-{bits} bits-{rows}",
            lut_gemv_kernel,
            types,
            BITS=bits,
            HAS_OUTLIERS=1,
            HAS_BIAS=1,
            ENTRIES=ENTRIES[rows],
            ROWS=rows,
            BLOCK_O=BLOCK_O,
            BLOCK_C=BLOCK_C[bits, rows],
        )
        for bits in (3, 4)
        for rows in (1, ROWS)
    ]
