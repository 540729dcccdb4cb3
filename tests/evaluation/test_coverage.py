"""What the intervals cover at 20 prompts: exactly, over all outcomes and for every distribution of scores on a fine grid, if
scores have few values; simulated if they have any value.

`python -m tests.evaluation.test_coverage` prints the least coverage of each, also of Wilson's interval and the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import binom, binomtest

from distill_lab.evaluation.intervals import Interval, bounded_mean, mean_ratio, proportion

pytestmark = pytest.mark.slow

N = 20
MIN_COVERAGE = 0.93
"""In simulations."""
EXACT = 0.95
"""Of what is computed over all outcomes."""
NEARLY = 1e-9
DRAWS = 1000
"""In simulations, fewer than in use, to be fast: the ends move by about 0.01."""
SIMULATED = 600
"""A share of 0.95 has a standard error of 0.009."""


def compositions(total: int, cells: int) -> np.ndarray:
    """Every way to put `total` into `cells` cells, `[ways, cells]`."""
    if cells == 1:
        return np.array([[total]])
    parts = [np.insert(compositions(total - first, cells - 1), 0, first, axis=1) for first in range(total + 1)]
    return np.concatenate(parts)


def chances(outcomes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Multinomial probabilities of outcomes `[ways, cells]` under shares `[tables, cells]`, `[ways, tables]`."""
    ways = gammaln(N + 1) - gammaln(outcomes + 1).sum(axis=1)
    logs = np.log(np.maximum(shares, 1e-300))
    return np.exp(ways[:, None] + outcomes @ logs.T)


