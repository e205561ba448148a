"""Costs against hand counts and torch's own counter, their bounds, and the counting context."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kernels import counting
from kernels.cost import ZERO, Cost
from kernels.counting import Counter
from kernels.flash_decode import dense_spans, flash_decode
from kernels.flash_decode.cost import distinct_tokens, flash_decode_cost
from kernels.gate import gate
from kernels.gate.cost import gate_cost
from kernels.gemv import gated_gemv, gemv, linear
from kernels.gemv.cost import gated_gemv_cost, gemv_cost
from kernels.rms_norm import rms_norm
from kernels.rms_norm.cost import rms_norm_cost
from kernels.rope import append, apply, rotate_and_append
from kernels.rope.cost import append_cost, rotate_cost


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert Cost(12, 2, 4).bytes == 6
    assert Cost(12, 2, 4).intensity == 2.0
    assert ZERO.intensity == 0.0


def test_gemv_by_hand() -> None:
    assert gemv_cost(1, 8, 5, 2) == Cost(2 * 40, (40 + 8) * 2, 5 * 2)
    everything = gemv_cost(3, 8, 5, 2, out_bytes=4, residual=True, bias_bytes=4)
    assert everything == Cost(2 * 3 * 40 + 2 * 15, (40 + 24) * 2 + 15 * 4 + 5 * 4, 15 * 4)
    assert gated_gemv_cost(3, 8, 5, 2) == Cost(2 * 3 * 80 + 5 * 15, (80 + 24) * 2, 15 * 2)


def test_gemv_flops_are_those_torch_counts() -> None:
    x, weight = torch.randn(3, 24), torch.randn(40, 24)
    with FlopCounterMode(display=False) as peer:
        torch.nn.functional.linear(x, weight)
    assert gemv_cost(3, 24, 40, 4).flops == peer.get_total_flops()


def test_the_small_ops_by_hand() -> None:
    assert gate_cost(3, 8, 2) == Cost(5 * 24, 2 * 24 * 2, 24 * 2)
    assert rms_norm_cost(3, 8, 2) == Cost(4 * 24, 24 * 2 + 8 * 4, 24 * 2)
    assert rms_norm_cost(3, 8, 2, residual=True) == Cost(5 * 24, 2 * 24 * 2 + 8 * 4, 2 * 24 * 2)
    assert rotate_cost(3, 4, 8, 2) == Cost(3 * 96, 96 * 2 + 3 * 8 * 4, 96 * 2)
    assert append_cost(3, 2, 8, 2) == Cost(0, 2 * 48 * 2, 2 * 48 * 2)


def test_flash_decode_by_hand() -> None:
    """10 tokens, H = 6, G = 2, D = 16, bf16, one row: K and V once per KV head, 4 D FLOPs per query head and token."""
    query, index = 6 * 16 * 2, 12 + 4
    dense = flash_decode_cost(10, 1, 1, 6, 2, 16, 2)
    assert dense == Cost(4 * 10 * 6 * 16, 2 * 10 * 2 * 16 * 2 + query + index, query + 6 * 4)
    per_kv_head = flash_decode_cost(10 + 10, 2, 1, 6, 2, 16, 2)
    assert (per_kv_head.flops, per_kv_head.read_bytes) == (dense.flops, dense.read_bytes + 12)
    per_head = flash_decode_cost(6 * 10, 6, 1, 6, 2, 16, 2)
    assert per_head.flops == dense.flops
    assert per_head.read_bytes - dense.read_bytes == 2 * 10 * (6 - 2) * 16 * 2 + 5 * 12
    rotated = flash_decode_cost(10, 1, 1, 6, 2, 16, 2, rotations=6)
    assert rotated.flops - dense.flops == 6 * 3 * 16


def test_tokens_that_rows_share_are_read_once() -> None:
    spans = torch.tensor([[[0, 8, 0], [8, 9, 0]], [[0, 8, 0], [9, 11, 0]], [[2, 6, 0], [4, 5, 0]]])[:, None]
    assert distinct_tokens(spans, torch.tensor([0, 0, 1])) == 11 + 4
    assert distinct_tokens(spans, torch.tensor([0, 0, 0])) == 11
    apart, shared = (flash_decode_cost(20, 1, 2, 6, 2, 16, 2, distinct=distinct) for distinct in (None, 11))
    assert apart.read_bytes - shared.read_bytes == 2 * 9 * 2 * 16 * 2
    assert apart.flops == shared.flops


def test_flash_decode_flops_are_those_torch_counts() -> None:
    q, k, v = torch.randn(4, 1, 16), torch.randn(4, 50, 16), torch.randn(4, 50, 16)
    with FlopCounterMode(display=False) as peer:
        torch.bmm(torch.bmm(q, k.mT), v)
    assert flash_decode_cost(50, 1, 1, 4, 4, 16, 4).flops == peer.get_total_flops()


@given(st.integers(1, 10_000), st.integers(1, 8), st.integers(1, 8), st.sampled_from((16, 128)))
def test_flash_decode_bounds(tokens: int, kv_heads: int, group: int, head_dim: int) -> None:
    """Never below reading the chosen K and V once; monotone in tokens, element size and heads."""
    heads = kv_heads * group
    cost = flash_decode_cost(tokens, 1, 1, heads, kv_heads, head_dim, 2)
    assert cost.read_bytes >= 2 * tokens * kv_heads * head_dim * 2
    for larger in (
        flash_decode_cost(tokens + 1, 1, 1, heads, kv_heads, head_dim, 2),
        flash_decode_cost(tokens, 1, 1, heads, kv_heads, head_dim, 4),
        flash_decode_cost(tokens, 1, 1, heads + kv_heads, kv_heads, head_dim, 2),
    ):
        assert larger.bytes > cost.bytes
        assert larger.flops >= cost.flops


def test_nothing_is_recorded_outside_the_block() -> None:
    with counting.counting() as counter:
        pass
    gemv(torch.randn(1, 8), torch.randn(5, 8))
    counting.record("gemv", Cost(1, 1, 1))
    assert counter.total == ZERO
    assert counting.active is None


def test_an_inner_block_takes_its_calls_and_gives_the_outer_one_back() -> None:
    with counting.counting() as outer:
        counting.record("a", Cost(1, 0, 0))
        with suppress(ZeroDivisionError), counting.counting() as inner:
            counting.record("b", Cost(2, 0, 0))
            raise ZeroDivisionError
        counting.record("a", Cost(4, 0, 0))
    assert (outer.costs, outer.calls) == ({"a": Cost(5, 0, 0)}, {"a": 2})
    assert inner.total == Cost(2, 0, 0)


def test_every_dispatcher_records_its_cost() -> None:
    x, weight, one = torch.randn(3, 8).bfloat16(), torch.randn(10, 8).bfloat16(), torch.zeros(3).int()
    q, k, cache = torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.zeros(1, 2, 30, 16)
    table = torch.randn(4, 8)
    slots = torch.arange(3).int()
    with counting.counting() as counter:
        gemv(x, weight, out_dtype=torch.float32)
        gated_gemv(x, weight, "silu")
        gate(x, "silu")
        rms_norm(x, torch.ones(8), 1e-6)
        rotate_and_append(q, k, k.clone(), table, table, one, cache, cache.clone(), one, slots)
        apply(q, k, table, table, one)
        append(k, k, cache, cache, one, slots)
    assert counter.costs == {
        "gemv": gemv_cost(3, 8, 10, 2, out_bytes=4),
        "gated_gemv": gated_gemv_cost(3, 8, 5, 2),
        "gate": gate_cost(3, 4, 2),
        "rms_norm": rms_norm_cost(3, 8, 2),
        "rope": rotate_cost(3, 6, 16, 4) + rotate_cost(3, 6, 16, 4),
        "kv_append": append_cost(3, 2, 16, 4) + append_cost(3, 2, 16, 4),
    }
    assert counter.calls == {"gemv": 1, "gated_gemv": 1, "gate": 1, "rms_norm": 1, "rope": 2, "kv_append": 2}


@pytest.mark.parametrize("rows", [1, 40], ids=["kernel", "torch"])
def test_linear_is_counted_once_on_either_path(rows: int) -> None:
    with counting.counting() as counter:
        linear(torch.randn(rows, 8), torch.randn(5, 8), torch.randn(5))
    assert counter.calls == {"gemv": 1}
    assert counter.total == gemv_cost(rows, 8, 5, 4, bias_bytes=4)


def count_flash(spans: torch.Tensor, *, rotated: bool = False) -> Counter:
    table = torch.randn(40, 8) if rotated else None
    q, cache, rows = torch.randn(1, 4, 16), torch.randn(1, 2, 30, 16), torch.zeros(1).int()
    with counting.counting() as counter:
        flash_decode(q, cache, cache, spans, rows, cos=table, sin=table, scale=1.0)
    return counter


def test_flash_decode_counts_what_the_spans_select() -> None:
    assert count_flash(dense_spans([20])).total == flash_decode_cost(20, 1, 1, 4, 2, 16, 4)
    spans = torch.tensor([[0, 5, 9], [10, 10, 9]]).int().repeat(1, 4, 1, 1)
    per_head = flash_decode_cost(4 * 5, 4, 1, 4, 2, 16, 4, span_count=2, rotations=4)
    assert count_flash(spans, rotated=True).total == per_head
