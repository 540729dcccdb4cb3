"""Intervals against closed forms, scipy and each other: proportions, means, ratios, timings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, t

from distill_lab.evaluation import intervals
from distill_lab.evaluation.intervals import (
    bounded_mean,
    log_mean_variance,
    log_normal,
    mean_ratio,
    percentile_95,
    proportion,
)


def test_proportions_are_clopper_and_pearsons() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 5.
    for successes, n, low, high in ((81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684)):
        assert proportion(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert proportion(20, 20)[1] == 1.0
    assert proportion(1, 1) == pytest.approx((0.025, 1.0))


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (7, 20), (20, 20), (450, 500)])
def test_gaffkes_interval_of_0_and_1_is_clopper_and_pearsons(successes: int, n: int) -> None:
    values = [1.0] * successes + [0.0] * (n - successes)
    assert bounded_mean(values) == pytest.approx(proportion(successes, n), abs=0.006)


def test_a_mean_is_scaled_with_its_range() -> None:
    values = [0.1, 0.4, 0.4, 0.9]
    low, high = bounded_mean(values)
    assert bounded_mean([2 * value - 1 for value in values], low=-1.0, high=1.0) == pytest.approx(
        (2 * low - 1, 2 * high - 1)
    )
    mirrored = bounded_mean([1 - value for value in values])
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=0.02)
    for outside in ([-0.1], [1.1]):
        with pytest.raises(AssertionError):
            bounded_mean(outside)
    with pytest.raises(AssertionError):
        bounded_mean([])


def test_many_values_have_the_normal_interval() -> None:
    values = np.random.default_rng(3).beta(10, 30, 1000)
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    low, high = bounded_mean(values.tolist())
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2 / len(values))
    assert bounded_mean(values.tolist()) == (low, high)


def test_memory_is_bounded_and_does_not_change_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(50).tolist()
    whole = bounded_mean(values)
    monkeypatch.setattr(intervals, "MAX_NUMBERS", 7 * 50)
    assert bounded_mean(values) == pytest.approx(whole, abs=0.01)
    assert bounded_mean(values, draws=100) == pytest.approx(whole, abs=0.1)


def test_a_ratio_of_equal_scores_is_1_and_of_nothing_is_none() -> None:
    interval = mean_ratio([(1, 1)] * 20)
    assert interval is not None
    # Only one more observation moves it: 1 - w and 1 / (1 - w), where w has the distribution beta(1, 20).
    least = 1 - float(beta.ppf(0.975, 1, 20))
    assert interval == pytest.approx((least, 1 / least), abs=0.01)
    assert mean_ratio([(0, 1), (0, 0)]) is None
    with pytest.raises(AssertionError):
        mean_ratio([(1, 2)])
    with pytest.raises(AssertionError):
        mean_ratio([(-1, 1)])


def test_a_ratio_is_bounded_where_the_difference_allows_0() -> None:
    pairs = np.array([(1.0, 0.8), (0.9, 0.9), (0.4, 0.1), (1.0, 1.0), (0.7, 0.5)] * 6)
    interval = mean_ratio(pairs, draws=200_000)
    assert interval is not None
    for end, place in zip(interval, (0, 1), strict=True):
        differences = pairs[:, 1] - end * pairs[:, 0]
        bounds = bounded_mean(differences.tolist(), low=-end, high=1.0, draws=200_000)
        assert bounds[place] == pytest.approx(0.0, abs=0.002)


def test_the_interval_of_a_ratio_of_timings_is_students() -> None:
    half = float(t.ppf(0.975, 4)) * 0.1
    assert log_normal(2.0, (0.01, 4)) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))
    assert log_normal(2.0, (0.0, 4), (0.0, 9)) == (2.0, 2.0)
    # Two equal parts with the same degrees of freedom have twice as many together.
    half = float(t.ppf(0.975, 8)) * math.sqrt(0.02)
    assert log_normal(1.0, (0.01, 4), (0.01, 4)) == pytest.approx((math.exp(-half), math.exp(half)))


def test_the_variance_of_a_log_ratio_by_hand() -> None:
    # Without the first unit the ratio is 2/3, without the second 1/1: half of log(3/2) to both sides of their middle.
    half = math.log(3 / 2) / 2
    assert log_mean_variance(([1.0, 2.0], 1), ([1.0, 3.0], -1)) == pytest.approx((2 - 1) / 2 * 2 * half**2)
    assert log_mean_variance(([1.0, 2.0], 1), ([2.0, 4.0], -1)) == pytest.approx(0.0)
    # Of many units it is the delta method's.
    values = np.random.default_rng(6).lognormal(0, 0.5, (2, 4000))
    influence = values[0] / values[0].mean() - values[1] / values[1].mean()
    assert log_mean_variance((values[0], 1), (values[1], -1)) == pytest.approx(influence.var() / 4000, rel=0.01)


def test_the_95th_percentile_of_durations_covers() -> None:
    generator, truth = np.random.default_rng(5), math.exp(0.1 * 1.6448536)
    ends = np.array([percentile_95(generator.lognormal(0.0, 0.1, 20).tolist()) for _ in range(1000)])
    covered = float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
    assert 0.93 <= covered <= 0.97
    assert percentile_95([2.0, 2.0]) == pytest.approx((2.0, 2.0))
