"""Which path serves a call: the C++ kernel, torch or the reference, always with the same result."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernels import build
from kernels.flash_decode import dense_spans, flash_decode
from kernels.gemv import fast, gated_gemv, gemv, linear
from kernels.rms_norm import rms_norm
from kernels.rope import reference, rotate_and_append


@pytest.mark.parametrize(
    "shape", [(1, 24), (16, 24), (17, 24), (2, 3, 24), (4, 5, 24), (24,), (17, 128), (2, 64, 128), (129, 128)], ids=str
)
@pytest.mark.parametrize("options", ["", "bias", "residual", "bias residual"])
def test_linear_is_torch_linear_for_any_shape(shape: tuple[int, ...], options: str) -> None:
    x, weight = torch.randn(shape), torch.randn(40, shape[-1])
    bias = torch.randn(40) if "bias" in options else None
    residual = torch.randn(*shape[:-1], 40) if "residual" in options else None
    expected = F.linear(x, weight, bias) + (0 if residual is None else residual)
    torch.testing.assert_close(linear(x, weight, bias, residual), expected)


@pytest.mark.parametrize(
    ("level", "shape", "dtype", "expected"),
    [
        ("avx512", (128, 128), torch.float32, True),
        ("avx512", (2, 64, 576), torch.bfloat16, True),
        ("avx512", (129, 128), torch.float32, False),
        ("avx512", (17, 64), torch.float32, False),  # torch is faster for so little
        ("avx512", (17, 144), torch.float32, False),  # no whole vectors
        ("avx512", (16, 24), torch.float32, True),
        ("amx", (17, 128), torch.bfloat16, False),  # never measured
        ("avx2", (17, 128), torch.float32, False),  # too few registers
    ],
)
def test_many_rows_are_for_gemv_where_a_lane_has_a_row(level, shape, dtype, expected, monkeypatch) -> None:
    monkeypatch.setattr(build, "level", lambda: level)
    monkeypatch.setattr(build, "multiplies_bf16", lambda: True)
    assert fast(torch.zeros(shape, dtype=dtype)) is expected


def test_bf16_rows_are_few_where_the_cpu_does_not_multiply_bf16(monkeypatch) -> None:
    monkeypatch.setattr(build, "level", lambda: "avx512")
    monkeypatch.setattr(build, "multiplies_bf16", lambda: False)
    assert not fast(torch.zeros(17, 128).bfloat16())
    assert fast(torch.zeros(17, 128))


@pytest.mark.parametrize("kept", [True, False])
def test_linear_takes_gemv_where_it_is_fast_and_torch_elsewhere(kept, monkeypatch) -> None:
    calls = []
    product = F.linear
    monkeypatch.setattr("kernels.gemv.fast", lambda x: kept)
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args) or product(*args))
    linear(torch.randn(40, 64), torch.randn(5, 64))
    assert (not calls) is kept


def test_linear_keeps_gradients() -> None:
    x, weight = torch.randn(1, 24), torch.randn(40, 24, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.expand(40, 24))
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_fp32_logits_do_not_depend_on_the_number_of_rows(rows: int) -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(300, 64).bfloat16()
    logits = linear(x[:rows], weight, out_dtype=torch.float32)
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits, x[:rows].float() @ weight.float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_take_the_reference(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 24).to(dtype), torch.randn(40, 24).to(dtype)
    torch.testing.assert_close(gemv(x, weight), x @ weight.T, rtol=2e-3, atol=2e-3)
    assert gated_gemv(x, weight, "silu").dtype is dtype
    assert rms_norm(x, torch.ones(24), 1e-6).dtype is dtype


def test_layouts_a_kernel_cannot_read_take_the_reference() -> None:
    x, weight = torch.randn(24, 2).T, torch.randn(24, 40).T
    torch.testing.assert_close(gemv(x, weight), x @ weight.T)
    torch.testing.assert_close(rms_norm(x, torch.ones(24), 1e-6), F.rms_norm(x, (24,), eps=1e-6))


@pytest.mark.parametrize(("dim", "transposed"), [(12, False), (16, True)], ids=["dim 12", "tokens innermost"])
def test_caches_the_kernel_cannot_read_take_the_reference(dim: int, transposed: bool) -> None:
    q, cache = torch.randn(1, 2, dim), torch.randn(1, 2, 9, dim)
    cache = cache.mT.contiguous().mT if transposed else cache
    out, _ = flash_decode(q, cache, cache, dense_spans([9]), torch.zeros(1).int(), scale=1.0)
    peer = F.scaled_dot_product_attention(q[:, :, None], cache, cache, scale=1.0)
    torch.testing.assert_close(out, peer[:, :, 0])


def test_rotation_and_append_convert_and_take_any_layout() -> None:
    """bf16 keys into an fp32 cache, and elements that do not lie side by side."""
    q, k, v = torch.randn(3, 4, 16), torch.randn(3, 16, 2).mT, torch.randn(3, 2, 16)
    table, positions, rows = torch.randn(9, 8), torch.tensor([3, 4, 5]), torch.zeros(3).long()
    expected_q, expected_k = (reference.rotate(x, table, table, positions) for x in (q, k))
    for dtype in (torch.float32, torch.bfloat16):
        keys, values = torch.zeros(1, 2, 9, 16, dtype=dtype), torch.zeros(1, 2, 9, 16, dtype=dtype)
        own_q, own_k = q.clone(), k.clone(memory_format=torch.preserve_format)
        rotate_and_append(own_q, own_k, v, table, table, positions, keys, values, rows, positions)
        torch.testing.assert_close((own_q, own_k), (expected_q, expected_k))
        torch.testing.assert_close(keys[0, :, 3:6], expected_k.transpose(0, 1).to(dtype))
        torch.testing.assert_close(values[0, :, 3:6], v.transpose(0, 1).to(dtype))


def test_mixed_dtypes_are_not_misread() -> None:
    x, weight, residual = torch.randn(2, 24), torch.randn(40, 24), torch.randn(2, 40)
    expected = x @ weight.T + residual
    torch.testing.assert_close(gemv(x, weight, residual.double()), expected)
    torch.testing.assert_close(gemv(x, weight.double(), residual), expected)
    normed = F.rms_norm(x, (24,), eps=1e-6)
    torch.testing.assert_close(rms_norm(x, torch.ones(24).double(), 1e-6), normed)


@pytest.mark.parametrize("lengths", [[5], [1, 0, 7], torch.tensor([3, 4])], ids=str)
def test_dense_spans_read_everything_up_to_the_query(lengths: list[int] | torch.Tensor) -> None:
    spans = dense_spans(lengths)
    assert spans.dtype is torch.int32
    assert spans[:, 0, 0].tolist() == [[0, int(length), int(length) - 1] for length in lengths]


def test_merged_spans_are_one_span() -> None:
    """Cutting a selection into adjacent spans changes nothing."""
    q, keys, values = torch.randn(1, 6, 64), torch.randn(1, 2, 300, 64), torch.randn(1, 2, 300, 64)
    cuts = torch.tensor([0, 1, 17, 17, 64, 130, 299, 300], dtype=torch.int32)
    pieces = torch.stack((cuts[:-1], cuts[1:], torch.zeros(7, dtype=torch.int32)), -1)[None, None]
    rows = torch.zeros(1).int()
    whole = flash_decode(q, keys, values, dense_spans([300]), rows, scale=0.125)
    cut = flash_decode(q, keys, values, pieces, rows, scale=0.125)
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("native", [True, False], ids=["bf16 products", "none"])
def test_many_bf16_rows_are_right_whether_or_not_the_cpu_multiplies_bf16(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "multiplies_bf16", lambda: native)
    x, weight, bias = torch.randn(40, 33), torch.randn(7, 33), torch.randn(7)
    x, weight = x.bfloat16(), weight.bfloat16()
    y = linear(x, weight, bias)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), F.linear(x.float(), weight.float(), bias), rtol=1e-2, atol=5e-2)
