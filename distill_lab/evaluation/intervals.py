"""Intervals that cover at small samples: proportions, bounded means, ratios of means and of timings. Values -> 95% interval.

    proportion(19, 20)                       Clopper-Pearson
    bounded_mean([0.5, 1.0, 0.75])           Gaffke; of 0/1 values it is Clopper-Pearson
    mean_ratio([(1, 1), (1, 0), (1, 1)])     Gaffke for a ratio: retention

Wilson's interval and the percentile bootstrap are not used: at n = 20 Wilson covers 0.89 near 0.03 and 0.97, and the
bootstrap 0.33 at 0.02. What these cover for scores of few values, `tests/evaluation/test_coverage.py` computes over all
outcomes: at n = 20 at least 0.957, for every distribution of right and wrong.

Gaffke's bound is the quantile of a Bayesian bootstrap with one more observation, at the end of the range that is worst for
the bound: N. Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Mathematical Methods of Statistics 14(4). For 0/1 values it is exactly Clopper and Pearson's, which is proven to
cover. For others coverage is a conjecture that has held in every simulation (E. Learned-Miller and P. Thomas 2019,
arXiv:1905.06208).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
"""Lower and upper end."""
TAIL = 0.025
"""Probability left out on each side of a 95% interval."""
DRAWS = 10_000
MAX_NUMBERS = 2_000_000
"""Random numbers held in memory at a time."""


def proportion(successes: int, n: int) -> Interval:
    """Clopper and Pearson's exact 95% interval of a proportion (Biometrika 1934); it covers at least 0.95. Needs n >= 1."""
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(1 - 2 * TAIL, method="exact")
    return float(found.low), float(found.high)


def bounded_mean(values: Sequence[float], *, low: float = 0.0, high: float = 1.0, draws: int = DRAWS) -> Interval:
    """Gaffke's 95% interval of the mean of values that lie in [low, high]; seeded. Needs one value."""
    assert len(values) > 0, "no values"
    assert low <= min(values), (low, min(values))
    assert max(values) <= high, (max(values), high)
    sums, extra = _weighted(np.column_stack([values, np.ones(len(values))]), draws)
    totals = sums[:, 1] + extra
    ends = (np.quantile((sums[:, 0] + bound * extra) / totals, at) for bound, at in ((low, TAIL), (high, 1 - TAIL)))
    lower, upper = map(float, ends)
    return lower, upper


def mean_ratio(pairs: ArrayLike, *, draws: int = DRAWS) -> Interval | None:
    """95% interval of mean(second) / mean(first) over pairs `[n, 2]` of values in [0, 1]; seeded.

    It holds the ratios r for which Gaffke's bounds on the mean of second - r first, which lies in [-r, 1], allow 0 (Fieller
    1954 makes a ratio a mean in this way). Solved for r, the further observation is (1, 0) for the lower end and (0, 1) for
    the upper one. None if all first values are 0: there is no upper end.
    """
    found = np.asarray(pairs, dtype=float)
    assert found.ndim == 2, found.shape
    assert found.min() >= 0.0, found.min()
    assert found.max() <= 1.0, found.max()
    if not found[:, 0].any():
        return None
    sums, extra = _weighted(found, draws)
    lower = np.quantile(sums[:, 1] / (sums[:, 0] + extra), TAIL)
    upper = np.quantile((sums[:, 1] + extra) / sums[:, 0], 1 - TAIL)
    return float(lower), float(upper)


def _weighted(rows: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the columns of `rows` `[n, columns]` under random weights `[draws, columns]`, and the weight of one more row.

    The weights are exponential; over their total they are Dirichlet(1, ..., 1). Equal rows share a gamma-distributed weight.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    generator = np.random.default_rng(0)
    at_once = max(1, MAX_NUMBERS // len(distinct))
    parts = [
        generator.standard_gamma(counts, size=(min(at_once, draws - start), len(distinct))) @ distinct
        for start in range(0, draws, at_once)
    ]
    return np.concatenate(parts), generator.standard_exponential(draws)


def log_normal(ratio: float, *parts: tuple[float, int]) -> Interval:
    """95% interval of a positive ratio from independent parts of the variance of its logarithm, each with its degrees of
    freedom: Student's t with the degrees of freedom of Satterthwaite (Biometrics Bulletin 1946)."""
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if variance == 0:
        return ratio, ratio
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(t.ppf(1 - TAIL, freedom)) * math.sqrt(variance)
    return ratio * math.exp(-half), ratio * math.exp(half)


def log_mean_variance(*factors: tuple[Sequence[float] | np.ndarray, int]) -> float:
    """Variance of the logarithm of a product of means over the same units, each to the power +1 or -1, by the jackknife.

    The units' values count as they are paired: what two factors have in common cancels. Needs two units and values above 0.
    The jackknife (Efron and Stein 1981, Annals of Statistics 9(3)) is not too small on average, as the delta method is: with
    8 prompts of unlike lengths that one's 95% intervals cover 0.92.
    """
    total = np.zeros(0)
    for values, power in factors:
        column = np.asarray(values, dtype=float)
        assert column.min() > 0, column.min()
        without_one = (column.sum() - column) / (len(column) - 1)
        total = power * np.log(without_one) + (total if total.size else 0.0)
    return float((len(total) - 1) * total.var())


def percentile_95(seconds: Sequence[float]) -> Interval:
    """95% interval of the 95th percentile of durations whose logarithms are normal; needs two of them.

    The exact limits for a normal percentile, from the noncentral t distribution (Hahn and Meeker 1991, Statistical
    Intervals, section 4.4). Without an assumed distribution, 20 durations give no upper limit: in 36% of the samples all of
    them are below the percentile.
    """
    from scipy.stats import nct, norm

    logs, n = np.log(seconds), len(seconds)
    mean, deviation, shift = logs.mean(), logs.std(ddof=1), float(norm.ppf(0.95)) * math.sqrt(n)
    ends = [math.exp(mean + float(nct.ppf(at, n - 1, shift)) / math.sqrt(n) * deviation) for at in (TAIL, 1 - TAIL)]
    return ends[0], ends[1]
