"""Intervals and tests on scores: Wilson, bootstrap, exact McNemar, sign flips. Numbers and eval files -> numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import read_eval_rows

if TYPE_CHECKING:
    pass

Z95 = 1.959963984540054
"""The normal distribution's 97.5% quantile."""
RESAMPLES = 10_000


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927; Newcombe 1998, method 3: no continuity correction).

    Unlike the textbook p ± 1.96 s it stays within [0, 1] and is not empty at 0 and n successes. Needs n >= 1.
    """
    assert 0 <= successes <= max(n, 1), (successes, n)
    assert n >= 1, n
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding must not leave the range, nor move the ends that are exactly 0 and 1.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 13), 10,000 resamples, seeded."""
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    low, high = np.percentile(resampled_counts(counts, seed=seed) @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def resampled_counts(counts: np.ndarray, *, seed: int) -> np.ndarray:
    """How often each distinct value comes up in each of 10,000 resamples: `[resamples, distinct]`.

    The same distribution as drawing n items with replacement, in memory that grows with the distinct values only.
    """
    return np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is exactly 0 or 1."""
    return all(score in (0.0, 1.0) for score in scores)


@dataclass(frozen=True, slots=True)
class Paired:
    """What training gained on the same prompts."""

    gain: float
    """Student score minus base score, in [-1, 1]."""
    ci95: tuple[float, float]
    """95% percentile bootstrap interval of `gain`, over pairs."""
    p_value: float
    """Two-sided; probability of so large a difference if neither model were better."""
    test: str
    """The test behind `p_value`: "exact McNemar" or "sign-flip permutation"."""


def paired(base: Path, student: Path) -> Paired:
    """Compare two eval files item by item.

    Where all grades are 0 or 1: the exact McNemar test, which is the binomial test of the discordant pairs against 1/2
    (McNemar 1947; Fagerland, Lydersen & Laake 2013, section 2.2). Otherwise a sign-flip permutation test of the mean
    difference, 10,000 flips, seeded (Phipson & Smyth 2010 for the + 1). Raises UserError where the files hold different
    prompts, or none.
    """
    pairs = _pairs(base, student)
    differences = pairs[:, 1] - pairs[:, 0]
    if is_binary(pairs.ravel().tolist()):
        test, p_value = "exact McNemar", mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
    else:
        test, p_value = "sign-flip permutation", sign_flip(differences)
    distinct, counts = np.unique(differences, return_counts=True)
    low, high = np.percentile(resampled_counts(counts, seed=0) @ distinct / len(pairs), [2.5, 97.5])
    return Paired(float(differences.mean()), (float(low), float(high)), p_value, test)


def retention_interval(teacher: Path, student: Path) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of retention (student score / teacher score), over pairs of two eval files.

    None where the teacher's score is 0 in so many resamples that an end of the interval is not a number.
    """
    distinct, counts = np.unique(_pairs(teacher, student), axis=0, return_counts=True)
    totals = resampled_counts(counts, seed=0) @ distinct
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(totals[:, 1] / totals[:, 0])
        low, high = np.percentile(ratios, [2.5, 97.5])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def mcnemar(losses: int, wins: int) -> float:
    """Two-sided exact p-value for `losses` and `wins` among the pairs that differ; 1 where none does."""
    n, fewer = losses + wins, min(losses, wins)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference under random signs of the pairs' differences."""
    rng, observed, extreme = np.random.default_rng(0), abs(differences.sum()), 0
    for _ in range(RESAMPLES // 100):
        signs = rng.integers(0, 2, (100, len(differences))) * 2 - 1
        # The margin keeps sums that are equal on paper equal in floating point.
        extreme += int((np.abs(signs @ differences) >= observed - 1e-9).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _pairs(first: Path, second: Path) -> np.ndarray:
    """Scores per prompt of two eval files, `[prompts, 2]`."""
    columns = [_score_per_prompt(path) for path in (first, second)]
    if columns[0].keys() != columns[1].keys():
        odd = sorted(columns[0].keys() ^ columns[1].keys())
        raise UserError(
            f"{first} and {second} hold different prompts ({len(odd)} stand in one only, first: {odd[0]}); "
            "evaluate both models on the same prompts"
        )
    if not columns[0]:
        raise UserError(f"{first} and {second} hold no items, so there is nothing to compare")
    return np.array([[column[name] for column in columns] for name in columns[0]])


def _score_per_prompt(path: Path) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in read_eval_rows(path):
        scores.setdefault(row.id, []).append(row.score)
    return {name: sum(values) / len(values) for name, values in scores.items()}