def coverage(outcomes: np.ndarray, ends: np.ndarray, shares: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """How often ends `[ways, 2]` hold the truth of each of the shares, exactly."""
    held = (ends[:, :1] <= truths + NEARLY) & (truths - NEARLY <= ends[:, 1:])
    return (chances(outcomes, shares) * held).sum(axis=0)


def covers(interval: Callable[[int], Interval], share: float) -> float:
    """How often the interval of a binomial count covers its share, exactly."""
    return sum(
        float(binom.pmf(count, N, share)) for count in range(N + 1) if (ends := interval(count))[0] <= share <= ends[1]
    )


def test_a_proportion_covers_everywhere() -> None:
    ends = [proportion(count, N) for count in range(N + 1)]
    shares = np.linspace(0.02, 0.98, 481)
    assert min(covers(ends.__getitem__, float(share)) for share in shares) >= 0.95


def test_wilsons_interval_would_not() -> None:
    ends = [binomtest(count, N).proportion_ci(method="wilson") for count in range(N + 1)]
    assert covers(lambda count: (ends[count].low, ends[count].high), 0.0278) < 0.9


@cache
def least_coverage_of_three_values(low: float) -> tuple[float, np.ndarray]:
    """Of a mean of values `low`, the middle, and 1, over all their distributions: the least coverage, and where.

    low = -1: the gain of models whose answers are right or wrong. low = 0: scores of two samples.
    """
    values = np.array([low, (low + 1) / 2, 1.0])
    outcomes = compositions(N, 3)
    ends = np.array([bounded_mean(np.repeat(values, counts).tolist(), low=low, high=1.0) for counts in outcomes])
    shares = compositions(100, 3) / 100
    truths = shares @ values
    inside = (truths >= low + 0.02 * (1 - low)) & (truths <= 1 - 0.02 * (1 - low))
    found = coverage(outcomes, ends, shares[inside], truths[inside])
    return float(found.min()), shares[inside][found.argmin()]


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_a_gain_and_a_mean_of_halves_cover_for_every_distribution(low: float) -> None:
    least, where = least_coverage_of_three_values(low)
    assert least >= EXACT, where


@cache
def coverages_of_retention() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over all distributions of (both right, only the teacher, only the student, neither): their shares, how often the
    interval holds the truth or there is none, and how often there is none."""
    pairs = np.array([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
    outcomes = compositions(N, 4)
    found = [mean_ratio(np.repeat(pairs, counts, axis=0)) for counts in outcomes]
    # Without an interval nothing is claimed.
    ends = np.array([each or (0.0, math.inf) for each in found])
    none = np.array([each is None for each in found])
    shares = compositions(25, 4) / 25
    first, second = shares[:, 0] + shares[:, 1], shares[:, 0] + shares[:, 2]
    inside = (first >= 0.02) & (first <= 0.98) & (second >= 0.02) & (second <= 0.98)
    shares, truths = shares[inside], (second / np.maximum(first, 1e-12))[inside]
    return shares, coverage(outcomes, ends, shares, truths), (chances(outcomes, shares) * none[:, None]).sum(axis=0)


def test_retention_covers_for_every_table_of_right_and_wrong() -> None:
    shares, found, none = coverages_of_retention()
    assert found.min() >= EXACT, shares[found.argmin()]
    # It also covers among the runs that have an interval.
    given = (found - none) / (1 - none)
    assert given.min() >= EXACT, shares[given.argmin()]


def fractions(mean: float, samples: int, generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Scores that are means over samples, or any share in [0, 1] if there are no samples."""
    if samples:
        return generator.binomial(samples, mean, size) / samples
    return generator.beta(2 * mean, 2 * (1 - mean), size)


@pytest.mark.parametrize("samples", [0, 4])
@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_means_of_fractions_cover(mean: float, samples: int) -> None:
    scores = fractions(mean, samples, np.random.default_rng(7), (SIMULATED, N))
    ends = np.array([bounded_mean(row, draws=DRAWS) for row in scores])
    covered = ((ends[:, 0] <= mean + NEARLY) & (mean - NEARLY <= ends[:, 1])).mean()
    assert covered >= MIN_COVERAGE


@pytest.mark.parametrize("alike", [0.0, 0.7])
@pytest.mark.parametrize("means", [(0.98, 0.95), (0.98, 0.1), (0.6, 0.5), (0.1, 0.02)])
def test_gain_and_retention_of_fractions_cover(means: tuple[float, float], alike: float) -> None:
    """alike: the share of prompts that are easy or hard for both models, which makes their scores go together."""
    generator = np.random.default_rng(8)
    first, second = (fractions(mean, 4, generator, (SIMULATED, N)) for mean in means)
    together = generator.random((SIMULATED, N)) < alike
    luck = generator.random((SIMULATED, N))
    for scores, mean in ((first, means[0]), (second, means[1])):
        scores[together] = (luck < mean)[together]
    gain = np.array([bounded_mean(row, low=-1.0, draws=DRAWS) for row in second - first])
    assert ((gain[:, 0] <= means[1] - means[0]) & (means[1] - means[0] <= gain[:, 1])).mean() >= MIN_COVERAGE
    found = [mean_ratio(np.stack(rows, axis=1), draws=DRAWS) for rows in zip(first, second, strict=True)]
    ratio = np.array([ends or (0.0, math.inf) for ends in found])
    truth = means[1] / means[0]
    assert ((ratio[:, 0] <= truth) & (truth <= ratio[:, 1])).mean() >= MIN_COVERAGE


def main() -> None:
    """Print the least coverage of each interval."""
    generator = np.random.default_rng(0)
    rows = {
        "Clopper-Pearson": [proportion(count, N) for count in range(N + 1)],
        "Wilson": [binomtest(count, N).proportion_ci(method="wilson") for count in range(N + 1)],
        "percentile bootstrap": [
            tuple(np.quantile(generator.binomial(N, count / N, 10_000) / N, [0.025, 0.975])) for count in range(N + 1)
        ],
    }
    for name, ends in rows.items():
        found = {float(share): covers(ends.__getitem__, float(share)) for share in np.linspace(0.02, 0.98, 961)}
        worst = min(found, key=found.__getitem__)
        print(f"{name}: least coverage {found[worst]:.3f}, at {worst:.3f}")
    for name, low in (("gain of right and wrong", -1.0), ("mean of 0, 1/2 and 1", 0.0)):
        least, where = least_coverage_of_three_values(low)
        print(f"{name}: least coverage {least:.4f}, at {where}")
    shares, held, none = coverages_of_retention()
    print(f"retention: least coverage {held.min():.4f}, at {shares[held.argmin()]}")
    for share in (0.02, 0.05, 0.1, 0.2):
        often = shares[:, 0] + shares[:, 1] >= share
        given = (held - none)[often] / (1 - none[often])
        print(
            f"  with an interval, teacher right at least {share}: {given.min():.4f}, at {shares[often][given.argmin()]}"
        )


if __name__ == "__main__":
    main()
