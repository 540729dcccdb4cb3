"""How many times as fast: ratios per answer and per token by hand, their intervals by simulation, and reasons for none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from distill_lab.evaluation.intervals import log_mean_variance, log_normal
from distill_lab.evaluation.speedups import MEDIAN_VARIANCE, Speed, latency_95, speedups

TURNS = ("teacher", "student")
TEACHER = Speed(
    *(100.0, 50.0, 0.4, 0.8, 1.0, 1.2, 40.0, 1000, None),
    in_turns_with=TURNS,
    rounds=((1.6, 160.0), (1.7, 160.0), (1.6, 160.0)),
    answer_tokens=(30, 50, 40, 40),
    answers_single=((0.7, 35.0), (0.9, 45.0)),
    latencies_s=(1.0,) * 18 + (1.2, 1.2),
)
STUDENT = replace(
    TEACHER,
    tokens_per_s=200.0,
    tokens_per_s_single=80.0,
    seconds_per_answer=0.1,
    seconds_per_answer_single=0.25,
    rounds=((0.4, 80.0), (0.4, 80.0), (0.42, 80.0)),
    answer_tokens=(15, 25, 20, 20),
    answers_single=((0.2, 16.0), (0.3, 24.0)),
)


def test_a_terser_student_is_faster_per_answer_than_per_token() -> None:
    found = speedups(TEACHER, STUDENT)
    values = [each.value for each in (found.batched, found.per_token_batched, found.single, found.per_token_single)]
    assert values == pytest.approx([4.0, 2.0, 3.2, 1.6])
    assert (found.num_rounds, found.num_prompts_single) == (3, 2)


def test_intervals_by_hand() -> None:
    found = speedups(TEACHER, STUDENT)
    # Rounds with the ratios 4.0, 4.25 and 3.81: the median is that of the first.
    logs = [math.log(teacher / student) for teacher, student in ((1.6, 0.4), (1.7, 0.4), (1.6, 0.42))]
    rounds = MEDIAN_VARIANCE * float(np.var(logs, ddof=1)) / 3
    assert found.per_token_batched.ci95 == pytest.approx(log_normal(2.0, (rounds, 2)))
    # The student's answers have half the teacher's tokens, prompt by prompt: that adds nothing.
    assert found.batched.ci95 == pytest.approx(log_normal(4.0, (rounds, 2)))
    other = replace(STUDENT, answer_tokens=(25, 15, 20, 20))
    tokens = log_mean_variance((TEACHER.answer_tokens, 1), (other.answer_tokens, -1))
    assert speedups(TEACHER, other).batched.ci95 == pytest.approx(log_normal(4.0, (rounds, 2), (tokens, 3)))
    assert speedups(TEACHER, other).per_token_batched.ci95 == found.per_token_batched.ci95
    seconds = log_mean_variance(([0.7, 0.9], 1), ([0.2, 0.3], -1))
    assert found.single.ci95 == pytest.approx(log_normal(3.2, (seconds, 1)))
    # Each model has one pace for all prompts: per token the prompts do not differ.
    assert found.per_token_single.ci95 == pytest.approx((1.6, 1.6))


PACE = {"teacher": 1.0, "student": 0.25}
"""Seconds per token."""


def timed(
    generator: np.random.Generator, *, num_rounds: int, num_prompts: int, noise: float, skew: float
) -> tuple[Speed, Speed]:
    """Two models in turns: moments at which the machine is slow for both, noise of each timing, prompts of any length.

    noise: relative, of a timing. skew: deviation of the logarithm of an answer's tokens, half of it common to both models.
    """
    slow = generator.lognormal(0, 0.3, num_rounds)
    hard = {name: generator.normal(0, skew / math.sqrt(2), (2, num_prompts)) for name in ("both", *PACE)}
    found = []
    for name, pace in PACE.items():
        # Of the batch, and of prompts alone; means of exp(hard) are exp(skew^2 / 2).
        batch, alone = 40 * np.exp(hard["both"] + hard[name])
        seconds = pace * batch.sum() * slow * generator.lognormal(0, noise, num_rounds)
        single = pace * alone * generator.lognormal(0, noise, num_prompts)
        change = {
            "rounds": tuple((float(each), float(batch.sum())) for each in seconds),
            "answer_tokens": tuple(map(float, batch)),
            "answers_single": tuple((float(each), float(tokens)) for each, tokens in zip(single, alone, strict=True)),
            "tokens_per_s": float(np.median(batch.sum() / seconds)),
            "tokens_per_s_single": float(alone.sum() / single.sum()),
            "seconds_per_answer": float(np.median(seconds)) / num_prompts,
            "seconds_per_answer_single": float(single.mean()),
        }
        found.append(replace(TEACHER, **change))
    return found[0], found[1]


@pytest.mark.parametrize(("num_rounds", "num_prompts"), [(3, 8), (5, 20), (20, 20)])
@pytest.mark.parametrize(("noise", "skew"), [(0.05, 0.3), (0.3, 0.6)])
def test_the_intervals_cover(num_rounds: int, num_prompts: int, noise: float, skew: float) -> None:
    generator, number = np.random.default_rng(2), 1000
    hits = dict.fromkeys(("batched", "per_token_batched", "single", "per_token_single"), 0)
    truth = PACE["teacher"] / PACE["student"]
    for _ in range(number):
        models = timed(generator, num_rounds=num_rounds, num_prompts=num_prompts, noise=noise, skew=skew)
        found = speedups(*models)
        for name in hits:
            ends = getattr(found, name).ci95
            assert ends is not None
            hits[name] += ends[0] <= truth <= ends[1]
    assert min(hits.values()) / number >= 0.93, hits


@pytest.mark.parametrize(
    ("change", "batched", "single"),
    [
        ({"rounds": ((0.4, 80.0),)}, "a single round was timed", ""),
        ({"answers_single": ((0.2, 16.0),)}, "", "a single prompt was timed"),
        ({"in_turns_with": ("student",)}, "the models did not take turns", "the models did not take turns"),
    ],
)
def test_no_interval_has_a_reason(change: dict[str, object], batched: str, single: str) -> None:
    found = speedups(TEACHER, replace(STUDENT, **change))
    assert (found.batched.why, found.per_token_batched.why) == (batched, batched)
    assert (found.single.why, found.per_token_single.why) == (single, single)
    for figure in (found.batched, found.single):
        assert (figure.ci95 is None) == bool(figure.why)
        assert figure.value is not None


def test_what_an_earlier_version_timed_is_read_and_has_no_interval() -> None:
    later = ("in_turns_with", "rounds", "answer_tokens", "answers_single", "latencies_s")
    old = [
        Speed.from_json({name: value for name, value in speed.to_json().items() if name not in later})
        for speed in (TEACHER, STUDENT)
    ]
    found = speedups(*old)
    assert found.batched.value == 4.0
    assert "an earlier version timed it" in found.batched.why
    assert "an earlier version timed it" in latency_95(old[0]).why


def test_the_latency_has_an_interval_around_it() -> None:
    found = latency_95(STUDENT)
    assert found.value == 1.2
    assert found.ci95 is not None
    assert found.ci95[0] <= 1.2 <= found.ci95[1]
    # One answer that took very long is beyond what the others allow.
    odd = latency_95(replace(STUDENT, latencies_s=(1.0,) * 19 + (1.0001,), latency_p95_s=9.0))
    assert odd.ci95 == (pytest.approx(1.0, abs=0.01), 9.0)
    none = latency_95(replace(STUDENT, latency_p95_s=None, num_latencies=6))
    assert (none.value, none.why) == (None, "no 95th percentile from 6 answers; it takes 20")
