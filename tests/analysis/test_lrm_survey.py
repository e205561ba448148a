"""The survey's table: recounted from the raw samples, wrong answers included, every row with the units behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.comparison import compare
from analysis.lrm_survey import survey_rows, wilson
from suite.harness.block import sample as harness_sample
from suite.harness.block import shortened
from suite.harness.contender import Contender
from suite.harness.counting import CountingPass
from suite.harness.measurement import UnitResult
from suite.harness.meter import RequestMeter
from suite.registry import METHODS
from tests.analysis.factory import longbench_units, sample, unit
from tests.methods.support import CONFIG, tiny_model
from workloads.schema import Request


def _units(kept: float = 100.0) -> list[UnitResult]:
    """Dense: 4 tokens where right, 10 where wrong. The other method: 2 tokens each."""
    dense = [sample("a", score=100.0), sample("b", score=0.0, gaps=[10.0] * 9)]
    short = [sample("a", score=kept, gaps=[10.0]), sample("b", score=0.0, gaps=[10.0])]
    return [unit("dense", dense, workload="gsm8k"), unit("longheads", short, workload="gsm8k")]


def test_tokens_of_wrong_answers_count():
    units = _units()
    dense, other = survey_rows(compare(units), units)
    assert (dense.mean_tokens, dense.median_tokens, other.mean_tokens) == (7.0, 7.0, 2.0)
    assert (dense.accuracy, dense.answers) == (50.0, 2)
    assert other.token_ratio == 3.5
    assert dense.token_ratio is None


def test_no_gain_without_equal_accuracy():
    units = _units(kept=0.0)
    assert survey_rows(compare(units), units)[1].token_ratio is None


def test_every_row_names_its_units_and_leaf():
    units = _units()
    rows = survey_rows(compare(units), units)
    assert [row.keys for row in rows] == [(one.key,) for one in units]
    assert rows[1].leaf == "further_improvement.new_architecture"


def test_flops_are_those_of_whole_answers():
    """The counting pass stops after a few steps; an answer is as long as it is."""
    units = _units()
    prefill, decode = (count.flops / count.tokens for count in units[0].counts)
    assert (units[0].counts[0].tokens, units[0].counts[1].tokens) == (1000, 3)
    assert survey_rows(compare(units), units)[0].flops == pytest.approx(1000 * prefill + 6 * decode)


@pytest.mark.parametrize("name", ["dense", "ngram"])
def test_no_forward_pass_is_hidden(name):
    """Trap: speculative work left out. FLOPs are 2 P x (all tokens fed, drafted ones too) within 5 %."""
    model = tiny_model(replace(CONFIG, hidden=256, intermediate=1024, heads=4, kv_heads=4, head_dim=64))
    contender = Contender(METHODS.load(name)(), METHODS.load(name).Config(), model)
    asked = Request(id="q0", task="a", prompt="ab" * 12, metric="none", max_new_tokens=40)
    with CountingPass(model.config.kv_bytes_per_token(4), model.config.attention_flops_per_pair) as counting:
        contender.complete([shortened(asked, 8)], counting.meter)
    meter = RequestMeter()
    (done,) = contender.complete([asked], meter)
    answer = harness_sample(asked, done, meter, 0, 0).model_copy(update={"score": 100.0})
    one = unit(name, [answer], workload="gsm8k", counts=counting.phases(None))
    parameters = sum(p.numel() for layer in model.decoder.layers for p in layer.parameters() if p.dim() == 2)
    fed = len(done.token_ids) - 1 if name == "dense" else done.drafts.rounds + done.drafts.drafted
    assert name == "dense" or done.drafts.drafted > 0
    assert survey_rows(compare([one]), [one])[0].flops == pytest.approx(2 * parameters * (24 + fed), rel=0.05)


def test_only_reasoning_workloads_are_in_the_table():
    units = longbench_units()
    assert survey_rows(compare(units), units) == ()


def test_wilson_interval():
    """Newcombe 1998, table I: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
