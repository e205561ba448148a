"""The table of the reasoning lab's properties, at a size that runs in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from suite.experiments import reasoning_lab
from suite.experiments.base import Workbench
from suite.experiments.reasoning_lab import CLAIMS, Answered, ReasoningLab, auc_estimate, length_aucs, lengths


def test_every_property_is_measured_once(monkeypatch):
    for name, size in (("PROBLEMS", 60), ("SAMPLES", 2), ("LONG_PROBLEMS", 8), ("LONG_SAMPLES", 4), ("RESAMPLES", 20)):
        monkeypatch.setattr(reasoning_lab, name, size)
    rows = {row.claim.split(":")[0]: row for row in ReasoningLab().findings(Workbench(1, lambda text: None))}
    assert set(rows) == set(CLAIMS)
    assert rows["likelihood"].measured > rows["prm"].measured
    assert rows["entropy"].measured > 0.9
    assert "chain-mid" in rows["strong"].conditions


def test_lengths_by_hand():
    rows = [Answered([True, False, False], [10, 10, 30]), Answered([True, True], [5, 7]), Answered([False], [3])]
    assert length_aucs(rows) == [0.75]
    assert lengths(rows) == {"mean": 65 / 6, "median": 8.5, "most": 30, "shortest": 2 / 3, "longest": 1 / 3}


def test_an_auc_has_an_interval():
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.4
    found = auc_estimate(rng.normal(size=400) + labels, labels)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(0.76, abs=0.05)  # two normals one deviation apart
