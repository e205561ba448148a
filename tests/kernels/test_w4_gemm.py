"""w4_gemm: packed bits, scales per group, the same result for any number of rows, and what a call is counted as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.w4_gemm import GROUP, dequantise, pack, unpack, w4_gemm
from kernels.w4_gemm.cost import w4_gemm_cost

ROWS = pytest.mark.parametrize("rows", [1, 3, 20, 64])


def problem(rows: int, features: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, integer weights and scales."""
    weight = torch.randint(-8, 8, (outputs, features))
    return torch.randn(rows, features), weight, torch.randn(outputs, -(-features // GROUP)).half()


def exact(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Group by group in fp64."""
    groups = zip(x.double().split(GROUP, 1), weight.double().split(GROUP, 1), scales.double().unbind(1), strict=True)
    return sum((a @ w.T * scale for a, w, scale in groups), start=torch.zeros(1)).to(x.dtype)


@given(st.integers(1, 5), st.integers(1, 400), st.integers(0, 1000))
def test_unpacking_inverts_packing(outputs: int, features: int, seed: int) -> None:
    weight = torch.randint(-8, 8, (outputs, features), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unpack(pack(weight), features).long(), weight)


def test_weights_take_at_most_0_30_of_their_bytes_in_fp16() -> None:
    """methods/specmquant.md, toy traps: codes and scales of a layer."""
    packed, scales = pack(torch.zeros(8, 4096, dtype=torch.int8)), torch.zeros(8, 32).half()
    assert packed.numel() * packed.element_size() == 8 * 4096 // 2
    assert packed.nbytes + scales.nbytes <= 0.30 * 8 * 4096 * 2


def test_the_layout_by_hand() -> None:
    assert (pack(torch.arange(128)[None] // 32 - 8).int() & 0xFFFF).tolist() == [[0x3210] * 32]
    assert (pack(torch.tensor([[-8, 7, 0, -1, 1]])).int() & 0xFFFF).tolist() == [[0x0980, 0x007F]]


@ROWS
@pytest.mark.parametrize("features", [1, 31, 127, 128, 129, 200, 512])
def test_any_number_of_inputs(rows: int, features: int) -> None:
    x, weight, scales = problem(rows, features, 37)
    torch.testing.assert_close(w4_gemm(x, pack(weight), scales), exact(x, weight, scales), rtol=1e-4, atol=1e-3)


@ROWS
def test_extreme_codes_of_either_sign(rows: int) -> None:
    """-8 has no opposite; a scale of 0 erases a group, a negative one turns it round."""
    x = torch.randint(-3, 4, (rows, 384)).float()
    weight = torch.full((20, 384), -8)
    weight[:, ::2] = 7
    scales = torch.tensor([[1.0, 0.0, -1.0]]).repeat(20, 1).half()
    y = w4_gemm(x, pack(weight), scales)
    expected = x[:, :128] @ weight[:, :128].float().T - x[:, 256:] @ weight[:, 256:].float().T
    assert torch.equal(y, expected)


@ROWS
def test_a_scale_is_that_of_its_row_and_group(rows: int) -> None:
    x, weight, scales = problem(rows, 384, 40)
    y = w4_gemm(x, pack(weight), scales)
    changed = scales.clone()
    changed[17, 1] += 1
    difference = w4_gemm(x, pack(weight), changed) - y
    assert difference.any(0).nonzero().flatten().tolist() == [17]
    step = (changed[17, 1] - scales[17, 1]).float()
    expected = step * (x[:, 128:256] @ weight[17, 128:256].float())
    torch.testing.assert_close(difference[:, 17], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_barely_depend_on_the_number_of_rows(dtype: torch.dtype) -> None:
    """A verified draft must score as it would one token at a time: nothing is rounded before the sums."""
    x, weight, scales = problem(65, 4096, 40)
    x, packed = x.to(dtype), pack(weight)
    whole = w4_gemm(x, packed, scales).float()
    for rows in (1, 2, 4, 5, 8, 9, 17, 33, 64):
        part = w4_gemm(x[:rows], packed, scales).float()
        agreeing = (part == whole[:rows]).float().mean()
        torch.testing.assert_close(part, whole[:rows], rtol=1e-4 if dtype is torch.float32 else 1e-2, atol=1e-2)
        assert dtype is torch.float32 or agreeing > 0.99


def test_dequantising_agrees() -> None:
    x, weight, scales = problem(5, 300, 20)
    packed = pack(weight)
    dense = dequantise(packed, scales, 300, torch.float32)
    torch.testing.assert_close(w4_gemm(x, packed, scales), x @ dense.T, rtol=1e-4, atol=1e-3)


def test_cost_by_hand() -> None:
    """N K (0.5 + 2 / 128) + b T (K + N): 256 inputs, 10 outputs, 3 rows of bf16."""
    assert w4_gemm_cost(3, 256, 10, 2) == Cost(2 * 3 * 2560, 10 * (128 + 4) + 3 * 256 * 2, 3 * 10 * 2)
    assert w4_gemm_cost(1, 5, 1, 4).read_bytes == 3 + 2 + 20


def test_the_call_is_counted() -> None:
    x, weight, scales = problem(3, 300, 10)
    with counting.counting() as counter:
        w4_gemm(x, pack(weight), scales)
    assert counter.costs == {"w4_gemm": w4_gemm_cost(3, 300, 10, 4)}


@pytest.mark.parametrize("case", ["x fp64", "x transposed", "scales bf16"])
def test_what_the_kernels_cannot_read_takes_the_reference(case: str) -> None:
    x, weight, scales = problem(4, 200, 20)
    scales = scales.bfloat16() if case == "scales bf16" else scales
    expected = exact(x, weight, scales)
    x = {"x fp64": x.double(), "x transposed": x.T.contiguous().T}.get(case, x)
    torch.testing.assert_close(w4_gemm(x, pack(weight), scales).float(), expected, rtol=1e-4, atol=1e-3)


def test_bad_arguments_are_refused() -> None:
    x, weight, scales = problem(1, 200, 20)
    packed = pack(weight)
    with pytest.raises(ValueError, match=r"packed \[20, 50\] and scales \[20, 2\]"):
        w4_gemm(x, packed[:, :-1], scales)
    with pytest.raises(ValueError, match="not"):
        w4_gemm(x, packed, scales[:, :1])
    with pytest.raises(ValueError, match="int4 weights"):
        pack(weight + 8)
