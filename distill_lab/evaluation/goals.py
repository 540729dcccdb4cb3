"""Whether a goal is reached: a figure with its interval and a goal -> met, missed or open, and what would settle it.

    judge(Figure(0.93, (0.86, 0.98)), 0.9, unit="share", n=100, counted="test prompts").status     "open"

A goal is met if the whole interval reaches it, missed if no part of the interval does, and open if the goal lies inside the
interval: then the figure may be on either side of it. Without an interval a goal is open too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from distill_lab.evaluation.intervals import Interval

Status = Literal["met", "missed", "open"]
Unit = Literal["share", "ratio", "seconds"]
Z_SIDE = 1.959963984540054
"""The normal distribution's 97.5% quantile: how many standard errors an end of a 95% interval is from the estimate."""
Z_POWER = 0.8416212335729143
"""Its 80% quantile, for a power of 80%."""
POWER = 0.8
MAX_TO_SETTLE = 10_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and how sure it is."""

    value: float | None
    """None if it was not measured."""
    ci95: Interval | None = None
    """Its 95% interval."""
    why: str = ""
    """Why there is no interval."""


@dataclass(frozen=True, slots=True)
class Kpi:
    """A goal and whether it is reached."""

    status: Status
    goal: float
    at_least: bool
    """True: the figure must be at least `goal`; False: it must be below it."""
    unit: Unit
    """What `goal`, `value` and `ci95` are: a share of 1, a ratio such as 4.2 times, or seconds."""
    value: float | None
    ci95: Interval | None
    n: int
    """Of what is `counted`, behind the value."""
    counted: str
    """What the interval shrinks with, in the plural: test prompts, timed prompts, rounds of timing."""
    to_settle: int | None
    """If open: how many of what is counted would settle it; see `num_to_settle`."""
    why: str
    """If it is open and nothing would settle it, or there is no value: the reason."""


def judge(figure: Figure, goal: float, *, unit: Unit, n: int, counted: str, at_least: bool = True) -> Kpi:
    """The Kpi of a figure on `n` of what is `counted`. at_least: whether more is better."""
    status, to_settle, why = _status(figure, goal, at_least), None, ""
    if figure.value is None:
        why = figure.why
    elif status == "open" and figure.ci95 is None:
        why = figure.why or "it has no interval"
    elif status == "open":
        assert figure.ci95 is not None
        to_settle = num_to_settle(figure.value, goal, figure.ci95, n)
        why = "" if to_settle else "the figure is too close to the goal for any number of them to settle it"
    return Kpi(status, goal, at_least, unit, figure.value, figure.ci95, n, counted, to_settle, why)


def _status(figure: Figure, goal: float, at_least: bool) -> Status:
    if figure.value is None:
        return "missed"
    if figure.ci95 is None:
        return "open"
    low, high = figure.ci95
    if at_least:
        return "met" if low >= goal else "missed" if high < goal else "open"
    return "met" if high < goal else "missed" if low >= goal else "open"


def num_to_settle(value: float, goal: float, ci95: Interval, n: int, *, comparisons: int = 1) -> int | None:
    """How many units in all give a chance of 80% that the goal is outside the 95% interval, if `value` is the truth.

    n ((z(0.975) + z(0.8)) standard error / distance)^2, as the usual sample size for a power of 80% at a two-sided 5% (J.
    Lachin 1981, Controlled Clinical Trials 2, equation 1): the standard error shrinks with the root of the number. It is
    taken from the side of the interval where the goal lies, whose end is z(0.975) standard errors away. comparisons: by how
    many the 5% is divided (Bonferroni). None if `value` is so close to the goal that more than MAX_TO_SETTLE would be
    needed. The truth may be closer to the goal than `value` is, and then it takes more.
    """
    error = abs((ci95[0] if value >= goal else ci95[1]) - value) / Z_SIDE
    distance = abs(value - goal)
    if distance == 0:
        return None
    side = NormalDist().inv_cdf(1 - 0.05 / (2 * comparisons))
    needed = n * ((side + Z_POWER) * error / distance) ** 2
    return max(math.ceil(needed - 1e-9), n + 1) if needed <= MAX_TO_SETTLE else None


def smallest(*figures: Figure) -> Figure:
    """The smallest of some figures, which must all reach a goal. Its interval goes from the lowest lower end to the lowest
    upper end: all of them reach a goal exactly if it does (the intersection-union test, Berger 1982)."""
    values = [figure.value for figure in figures if figure.value is not None]
    if len(values) < len(figures):
        return Figure(None, None, next(figure.why for figure in figures if figure.value is None))
    intervals = [figure.ci95 for figure in figures if figure.ci95 is not None]
    if len(intervals) < len(figures):
        return Figure(min(values), None, next(figure.why for figure in figures if figure.ci95 is None))
    return Figure(min(values), (min(low for low, _ in intervals), min(high for _, high in intervals)))
