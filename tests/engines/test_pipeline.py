"""The simulated pipeline: chunk lists, and what they do to its stages."""

from __future__ import annotations

from itertools import pairwise

import pytest

from suite.engines.pipeline import ChunkCost, dynamic_chunks, fixed_chunks, simulate

COST = ChunkCost(c0=1e-3, g=1e-9, a=2e-10, b=2e-6)
LENGTH = 131072


def test_dynamic_chunks_get_strictly_smaller_and_add_up():
    """Fixed chunks under another name would not."""
    chunks = dynamic_chunks(LENGTH, 32768, COST, least=64)
    assert sum(chunks) == LENGTH
    assert len(chunks) > 4
    assert all(a > b for a, b in pairwise(chunks))
    assert all(chunk % 64 == 0 for chunk in chunks)


def test_dynamic_chunks_take_equal_times_within_their_alignment():
    chunks = dynamic_chunks(LENGTH, 16384, COST, least=64)
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    seconds = [COST.seconds(start, chunk) for start, chunk in zip(starts, chunks, strict=True)][:-1]
    assert max(seconds) / min(seconds) < 1.05


def test_chunks_stay_between_their_limits():
    assert min(dynamic_chunks(LENGTH, 8192, COST, least=4096)[:-1]) == 4096  # the last one is what is left
    assert dynamic_chunks(3000, 8192, COST) == [3000]
    assert fixed_chunks(10, 4) == [4, 4, 2]


def test_a_pipeline_of_one_stage_never_waits_and_of_equal_chunks_waits_to_fill():
    assert simulate([100] * 5, COST, 1).bubble == pytest.approx(0.0)
    flat = ChunkCost(1.0, 0.0, 0.0, 0.0)
    run = simulate([1] * 4, flat, 4)
    assert run.seconds == pytest.approx(7 / 4)  # 4 chunks and 3 more slots to drain, a quarter of a second each
    assert run.bubble == pytest.approx(1 - 4 / 7)


def test_dynamic_chunks_beat_the_same_first_chunk_fixed():
    fixed, dynamic = (simulate(chunks, COST, 4) for chunks in (
        fixed_chunks(LENGTH, 32768), dynamic_chunks(LENGTH, 32768, COST)
    ))  # fmt: skip
    assert dynamic.seconds < fixed.seconds
    assert dynamic.bubble < fixed.bubble


def test_coefficients_are_found_again():
    rows = [(before, x, COST.seconds(before, x)) for before in (0, 1024, 8192) for x in (128, 512, 2048)]
    found = ChunkCost.fitted(rows)
    for name in ("c0", "g", "a", "b"):
        assert getattr(found, name) == pytest.approx(getattr(COST, name), rel=1e-3)
