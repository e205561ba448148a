"""lut_gemv: packed bits, tables per row, outliers, and what a call is counted as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.lut_gemv import Outliers, lut_gemv, pack, row_words, unpack
from kernels.lut_gemv.cost import lut_gemv_cost

BITS = pytest.mark.parametrize("bits", [3, 4])
ROWS = pytest.mark.parametrize("rows", [1, 3, 20])


def problem(rows: int, features: int, outputs: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, codes and tables."""
    codes = torch.randint(0, 2**bits, (outputs, features))
    return torch.randn(rows, features), codes, torch.randn(outputs, 2**bits)


def csr(dense: Tensor) -> Outliers:
    rows, columns = dense.nonzero(as_tuple=True)
    starts = torch.zeros(len(dense) + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(rows, minlength=len(dense)).cumsum(0)
    return Outliers(starts, columns.int(), dense[rows, columns])


@given(st.sampled_from((3, 4)), st.integers(1, 5), st.integers(1, 1200), st.integers(0, 1000))
def test_unpacking_inverts_packing(bits: int, outputs: int, features: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (outputs, features), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unpack(pack(codes, bits), bits, features).long(), codes)


@pytest.mark.parametrize(("bits", "features"), [(3, 4096), (3, 11008), (4, 4096), (4, 14336)])
def test_weights_really_take_their_bits(bits: int, features: int) -> None:
    packed = pack(torch.zeros(2, features, dtype=torch.uint8), bits)
    assert packed.numel() * packed.element_size() * 8 == 2 * features * bits


@given(st.sampled_from((3, 4)), st.integers(1, 5000))
def test_only_the_end_of_a_row_is_padded(bits: int, features: int) -> None:
    padding = row_words(features, bits) * 16 - features * bits
    assert 0 <= padding < 16 * 3


def test_the_layout_by_hand() -> None:
    """4 bits: vector j in nibble j. 3 bits: five vectors in a plane, the sixteenth in the top bits of all three."""
    four = pack(torch.arange(128)[None] // 32, 4)
    assert four.tolist() == [[0x3210] * 32]
    vectors = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 5])
    three = pack(vectors.repeat_interleave(32)[None], 3)
    planes = [
        1 | 2 << 3 | 3 << 6 | 4 << 9 | 5 << 12,
        6 | 7 << 3 | 1 << 9 | 2 << 12,
        3 | 4 << 3 | 5 << 6 | 6 << 9 | 7 << 12,
    ]
    words = [planes[0] | 1 << 15, planes[1], planes[2] | 1 << 15]
    assert (three.int() & 0xFFFF).tolist() == [[word for word in words for _ in range(32)]]
    assert (pack(vectors[None], 3).int() & 0xFFFF).tolist() == [words]


@BITS
@ROWS
def test_each_row_has_its_own_table(bits: int, rows: int) -> None:
    """Renaming the codes of one row, in its table too, changes nothing; in its table alone, that output only."""
    x, codes, tables = problem(rows, 600, 40, bits)
    y = lut_gemv(x, pack(codes, bits), tables)
    order = torch.randperm(2**bits)
    renamed, moved = codes.clone(), tables.clone()
    renamed[17], moved[17] = torch.argsort(order)[codes[17]], tables[17][order]
    torch.testing.assert_close(lut_gemv(x, pack(renamed, bits), moved), y)
    changed = (lut_gemv(x, pack(codes, bits), moved) != y).any(0)
    assert changed.nonzero().flatten().tolist() == [17]


