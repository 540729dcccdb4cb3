"""Goals: met, missed or open by the interval, and the number that settles an open one does so in four of five runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill_lab.evaluation.goals import Figure, Kpi, judge, num_to_settle, smallest
from distill_lab.evaluation.intervals import proportion


def kpi(value: float | None, ci95: tuple[float, float] | None, *, at_least: bool = True, why: str = "") -> Kpi:
    return judge(Figure(value, ci95, why), 0.9, unit="share", n=100, counted="test prompts", at_least=at_least)


@pytest.mark.parametrize(
    ("ci95", "more", "less"),
    [
        ((0.91, 0.99), "met", "missed"),
        ((0.9, 0.99), "met", "missed"),
        ((0.85, 0.99), "open", "open"),
        ((0.8, 0.9), "open", "open"),
        ((0.8, 0.89), "missed", "met"),
    ],
)
def test_a_goal_is_met_or_missed_only_outside_of_the_interval(ci95: tuple[float, float], more: str, less: str) -> None:
    middle = sum(ci95) / 2
    assert kpi(middle, ci95).status == more
    assert kpi(middle, ci95, at_least=False).status == less
    assert (kpi(middle, ci95).to_settle is not None) == (more == "open")


def test_without_an_interval_or_a_figure_the_reason_is_given() -> None:
    alone = kpi(0.95, None, why="a single round was timed")
    assert (alone.status, alone.to_settle, alone.why) == ("open", None, "a single round was timed")
    assert kpi(0.95, None).why == "it has no interval"
    none = kpi(None, None, why="the teacher scores 0")
    assert (none.status, none.value, none.why) == ("missed", None, "the teacher scores 0")
    assert "too close" in kpi(0.9, (0.85, 0.95)).why
    assert kpi(0.95, (0.91, 0.97)).why == ""


def test_the_number_by_hand() -> None:
    # Half the interval is 1.96 standard errors of 0.05; to see 0.05 with a power of 80%, errors of 0.05 / 2.80 are needed.
    assert num_to_settle(0.95, 0.9, (0.95 - 1.95996 * 0.05, 1.0), 100) == math.ceil(100 * 2.80159**2)
    assert num_to_settle(0.85, 0.9, (0.5, 0.85 + 1.95996 * 0.05), 100) == math.ceil(100 * 2.80159**2)
    assert num_to_settle(0.9, 0.9, (0.8, 1.0), 100) is None
    assert num_to_settle(0.9001, 0.9, (0.5, 1.0), 100_000) is None
    # Never fewer than there were: those did not settle it.
    assert num_to_settle(0.95, 0.9, (0.9 - 1e-6, 1.0), 7) == 15


def test_a_larger_run_is_settled_in_four_of_five_cases() -> None:
    truth, goal, n = 0.95, 0.9, 100
    number = num_to_settle(truth, goal, proportion(95, n), n)
    assert number is not None
    counts = np.random.default_rng(0).binomial(number, truth, 2000)
    settled = {int(count): proportion(int(count), number)[0] > goal for count in set(counts)}
    # The interval of 100 prompts is a little wider than a normal one, so that it is rather more often.
    assert 0.78 <= np.mean([settled[int(count)] for count in counts]) <= 0.95


def test_the_smallest_figure_reaches_a_goal_if_all_do() -> None:
    both = smallest(Figure(4.0, (3.5, 4.5)), Figure(3.2, (2.5, 4.9)))
    assert (both.value, both.ci95) == (3.2, (2.5, 4.5))
    assert smallest(Figure(4.0, (3.5, 4.5)), Figure(3.2, None, "once")) == Figure(3.2, None, "once")
    assert smallest(Figure(4.0, (3.5, 4.5)), Figure(None, None, "not timed")) == Figure(None, None, "not timed")
