"""A conclusion says what the intervals allow, and no more."""

from __future__ import annotations

import re

import pytest

from distill_lab.evaluation.conclusion import conclude, limits, next_steps
from distill_lab.evaluation.experiment import Difference, VariantResult
from distill_lab.evaluation.goals import num_to_settle

VARIANT = VariantResult(
    name="1", value=None, about="", runs=(), rows=5, steps=1, train_seconds=1.0, losses=None, teacher=None,
    num_parameters=None, tokens_per_s=None, latency_p50_s=None, latency_p95_s=None, latency_tokens=None, on=(),
)  # fmt: skip


def step(first: str, second: str, value: float, *, found: bool, similarity: bool = False) -> Difference:
    ci95 = (value - 0.02, value + 0.02) if found else (value - 0.1, value + 0.1)
    return Difference(
        first=first, second=second, prompts="test", measure="score", value=value, ci95=ci95, p_value=0.01, test="t", n=100,
        found=found, similarity=similarity,
    )  # fmt: skip


def test_growth_that_stops_is_named_with_its_end() -> None:
    lines = conclude(
        [
            step("500", "2,000", 0.2, found=True),
            step("2,000", "8,000", 0.01, found=False),
            step("500", "8,000", 0.21, found=True),
        ],
        ordered=True,
    )
    assert lines == [
        "On the prompts `test` the score grows up to 2,000 (from 500 to 2,000 +20.0 points [+18.0, +22.0]).",
        "On the prompts `test` no further difference in the score is found: from 2,000 to 8,000 +1.0 points [-9.0, +11.0].",
    ]


def test_growth_at_every_step_reaches_the_last_variant() -> None:
    lines = conclude([step("1", "2", 0.1, found=True), step("2", "3", 0.1, found=True)], ordered=True)
    assert len(lines) == 1
    assert "grows up to 3" in lines[0]


def test_no_difference_is_said_with_its_intervals() -> None:
    lines = conclude(
        [step("1", "2", 0.03, found=False), step("2", "3", 0.02, found=False), step("1", "3", 0.05, found=False)],
        ordered=True,
    )
    assert len(lines) == 1
    assert "no difference in the score is found at this size" in lines[0]
    assert "[-7.0, +13.0]" in lines[0]


def test_a_whole_range_that_differs_though_no_step_does() -> None:
    lines = conclude(
        [step("1", "2", 0.03, found=False), step("2", "3", 0.03, found=False), step("1", "3", 0.06, found=True)],
        ordered=True,
    )
    assert lines == [
        "On the prompts `test` the score grows from 1 to 3 by +6.0 points [+4.0, +8.0]; no single step is found."
    ]


@pytest.mark.parametrize(("value", "way"), [(0.1, "grows"), (-0.1, "falls")])
def test_a_later_step_or_a_fall_is_said_step_by_step(value: float, way: str) -> None:
    lines = conclude([step("1", "2", 0.0, found=False), step("2", "3", value, found=True)], ordered=True)
    assert "no difference in the score is found: from 1 to 2" in lines[0]
    assert f"the score {way}: from 2 to 3" in lines[1]


def test_variants_next_to_each_other_are_compared_in_pairs_and_likeness_is_called_so() -> None:
    lines = conclude(
        [
            step("own", "teacher's", -0.1, found=True, similarity=True),
            step("own", "x", 0.0, found=False, similarity=True),
        ],
        ordered=False,
    )
    assert "the likeness to the reference text is lower with teacher's than with own: -10.0 points" in lines[0]
    assert "no difference in the likeness to the reference text is found between own and x" in lines[1]
    assert not any("score" in line for line in lines)


def test_sets_of_prompts_are_concluded_on_separately() -> None:
    import dataclasses

    first, second = step("1", "2", 0.1, found=True), step("1", "2", 0.1, found=False)
    lines = conclude([first, dataclasses.replace(second, prompts="other")], ordered=True)
    assert [line.split("`")[1] for line in lines] == ["test", "other"]


def test_what_would_settle_an_open_difference_follows_from_its_interval() -> None:
    open_one = step("1", "2", 0.05, found=False)
    needed = num_to_settle(0.05, 0.0, open_one.ci95, 100)
    assert needed is not None
    (line,) = next_steps([open_one], [], ordered=True)
    assert f"about {-(-needed // 10) * 10:,} prompts to settle; there were 100" in line
    assert next_steps([step("1", "2", 0.05, found=True)], [], ordered=True) == []


def test_the_number_that_would_settle_is_for_the_level_of_all_comparisons() -> None:
    steps = [step(str(n), str(n + 1), 0.05, found=False) for n in range(10)]
    (alone, *_), (among, *_) = next_steps(steps[:1], [], ordered=True), next_steps(steps, [], ordered=True)
    one, ten = (int(re.findall(r"about ([\d,]+) prompts", line)[0].replace(",", "")) for line in (alone, among))
    # z(1 - 0.05 / 20) = 2.807 in place of z(0.975) = 1.960, each with 0.842 for the power
    assert ten / one == pytest.approx(((2.807 + 0.8416) / (1.960 + 0.8416)) ** 2, rel=0.03)


def test_further_steps_are_advised_by_all_sets_of_prompts() -> None:
    import dataclasses

    def said(*last: Difference) -> list[str]:
        variants = [VARIANT, dataclasses.replace(VARIANT, name="2")]
        return [line for line in next_steps(last, variants, ordered=True) if "last step" in line]

    flat, grows = step("1", "2", 0.0, found=False), step("1", "2", 0.1, found=True)
    other = dataclasses.replace(grows, prompts="other", similarity=True)
    assert said(flat, other) == [
        "At the last step, to 2, the likeness to the reference text on `other` still grows: go further."
    ]
    assert said(grows, other) == [
        "At the last step, to 2, the score on `test` and the likeness to the reference text on `other` still grow: go "
        "further."
    ]
    (line,) = said(dataclasses.replace(grows, value=-0.1), other)
    assert line.endswith("on `other` still grows, and the score on `test` falls.")
    assert said(flat) == []


def test_one_training_is_a_limit_and_likeness_is_another() -> None:
    assert any("trained once" in line for line in limits([], seeds=1))
    assert not any("trained once" in line for line in limits([], seeds=3))
    assert any(
        "does not measure quality" in line
        for line in limits([step("1", "2", 0.0, found=False, similarity=True)], seeds=1)
    )
