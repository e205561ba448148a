"""Medians, intervals, paired ratios; what happens with one sample or none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import statistics
from analysis.statistics import PairKey


def keyed(values: list[float], offset: int = 0) -> dict[PairKey, float]:
    return {(f"q{index + offset}", 0): value for index, value in enumerate(values)}


def test_nothing_measured_is_none() -> None:
    assert statistics.median([]) is None
    assert statistics.mean([]) is None
    assert statistics.percentile([], 99) is None
    assert statistics.mean_estimate([]) is None
    assert statistics.paired_ratio({}, {}) is None


def test_percentiles_interpolate_as_vllm_does() -> None:
    assert statistics.percentile([0.0, 10.0], 99) == pytest.approx(9.9)
    assert statistics.median([1.0, 2.0, 10.0]) == 2.0


def test_one_sample_has_no_error_and_no_interval() -> None:
    assert statistics.standard_error([3.0]) is None
    estimate = statistics.mean_estimate([3.0])
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high, estimate.note) == (3.0, None, None, "one sample, no interval")


def test_standard_error_divides_by_n_minus_one() -> None:
    assert statistics.standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))


def test_a_constant_ratio_is_found_whatever_the_lengths() -> None:
    """The requests differ by a factor of ten; the pairs do not."""
    baseline = keyed([10.0, 20.0, 50.0, 100.0])
    estimate = statistics.paired_ratio(baseline, {key: value / 2 for key, value in baseline.items()})
    assert estimate is not None
    assert estimate.value == pytest.approx(2.0)
    assert estimate.low == pytest.approx(2.0)
    assert estimate.note == "all samples equal"


def test_only_shared_pairs_count() -> None:
    estimate = statistics.paired_ratio(keyed([4.0, 4.0, 4.0]), keyed([1.0, 2.0], offset=1))
    assert estimate is not None
    assert estimate.n == 2
    assert estimate.value == pytest.approx(math.sqrt(4.0 / 1.0 * 4.0 / 2.0))


def test_a_time_of_zero_forms_no_pair() -> None:
    estimate = statistics.paired_ratio(keyed([4.0, 4.0]), keyed([2.0, 0.0]))
    assert estimate is not None
    assert estimate.n == 1


def test_pairing_takes_the_spread_of_requests_out_of_the_interval() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(10, 1000, 40)
    noise = rng.lognormal(0, 0.02, 40)
    estimate = statistics.paired_ratio(keyed(list(base)), keyed(list(base * noise / 1.5)))
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 1.5 < estimate.high
    assert estimate.high - estimate.low < 0.05


def test_intervals_are_deterministic() -> None:
    values = list(np.random.default_rng(5).normal(size=40))
    assert statistics.mean_estimate(values) == statistics.mean_estimate(values)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        estimate = statistics.mean_estimate(list(rng.normal(5.0, 1.0, 25)))
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 5.0 <= estimate.high
    assert 85 <= hits <= 99


def test_few_samples_are_said_so() -> None:
    estimate = statistics.mean_estimate([1.0, 2.0, 4.0])
    assert estimate is not None
    assert estimate.note == "only 3 samples"


def test_outliers_are_flagged_by_distance_from_the_median() -> None:
    values = [10.0, 10.1, 9.9, 10.2, 9.8, 30.0]
    assert statistics.outliers(values) == [False] * 5 + [True]
    assert statistics.outliers([1.0, 50.0]) == [False, False]
    assert statistics.outliers([1.0, 1.0, 1.0, 9.0]) == [False] * 4


def test_half_and_double_cancel_out() -> None:
    estimate = statistics.paired_ratio(keyed([1.0, 4.0]), keyed([2.0, 2.0]))
    assert estimate is not None
    assert estimate.value == pytest.approx(1.0)


def test_variation_of_one_sample_is_zero() -> None:
    assert statistics.coefficient_of_variation([4.0]) == 0.0
    assert statistics.coefficient_of_variation([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)


def test_ratio_of_means_of_independent_samples() -> None:
    rng = np.random.default_rng(2)
    estimate = statistics.ratio_of_means(list(rng.normal(20, 1, 30)), list(rng.normal(10, 1, 50)))
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 2.0 < estimate.high
    assert estimate.high - estimate.low < 0.2
    assert estimate.n == 30


def test_ratio_of_means_without_evidence() -> None:
    assert statistics.ratio_of_means([], [1.0]) is None
    assert statistics.ratio_of_means([1.0], [0.0, 0.0]) is None
    alone = statistics.ratio_of_means([4.0], [2.0, 2.0])
    assert alone is not None
    assert (alone.value, alone.low, alone.note) == (2.0, None, "one sample, no interval")


def test_ratio_of_means_has_no_upper_bound_where_a_resample_below_is_all_zeros() -> None:
    estimate = statistics.ratio_of_means([1.0] * 12, [1.0] + [0.0] * 11)
    assert estimate is not None
    assert (estimate.value, estimate.high) == (12.0, None)
    assert estimate.low is not None
    assert 1 < estimate.low < 12
    assert "no upper bound" in estimate.note


def test_nothing_over_nothing_widens_the_interval_to_both_sides() -> None:
    rare = [1.0] + [0.0] * 5
    estimate = statistics.ratio_of_means(rare, rare)
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 0.0, None)
