"""The roofline's guess at an engine's batching."""

from __future__ import annotations

import pytest

from analysis.roofline.batching import Batching, Traffic, serving_seconds, suggested
from analysis.roofline.model import Machine, decode, prefill, step_seconds
from analysis.roofline.operators import Precision
from analysis.roofline.shape import ModelShape

SHAPE = ModelShape(layers=4, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocab=256)
BF16 = Precision.of_bits(16, 16, 16)
HIGHEST = Batching(256, 8192)
MEMORY_BOUND = Machine("all bytes", flops_per_s=1e15, bytes_per_s=1e9)


def test_one_prompt_in_one_pass_is_a_prefill_and_its_steps() -> None:
    traffic = Traffic(prompts=1, input_tokens=100, output_tokens=5)
    known = step_seconds(prefill(SHAPE, BF16, batch=1, tokens=100), MEMORY_BOUND)
    known += sum(step_seconds(decode(SHAPE, BF16, batch=1, context=100 + n), MEMORY_BOUND) for n in range(1, 5))
    found = serving_seconds(SHAPE, BF16, MEMORY_BOUND, traffic, Batching(1, 128))
    assert found == pytest.approx(known, rel=0.01)


def test_the_weights_are_read_once_for_all_where_bytes_are_all_that_counts() -> None:
    traffic = Traffic(prompts=16, input_tokens=100, output_tokens=20)
    assert suggested(SHAPE, BF16, MEMORY_BOUND, traffic, HIGHEST) == Batching(16, 2048)


def test_where_flops_are_all_that_counts_batches_win_nothing() -> None:
    compute_bound = Machine("all FLOPs", flops_per_s=1e6, bytes_per_s=1e15)
    traffic = Traffic(prompts=16, input_tokens=100, output_tokens=20)
    alone, together = (
        serving_seconds(SHAPE, BF16, compute_bound, traffic, batching)
        for batching in (Batching(1, 128), Batching(16, 2048))
    )
    assert together == pytest.approx(alone, rel=0.05)


def test_the_limits_are_kept_and_a_last_group_may_be_smaller() -> None:
    traffic = Traffic(prompts=5, input_tokens=50, output_tokens=4)
    assert suggested(SHAPE, BF16, MEMORY_BOUND, traffic, Batching(2, 128)) == Batching(2, 128)
    three, two = (Traffic(prompts=n, input_tokens=50, output_tokens=4) for n in (3, 2))
    seconds = serving_seconds(SHAPE, BF16, MEMORY_BOUND, traffic, Batching(3, 256))
    assert seconds == pytest.approx(
        sum(serving_seconds(SHAPE, BF16, MEMORY_BOUND, part, Batching(3, 256)) for part in (three, two))
    )
