"""The normal model of First Finish Search: its closed forms, its limits, and a simulation that it predicts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.length_theory import LengthModel, fit
from analysis.search import Samples, first_finish

MODEL = LengthModel(p=0.6, right_mean=90, right_sd=20, wrong_mean=120, wrong_sd=20)


def chains(model: LengthModel, n: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < model.p
    means, sds = (
        np.where(correct, *pair) for pair in ((model.right_mean, model.wrong_mean), (model.right_sd, model.wrong_sd))
    )
    lengths = np.maximum(1, np.rint(rng.normal(means, sds))).astype(np.int64)
    return Samples(lengths, np.where(correct, np.argmax(correct), np.argmin(correct)), correct, np.ones(n, dtype=bool))


def test_log_odds_of_equal_spreads_are_linear() -> None:
    lengths = np.array([50.0, 105.0, 160.0])
    slope = (MODEL.wrong_mean - MODEL.right_mean) / MODEL.right_sd**2
    expected = math.log(0.6 / 0.4) + slope * (105 - lengths)
    found = MODEL.right_given(lengths)
    assert np.log(found / (1 - found)) == pytest.approx(expected)


def test_one_chain_has_the_share_and_more_have_more() -> None:
    accuracies = [MODEL.accuracy(n) for n in (1, 2, 4, 8, 16)]
    assert accuracies[0] == pytest.approx(0.6)
    assert accuracies == sorted(accuracies)
    tokens = [MODEL.sequential_tokens(n) for n in (1, 2, 4, 8, 16)]
    assert tokens[0] == pytest.approx(0.6 * 90 + 0.4 * 120)
    assert tokens == sorted(tokens, reverse=True)


def test_equal_lengths_give_no_gain_and_longer_right_chains_a_loss() -> None:
    same = replace(MODEL, wrong_mean=90)
    assert [same.accuracy(n) for n in (1, 4, 16)] == pytest.approx([0.6] * 3)
    assert not same.shorter_is_better
    longer = replace(MODEL, right_mean=120, wrong_mean=90)
    assert longer.accuracy(8) < 0.3
    assert not longer.shorter_is_better


def test_very_spread_wrong_chains_are_first_although_right_ones_are_shorter() -> None:
    spread = replace(MODEL, wrong_sd=80)
    assert spread.shorter_is_better
    assert spread.accuracy(16) < spread.accuracy(1)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_model_predicts_what_it_generates(n: int) -> None:
    samples = chains(MODEL, 3000)
    fitted = fit([samples])
    assert fitted is not None
    assert vars(fitted) == pytest.approx(vars(MODEL), rel=0.05)
    measured = first_finish(samples, n)
    assert fitted.accuracy(n) == pytest.approx(measured.accuracy, abs=0.02)
    assert fitted.sequential_tokens(n) == pytest.approx(measured.seq_tokens, rel=0.02)


def test_nothing_to_fit() -> None:
    samples = chains(MODEL, 50)
    assert fit([replace(samples, correct=np.ones(50, dtype=bool))]) is None
    assert fit([replace(samples, lengths=np.full(50, 7))]) is None
    assert fit([replace(samples, finished=np.zeros(50, dtype=bool))]) is None


def test_chains_that_were_cut_off_are_not_fitted() -> None:
    samples = chains(MODEL, 400)
    cut = samples.lengths > 100
    limited = replace(samples, lengths=np.minimum(samples.lengths, 100), finished=~cut)
    fitted = fit([limited])
    assert fitted is not None
    assert fitted.right_mean == pytest.approx(samples.lengths[~cut & samples.correct].mean())
