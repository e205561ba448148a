"""SqueezeLLM's ledger: figures from perplexities, texts that share nothing, rows in the order of their bits."""

from __future__ import annotations

import math

import pytest
import torch

from suite.errors import UnitError
from suite.experiments import random_llama
from suite.experiments import squeezellm as ledger
from suite.experiments.base import Workbench
from suite.experiments.texts import prose
from suite.methods.weights import calibration, packed
from suite.methods.weights.base import mean_nats
from suite.methods.weights.rtn import RTN
from suite.methods.weights.squeezellm import SqueezeLLM
from suite.models.config import ModelConfig
from suite.models.fused import layer_stack
from suite.models.loaders import load_model
from tests.methods.support import tiny_model

BENCH = Workbench(1, lambda text: None)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    monkeypatch.setattr(ledger, "ITEMS", 8)
    monkeypatch.setattr(ledger, "LAB_TEXTS", 8)
    monkeypatch.setattr(ledger, "RESAMPLES", 50)
    monkeypatch.setattr(calibration, "SEQUENCES", 4)


def test_calibration_on_what_is_evaluated_is_refused():
    model = tiny_model()
    windows = prose(model, 400).view(2, 200)
    with pytest.raises(UnitError, match="in the calibration text and in the evaluated one"):
        ledger.require_disjoint(windows[:1], windows)
    with pytest.raises(UnitError, match="in the calibration text"):
        ledger.require_disjoint(windows[:1, 50:70], windows[1:], windows[:1])
    ledger.require_disjoint(windows[:1], torch.arange(400).view(2, 200))


def test_the_table_is_sorted_by_average_bits():
    nats = {"16 bit": [1.0], "a": [2.0], "b": [3.0]}
    told = ledger.table(nats, {"16 bit": 16.0, "a": 4.3, "b": 3.2})
    assert told == "b (3.20 bits) 20.09, a (4.30 bits) 7.389, 16 bit (16.00 bits) 2.718"


def test_figures_are_ratios_of_gaps_with_windows_drawn_together():
    log = math.log
    nats = {"16 bit": [log(10.0)] * 6, "rtn": [log(50.0)] * 6, "ours": [log(20.0)] * 6}
    closed, less = (f("ours", "rtn") for f in (ledger.closed, ledger.times_less))
    assert ledger.estimated(nats, closed).value == pytest.approx(0.75)
    assert ledger.estimated(nats, less).value == pytest.approx(4.0)
    hard = {name: [v + 2 * (i % 2) for i, v in enumerate(row)] for name, row in nats.items()}
    paired = ledger.estimated(hard, closed)
    assert paired.low == pytest.approx(0.75)  # a hard window is as hard for all
    assert paired.high == pytest.approx(0.75)
    assert ledger.estimated({**nats, "ours": nats["16 bit"]}, less) is None


def test_the_lab_row_measures_a_model_that_was_never_quantised():
    claim = SqueezeLLM.card.claims[1]
    row = ledger.SqueezeLLMExperiment()._lab(BENCH, load_model("lab-long", "fp32"), claim)
    assert row.claim.startswith("gap-3-unquantised: ")
    assert "never were quantised" in row.conditions
    assert set(row.details["nats"]) == {"16 bit", "rtn 3", "full 3"}
    assert all(len(values) == 8 for values in row.details["nats"].values())


def test_the_large_row_races_random_weights_and_leaves_the_decoder_its_own(monkeypatch):
    monkeypatch.setattr(random_llama, "SHAPE", ModelConfig("llama", 2, 256, 512, 4, 2, 64, 50, 128))
    monkeypatch.setattr(ledger, "CONTEXT", 8)
    monkeypatch.setattr(ledger, "LARGE_TOKENS", 3)
    row = ledger.SqueezeLLMExperiment()._large(BENCH, SqueezeLLM.card.claims[-1])
    assert row.claim.startswith("decode-4-large: ")
    assert "random weights" in row.conditions
    assert "timing only" in row.conditions
    assert row.details["bytes"]["3 bits"] < row.details["bytes"]["4 bits"] < row.details["bytes"]["dense"]
    decoder = random_llama.random_decoder()
    own, codes = layer_stack(decoder), random_llama.random_codes(decoder, 3)
    assert len(random_llama.decode(decoder, codes, [1, 2, 3], 2)) == 3
    assert layer_stack(decoder).layers[0].down is own.layers[0].down


def test_settings_are_measured_attached_and_the_model_is_as_before():
    model = tiny_model()
    windows = torch.randint(0, 128, (2, 40))
    settings = {"rtn 3": (RTN, {"bits": 3}), "rtn 4": (RTN, {"bits": 4})}
    nats, bits = ledger.measure(BENCH, model, settings, lambda: mean_nats(model, windows))
    assert bits["rtn 3"] < bits["rtn 4"] < bits["16 bit"]
    assert nats["rtn 3"] != nats["rtn 4"] != nats["16 bit"] == mean_nats(model, windows)
    assert not any(isinstance(x, float) and math.isnan(x) for row in nats.values() for x in row)


def test_the_ablation_is_kept_apart_from_the_method():
    kinds = (SqueezeLLM(), ledger.Unweighted())
    assert len({packed.place(kind.card.slug, {}) for kind in kinds}) == 2
    fisher = torch.rand(3, 5)
    assert (kinds[1].importance(fisher, fisher) == 1).all()
    assert kinds[0].importance(fisher, fisher) is fisher
