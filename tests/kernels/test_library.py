"""The kernels as operators of torch: their schemas, `torch.compile`, and the byte counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kernels.library  # noqa: F401 - registers the operators
from kernels import counting
from kernels.flash_decode import dense_spans
from kernels.gemv import gated_gemv, gemv
from kernels.gemv.cost import gemv_cost
from kernels.lut_gemv.packing import pack as pack_lut
from kernels.rms_norm import rms_norm
from kernels.w4_gemm import pack as pack_w4
from suite.harness.counting import DispatchCounter, Tally

ops = torch.ops.suite


def samples() -> dict[str, tuple[object, ...]]:
    x, weight = torch.randn(2, 24), torch.randn(40, 24)
    cache, ints = torch.randn(2, 2, 9, 16), torch.tensor([0, 1], dtype=torch.int32)
    q, k, table = torch.randn(2, 4, 16), torch.randn(2, 2, 16), torch.randn(3, 8)
    tokens, tiles = torch.zeros(2, 1, 1, 3).int(), torch.ones(2, 1, 1, 1, dtype=torch.bool)
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    return {
        "gemv": (x, weight, torch.randn(2, 40), None),
        "gated_gemv": (x, weight, "silu"),
        "gate": (x, "silu"),
        "rms_norm": (x, torch.ones(24), 1e-5),
        "add_rms_norm": (x, torch.randn(2, 24), torch.ones(24), 1e-5, torch.randn(24)),
        "rotate_and_append": (q, k, k.clone(), table, table, ints, cache, cache.clone(), ints, ints),
        "rope_shift": (cache, table, table, -ints, ints, ints),
        "lut_gemv": (x, pack_lut(torch.randint(0, 16, (40, 24)), 4), torch.randn(40, 16)),
        "w4_gemm": (x, pack_w4(torch.randint(-8, 8, (40, 24))), torch.ones(40, 1).half()),
        "lse_merge": (torch.randn(3, 2, 4, 16), torch.randn(3, 2, 4)),
        "gathered_prefill": (q[:, None], cache, cache, tokens, ints, ints, 4, 0.25),
        "block_sparse_prefill": (q[:, None], cache, cache, tiles, ints, ints, 4, 32, 0.25),
        "span_prefill": (q[:, None], cache, cache, torch.zeros(2, 1, 1, 1, 3).int(), ints, ints, table, table, 0.25),
        "tree_attention": (q[:, None], cache, cache, torch.ones(2, 1).long(), ints, 0.25),
        "select_top": (q, torch.randn(2, 7, 16), 3, ints, 0),
        "ema_scan": (torch.randn(2, 3, 16), torch.rand(2, 3), torch.zeros(2, 16)),
        "kv_gather": (cache, ints[None].expand(2, 2).contiguous()),
        "kv_compact": ([cache, cache.clone()], ints[None].expand(2, 2).contiguous(), ints),
        "sample": (x, torch.rand(2), 0.7, 5, 0.9),
        "segment_sum": (torch.randn(9, 16), offsets, "mean"),
        "segment_mass": (q, cache[0], offsets, ints, 0.25, 5.0),
        "flash_decode": (q, cache, cache, dense_spans([9, 5]), ints, 0.25),
        "flash_prefill": (q[:, None], cache, cache, ints, ints, 0.25, 3),
    }


@pytest.mark.parametrize("name", samples())
def test_schema_and_shapes_are_right(name: str) -> None:
    torch.library.opcheck(getattr(ops, name).default, samples()[name], test_utils=("test_schema", "test_faketensor"))


def test_compiled_code_keeps_the_kernels() -> None:
    def layer(x: Tensor, weight: Tensor) -> Tensor:
        gated: Tensor = ops.gated_gemv(ops.rms_norm(x, torch.ones(24), 1e-5), weight, "silu")
        return gated * 2

    x, weight = torch.randn(2, 24), torch.randn(40, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = gated_gemv(rms_norm(x, torch.ones(24), 1e-5), weight, "silu") * 2
    torch.testing.assert_close(compiled(x, weight), expected)


def test_a_call_is_counted_once() -> None:
    x, weight, tally = torch.randn(2, 24), torch.randn(40, 24), Tally()
    with DispatchCounter(tally), counting.counting() as counter:
        y = ops.gemv(x, weight)
    torch.testing.assert_close(y, gemv(x, weight))
    assert counter.total == gemv_cost(2, 24, 40, 4)
    assert tally.records() == []
