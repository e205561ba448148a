"""The pieces of the LongHeads experiment at a size that runs in seconds."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from suite.experiments import longheads, synthetic
from suite.experiments.base import Workbench
from suite.experiments.longheads import LongHeadsExperiment, index_piece, step_times
from suite.experiments.recall import means
from suite.methods.attention.longheads import LongHeads, LongHeadsConfig
from suite.models.loaders import load_model
from tests.methods.support import tiny_model

BENCH = Workbench(1, lambda text: None)
SMALL = LongHeadsConfig(chunk=8, attention_length=64)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(longheads, "SEQUENCES", 8)
    monkeypatch.setattr(longheads, "LENGTHS", (128, 1024))
    monkeypatch.setattr(longheads, "SERVED", SMALL)
    monkeypatch.setattr(longheads, "ROUNDS", 2)
    monkeypatch.setattr(synthetic, "FILL", 100)


@pytest.fixture
def recall(small):
    return longheads.recall(load_model("lab-recall", "fp32"), BENCH)


def test_at_the_trained_length_all_columns_are_the_plain_model(recall):
    at_trained = {tuple(row[128]) for row in recall.accuracy.values()}
    assert len(at_trained) == 1


def test_chosen_chunks_find_the_needle_and_random_ones_do_not(recall):
    table = means(recall.accuracy)
    assert table["longheads"][1024] > table["random_chunks"][1024]
    assert table["longheads"][1024] > table["sinks_and_recent"][1024]


def test_heads_choose_different_chunks(recall):
    assert max(recall.jaccard) < 0.9
    assert 0 < sum(recall.needle_share) / len(recall.needle_share) <= 1


def test_findings_compare_with_the_plain_model(small):
    flat, plain = LongHeads.card.claims[:2]
    rows = list(LongHeadsExperiment()._recall(BENCH, flat, plain))
    assert [row.claim.split(":")[0] for row in rows] == ["flat-accuracy", "beats-plain"]
    assert all(row.low <= row.measured <= row.high for row in rows)
    assert rows[0].details["samples"]["longheads"]


def test_a_filled_cache_has_the_index_a_prefill_would_build(small):
    model, method = tiny_model(), LongHeads()
    method.begin_batch(model.config, SMALL, 1)
    with torch.inference_mode():
        cache = synthetic.filled_cache(model, 250, 1, partial(index_piece, model, method))
    assert cache.lengths == [250]
    reps = method._index[0][0].reps[:, :31]
    assert reps.isfinite().all()
    assert (reps.abs().amax(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize("new", [1, 20])
def test_step_times_are_taken_interleaved_for_both(small, new):
    times = step_times(tiny_model(), 250, BENCH, new)
    assert set(times) == {"dense", "longheads"}
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
