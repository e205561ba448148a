"""The survey's table: recounted from the raw samples, wrong answers included, every row with the units behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.comparison import compare
from analysis.hardware import Hardware
from analysis.lrm_printed import coverage, printed_rows
from analysis.lrm_survey import survey_rows, wilson
from analysis.lrm_work import Work
from analysis.taxonomy import taxonomy, training_of
from suite.harness.block import sample as harness_sample
from suite.harness.block import shortened
from suite.harness.contender import Contender
from suite.harness.counting import CountingPass
from suite.harness.measurement import UnitResult
from suite.harness.meter import RequestMeter
from suite.registry import METHODS
from suite.spec import WorkloadSpec
from tests.analysis.factory import longbench_units, sample, unit
from tests.methods.support import CONFIG, tiny_model
from workloads.schema import Request, SearchFigures


def _units(kept: float = 100.0) -> list[UnitResult]:
    """Dense: 4 tokens where right, 10 where wrong. The other method: 2 tokens each."""
    dense = [sample("a", score=100.0), sample("b", score=0.0, gaps=[10.0] * 9)]
    short = [sample("a", score=kept, gaps=[10.0]), sample("b", score=0.0, gaps=[10.0])]
    return [unit("dense", dense, workload="gsm8k"), unit("longheads", short, workload="gsm8k")]


def test_tokens_of_wrong_answers_count():
    units = _units()
    dense, other = survey_rows(compare(units), units)
    assert (dense.mean_tokens, dense.median_tokens, other.mean_tokens) == (7.0, 7.0, 2.0)
    assert (dense.accuracy.value, dense.accuracy.n) == (50.0, 2)
    assert other.token_ratio == 3.5
    assert other.latency_ratio == pytest.approx(160 / 110)
    assert dense.token_ratio is None


def test_no_gain_without_equal_accuracy():
    units = _units(kept=0.0)
    other = survey_rows(compare(units), units)[1]
    assert (other.no_gain, other.token_ratio, other.flop_ratio, other.latency_ratio) == (True, None, None, None)


def test_chains_thrown_away_cost_tokens():
    """A search is not cheap because its answer is short: total and critical path stand beside the visible tokens."""
    search = SearchFigures(generated=40, sequential=10, prompt_logical=0, prefilled=1000, verifier_tokens=5, samples=4)
    dense = unit("dense", [sample("a", score=100.0, gaps=[10.0] * 9)], workload="gsm8k")
    best = sample("a", score=100.0, gaps=[10.0] * 9).model_copy(update={"search": search})
    units = [dense, unit("best_of_n", [best], workload="gsm8k")]
    row = next(row for row in survey_rows(compare(units), units) if row.method == "best_of_n")
    assert (row.mean_tokens, row.generated_tokens, row.sequential_tokens, row.hidden_steps) == (10, 40, 10, 35)
    assert row.token_ratio == 0.25
    assert row.flop_ratio < 1


def test_settings_are_rows_of_their_own_and_meet_their_own_baseline():
    """Zero-shot answers are not averaged with few-shot ones, and not compared with them."""
    units = []
    for shots, gaps in ((0, 9), (8, 4)):
        spec = WorkloadSpec(name="gsm8k", task="test", limit=4, options={"shots": shots})
        for one, count in (("dense", gaps), ("longheads", 1)):
            made = unit(one, [sample("a", gaps=[10.0] * count)], workload="gsm8k", block=f"shots {shots}")
            key = made.spec.model_copy(update={"workload": spec})
            units.append(made.model_copy(update={"spec": key, "key": f"{one} {shots}"}))
    rows = survey_rows(compare(units), units)
    assert [(row.setting, row.keys, row.token_ratio) for row in rows] == [
        ("shots=0", ("dense 0",), None),
        ("shots=8", ("dense 8",), None),
        ("shots=0", ("longheads 0",), 5.0),
        ("shots=8", ("longheads 8",), 2.5),
    ]


def test_an_answer_takes_the_roofline_time_of_its_phases():
    """Prefill at the peak, decoding at the bandwidth: the sum of both, not the larger of two sums."""
    device = Hardware(name="d", title="d", source="M", bf16_tflops=1.0, memory_gb_per_s=100.0)
    work = Work(prefill_flops=2e9, prefill_bytes=1e6, decode_flops=1e6, decode_bytes=3e8)
    assert work.milliseconds(device) == pytest.approx(2.0 + 3.0)
    assert work.milliseconds(device.model_copy(update={"bf16_tflops": None})) is None


def test_every_row_names_its_units_and_leaf():
    units = _units()
    rows = survey_rows(compare(units), units)
    assert [row.keys for row in rows] == [(one.key,) for one in units]
    assert (rows[1].leaf, rows[1].training) == ("further_improvement.new_architecture", "none")


def test_what_the_survey_prints_is_apart_and_has_a_source():
    """Trap: literature numbers as if measured. A printed row has no unit, and no measured row is made of one."""
    assert all("2503.23077" in row.source and not hasattr(row, "keys") for row in printed_rows())
    assert {row.leaf for row in printed_rows()} <= set(taxonomy().leaves)
    assert not {"FlashThink", "TokenSkip"} & {row.method for row in printed_rows()}  # no token counts, says the card


def test_training_is_the_cards_and_not_the_surveys():
    assert [training_of(name) for name in ("asc", "chunkllm", "squeezellm", "parathinker")] == [
        "none", "component", "calibration", "full",
    ]  # fmt: skip


def test_coverage_counts_leaves_with_a_method_that_runs():
    leaves = coverage()
    assert "longheads" in leaves["further_improvement.new_architecture"]
    assert leaves["implicit_latent_cot.distillation"] == ()
    assert not {"outside", "analysis"} & leaves.keys()


def test_flops_are_those_of_whole_answers():
    """The counting pass stops after a few steps; an answer is as long as it is."""
    units = _units()
    prefill, decode = (count.flops / count.tokens for count in units[0].counts)
    assert (units[0].counts[0].tokens, units[0].counts[1].tokens) == (1000, 3)
    assert survey_rows(compare(units), units)[0].work.flops == pytest.approx(1000 * prefill + 6 * decode)


@pytest.mark.parametrize("name", ["dense", "ngram", "best_of_n"])
def test_no_forward_pass_is_hidden(name):
    """Trap: speculative work left out. FLOPs are 2 P x (all tokens fed, drafted ones too) within 5 %."""
    model = tiny_model(replace(CONFIG, hidden=256, intermediate=1024, heads=4, kv_heads=4, head_dim=64))
    contender = Contender(METHODS.load(name)(), METHODS.load(name).Config(), model)
    contender.prepare()
    asked = Request(id="q0", task="a", prompt="ab" * 12, metric="none", max_new_tokens=40)
    with CountingPass(model.config.kv_bytes_per_token(4), model.config.attention_flops_per_pair) as counting:
        contender.complete([shortened(asked, 8)], counting.meter)
    meter = RequestMeter()
    (done,) = contender.complete([asked], meter)
    answer = harness_sample(asked, done, meter, 0, 0).model_copy(update={"score": 100.0})
    one = unit(name, [answer], workload="gsm8k", counts=counting.phases(None))
    parameters = sum(p.numel() for layer in model.decoder.layers for p in layer.parameters() if p.dim() == 2)
    fed = {
        "dense": lambda: len(done.token_ids) - 1,
        "ngram": lambda: done.drafts.rounds + done.drafts.drafted,
        "best_of_n": lambda: done.search.generated - done.search.samples,
    }[name]()
    assert name == "dense" or fed > len(done.token_ids)
    assert survey_rows(compare([one]), [one])[0].work.flops == pytest.approx(2 * parameters * (24 + fed), rel=0.05)


def test_only_reasoning_workloads_are_in_the_table():
    units = longbench_units()
    assert survey_rows(compare(units), units) == ()


def test_wilson_interval():
    """Newcombe 1998, table I: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
