"""What the intervals cover at 20 prompts: computed over all outcomes where grades are 0 or 1, simulated where they are not.

`python -m tests.evaluation.test_coverage` also prints what Wilson's interval and the percentile bootstrap cover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from distill_lab.evaluation.intervals import Interval, bounded_mean, mean_ratio, proportion

N = 20
MIN_COVERAGE = 0.93
DRAWS = 1000
"""Fewer than in use, to be fast: the ends move by about 0.01."""
SIMULATED = 400


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


def tables(first: float, second: float) -> Iterator[np.ndarray]:
    """Chances of (both, only first, only second, neither), from as unlike as can be to as alike as can be."""
    least, most = max(0.0, first + second - 1), min(first, second)
    for part in (0.0, 0.5, 1.0):
        both = least + part * (most - least)
        yield np.clip([both, first - both, second - both, 1 - first - second + both], 0.0, 1.0)


def simulated_tables(first: float, second: float, number: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(11)
    for chances in tables(first, second):
        yield from generator.multinomial(N, chances / chances.sum(), size=number)


CORNERS = [
    (0.02, 0.02),
    (0.02, 0.98),
    (0.1, 0.05),
    (0.5, 0.5),
    (0.9, 0.8),
    (0.95, 0.98),
    (0.98, 0.95),
    (0.98, 0.98),
    (0.98, 0.5),
]


@pytest.mark.parametrize(("first", "second"), CORNERS)
def test_gain_and_retention_cover_for_0_and_1(first: float, second: float) -> None:
    pairs = np.array([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
    gains: dict[tuple[int, ...], bool] = {}
    ratios: dict[tuple[int, ...], bool] = {}
    found = [tuple(map(int, counts)) for counts in simulated_tables(first, second, SIMULATED)]
    for counts in set(found):
        rows = np.repeat(pairs, counts, axis=0)
        low, high = bounded_mean((rows[:, 1] - rows[:, 0]).tolist(), low=-1.0, high=1.0, draws=DRAWS)
        gains[counts] = low - 1e-9 <= second - first <= high + 1e-9
        interval = mean_ratio(rows, draws=DRAWS)
        # Without an interval nothing is claimed.
        ratios[counts] = interval is None or interval[0] - 1e-9 <= second / first <= interval[1] + 1e-9
    per_table = np.array([[gains[counts], ratios[counts]] for counts in found]).reshape(3, SIMULATED, 2).mean(axis=1)
    assert per_table.min() >= MIN_COVERAGE, per_table


def fractions(mean: float, samples: int, generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Scores that are means over samples, or any share in [0, 1] if there are no samples."""
    if samples:
        return generator.binomial(samples, mean, size) / samples
    return generator.beta(2 * mean, 2 * (1 - mean), size)


@pytest.mark.parametrize("samples", [0, 2, 4])
@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_means_of_fractions_cover(mean: float, samples: int) -> None:
    scores = fractions(mean, samples, np.random.default_rng(7), (SIMULATED, N))
    ends = np.array([bounded_mean(row, draws=DRAWS) for row in scores])
    covered = ((ends[:, 0] <= mean + 1e-9) & (mean - 1e-9 <= ends[:, 1])).mean()
    assert covered >= MIN_COVERAGE


@pytest.mark.parametrize("means", [(0.98, 0.95), (0.6, 0.5), (0.1, 0.02)])
def test_gain_and_retention_of_fractions_cover(means: tuple[float, float]) -> None:
    generator = np.random.default_rng(8)
    first, second = (fractions(mean, 4, generator, (SIMULATED, N)) for mean in means)
    gain = np.array([bounded_mean(row, low=-1.0, draws=DRAWS) for row in second - first])
    assert ((gain[:, 0] <= means[1] - means[0]) & (means[1] - means[0] <= gain[:, 1])).mean() >= MIN_COVERAGE
    found = [mean_ratio(np.stack(rows, axis=1), draws=DRAWS) for rows in zip(first, second, strict=True)]
    ratio = np.array([ends or (0.0, math.inf) for ends in found])
    truth = means[1] / means[0]
    assert ((ratio[:, 0] <= truth) & (truth <= ratio[:, 1])).mean() >= MIN_COVERAGE


def main() -> None:
    """Print the least coverage of each interval of a proportion."""
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


if __name__ == "__main__":
    main()
