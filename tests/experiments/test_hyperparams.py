"""The ledger of batch sizes: what it makes of known landscapes, and a small one measured on a real engine."""

from __future__ import annotations

import pytest

from suite.engines import vllm_environment
from suite.engines.native import NativeEngine
from suite.experiments import hyperparams
from suite.experiments.base import Workbench
from suite.experiments.hyperparams import HyperparamsExperiment, Setting

BENCH = Workbench(1, lambda text: None)
IRREGULAR = {1: [50.0, 52.0], 2: [90.0, 88.0], 4: [70.0, 72.0], 8: [100.0, 99.0]}


def test_the_worst_step_and_the_best_batch_are_found() -> None:
    assert hyperparams.worst_step(IRREGULAR) == (2, 4)
    assert hyperparams.best(IRREGULAR) == 8
    step = hyperparams.ratio(IRREGULAR[2], IRREGULAR[4])
    assert step is not None
    assert step.value == pytest.approx((70 / 90 * 72 / 88) ** 0.5)


def test_every_round_and_batch_size_has_prompts_of_its_own_sorted_by_length() -> None:
    model = hyperparams.engine(NativeEngine, Setting("fp32", 1)).model
    first, second = hyperparams.groups(model, 8, 1), hyperparams.groups(model, 8, 2)
    assert [len(group) for group in first] == [8] * (hyperparams.PROMPTS // 8)
    ordered = [prompt for group in first for prompt in group]
    lengths = [len(prompt.ids) for prompt in ordered]
    assert lengths == sorted(lengths)
    assert not {prompt.ids for prompt in ordered} & {prompt.ids for group in second for prompt in group}


def test_the_ledger_has_a_row_for_every_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL": "lab-recall", "BATCHES": (1, 4), "PROMPTS": 4, "PROMPT_TOKENS": (8, 16), "NEW_TOKENS": 2, "ROUNDS": 2,
        "VllmEngine": NativeEngine, "TransformersEngine": NativeEngine,
    }.items():  # fmt: skip
        monkeypatch.setattr(hyperparams, name, value)
    monkeypatch.setattr(vllm_environment, "installed", lambda: True)
    rows = list(HyperparamsExperiment().findings(Workbench(2, lambda text: None)))
    assert [row.claim.split(":")[0] for row in rows] == [claim.id for claim in hyperparams.CLAIMS]
    assert rows[0].measured is not None
    rates = rows[0].details["rates"]
    assert list(rates) == ["bf16 on 2 threads", "fp32 on 2 threads", "bf16 on 1 thread"]
    assert all(curve.keys() == {1, 4} for curve in rates.values())
    assert "noise" in rows[0].conditions


def test_retuning_compares_two_settings_where_the_new_one_is() -> None:
    """The gain is over the old best's rate on the new hardware, not over its rate on the old."""
    old, new = Setting("bf16", 2), Setting("bf16", 1)
    found = {old: {1: [50.0, 50.0], 4: [99.0, 99.0]}, new: {1: [60.0, 60.0], 4: [40.0, 40.0]}}
    claim = hyperparams.CLAIMS[3]
    row = HyperparamsExperiment()._retuned(claim, old, new, found, "")
    assert row.measured == pytest.approx(1.5)
    assert "best 4 in bf16 on 2 threads, 1 in bf16 on 1 thread" in row.conditions
    alike = {old: found[old], new: found[old]}
    assert "nothing to gain" in HyperparamsExperiment()._retuned(claim, old, new, alike, "").reason
    assert "no other hardware" in HyperparamsExperiment()._retuned(claim, old, old, found, "").reason


def test_without_vllm_every_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_environment, "installed", lambda: False)
    rows = list(HyperparamsExperiment().findings(BENCH))
    assert {row.verdict for row in rows} == {"not measurable here"}
    assert all("engines install vllm" in row.reason for row in rows)
