"""The `long-retrieval` rows at a size that runs in seconds: twice the trained length instead of 32 times."""

from __future__ import annotations

import pytest

from suite.experiments import recall
from suite.experiments.base import Workbench
from suite.experiments.qwen2_5_1m import Qwen25Experiment
from suite.methods.attention.qwen2_5_1m import Qwen25OneM

BENCH = Workbench(1, lambda text: None)
LENGTH = 1024


def test_the_row_is_the_accuracy_kept_beside_the_plain_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "LONG_LENGTH", LENGTH)
    monkeypatch.setattr(recall, "LONG_SEQUENCES", 4)
    claim = next(claim for claim in Qwen25OneM.card.claims if claim.id == "long-retrieval")
    row = Qwen25Experiment()._long(BENCH, claim)
    grids = row.details["samples"]
    assert set(grids) == {"qa", "passage_retrieval"}
    for grid in grids.values():
        assert set(grid) == {"plain", "sinks and recent", "dual chunk and temperature"}
        assert all(len(scores) == 4 for column in grid.values() for scores in column.values())
        assert grid["dual chunk and temperature"][512] == grid["plain"][512], "within the trained length it is the same"
    ours = [score for grid in grids.values() for score in grid["dual chunk and temperature"][LENGTH]]
    trained = [score for grid in grids.values() for score in grid["plain"][512]]
    assert row.measured == pytest.approx(sum(ours) / sum(trained))
    plain = [score for grid in grids.values() for score in grid["plain"][LENGTH]]
    assert sum(plain) < sum(ours), "the plain model fails beyond its trained length"