@BITS
@ROWS
def test_outliers_are_added_exactly_once(bits: int, rows: int) -> None:
    x, codes, tables = problem(rows, 600, 40, bits)
    sparse = torch.randn(40, 600) * (torch.rand(40, 600) < 0.02)
    sparse[3] = 0
    packed = pack(codes, bits)
    y, with_outliers = lut_gemv(x, packed, tables), lut_gemv(x, packed, tables, csr(sparse))
    torch.testing.assert_close(with_outliers - y, x @ sparse.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(with_outliers[:, 3], y[:, 3])


@ROWS
def test_an_empty_sparse_part_changes_nothing(rows: int) -> None:
    x, codes, tables = problem(rows, 600, 40, 4)
    packed = pack(codes, 4)
    empty = csr(torch.zeros(40, 600))
    assert torch.equal(lut_gemv(x, packed, tables, empty), lut_gemv(x, packed, tables))


@BITS
@ROWS
def test_dense_and_sparse_reproduce_an_extracted_weight(bits: int, rows: int) -> None:
    """The zero fix: an outlier's code points at z, its value is w - z."""
    x, codes, tables = problem(rows, 300, 40, bits)
    outlier = torch.rand(40, 300) < 0.02
    weight = tables.gather(1, codes)
    weight[outlier] = 30 * torch.randn(int(outlier.sum()))
    nearest = tables.abs().argmin(1)
    codes[outlier] = nearest[outlier.nonzero()[:, 0]]
    fix = torch.where(outlier, weight - tables.gather(1, codes), 0.0)
    torch.testing.assert_close(lut_gemv(x, pack(codes, bits), tables, csr(fix)), x @ weight.T, rtol=1e-4, atol=1e-4)


def test_one_row_of_outliers_among_threads() -> None:
    """Threads share the work, outliers included, so that rows go to them unevenly."""
    x, codes, tables = problem(1, 600, 400, 4)
    sparse = torch.zeros(400, 600)
    sparse[5] = torch.randn(600)
    expected = x @ (tables.gather(1, codes) + sparse).T
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        torch.testing.assert_close(lut_gemv(x, pack(codes, 4), tables, csr(sparse)), expected, rtol=1e-4, atol=1e-4)


@BITS
def test_results_barely_depend_on_the_number_of_rows(bits: int) -> None:
    x, codes, tables = problem(40, 600, 50, bits)
    packed = pack(codes, bits)
    whole = lut_gemv(x, packed, tables)
    for rows in (1, 2, 4, 5, 8, 9, 17, 33):
        torch.testing.assert_close(lut_gemv(x[:rows], packed, tables), whole[:rows], rtol=1e-4, atol=1e-4)


def test_cost_by_hand() -> None:
    """8 inputs, 5 outputs, 3 rows of bf16: codes, tables, x, bias once; y once."""
    assert lut_gemv_cost(3, 8, 5, 4, 2) == Cost(2 * 3 * 40, 5 * (4 + 32) + 48, 30)
    with_bias = lut_gemv_cost(3, 8, 5, 3, 2, bias_bytes=2)
    assert with_bias == Cost(2 * 3 * 40 + 15, 5 * (3 + 16 + 2) + 48, 30)
    sparse = lut_gemv_cost(3, 8, 5, 4, 2, outliers=7)
    assert sparse == Cost(2 * 3 * (40 + 7), 5 * (4 + 32) + 48 + 7 * 6 + 6 * 4, 30)


@pytest.mark.parametrize(("bits", "features", "share", "expected"), [(3, 4096, 0, 3.03), (3, 11008, 0.0045, 3.24)])
def test_average_bits_are_the_papers(bits: int, features: int, share: float, expected: float) -> None:
    """methods/squeezellm.md: b + 16 * 2^b / in + share * 48, and row pointers (32 bits a row)."""
    entries = round(share * features * 1000) if share else None
    read = lut_gemv_cost(0, features, 1000, bits, 2, outliers=entries).read_bytes
    assert read * 8 / (features * 1000) == pytest.approx(expected, abs=0.01)


def test_the_call_is_counted() -> None:
    x, codes, tables = problem(3, 600, 40, 4)
    outliers, bias = csr(torch.eye(40, 600)), torch.zeros(40)
    with counting.counting() as counter:
        lut_gemv(x, pack(codes, 4), tables, outliers, bias=bias)
    assert counter.costs == {"lut_gemv": lut_gemv_cost(3, 600, 40, 4, 4, outliers=40, bias_bytes=4)}


@pytest.mark.parametrize("case", ["x fp64", "tables fp64", "x transposed", "columns int64", "bias fp64"])
def test_what_the_kernels_cannot_read_takes_the_reference(case: str) -> None:
    x, codes, tables = problem(4, 40, 20, 4)
    sparse = torch.randn(20, 40) * (torch.rand(20, 40) < 0.1)
    outliers, bias = csr(sparse), torch.randn(20)
    expected = x @ (tables.gather(1, codes) + sparse).T + bias
    what, _, how = case.partition(" ")
    if what == "x":
        x = x.double() if how == "fp64" else x.T.contiguous().T
    elif what == "tables":
        tables = tables.double()
    elif what == "columns":
        outliers = outliers._replace(columns=outliers.columns.long())
    else:
        bias = bias.double()
    y = lut_gemv(x, pack(codes, 4), tables, outliers, bias=bias)
    assert y.dtype is x.dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused() -> None:
    x, codes, tables = problem(1, 40, 20, 4)
    with pytest.raises(ValueError, match=r"packed must be \[20, 10\]"):
        lut_gemv(x, pack(codes, 4)[:, :-1], tables)
    with pytest.raises(ValueError, match="8 or 16 entries, not 4"):
        lut_gemv(x, pack(codes, 4), tables[:, :4])
    with pytest.raises(ValueError, match="3 or 4 bits, not 5"):
        pack(codes, 5)
    with pytest.raises(ValueError, match="must lie in"):
        pack(codes + 8, 3)
    with pytest.raises(ValueError, match="are 9 words"):
        unpack(pack(codes % 8, 3)[:, :-1], 3, 40)
