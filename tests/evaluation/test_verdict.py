"""What scores allow to be said: no claim from likeness, from a base at the goal, or from a student below its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.statistics import Paired
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.verdict import AT_GOAL, KEPT, MISSED, OPEN, SIMILARITY, UNSCORED, WORSE, decide, percent
from distill_lab.grading.graders import metric_of, names
from distill_lab.terminal import Terminal

EXACT, OVERLAP = metric_of("exact"), metric_of("overlap")


def test_every_grader_names_its_metric() -> None:
    assert {metric_of(name).name for name in ("exact", "numeric", "label", "overlap")} == {
        *("exact match", "numeric answer", "label accuracy", "ROUGE-L overlap with the reference text")
    }
    assert metric_of("judge:openai:qwen-max").name == "judge score (openai:qwen-max)"
    assert metric_of("label", reference="teacher").name == "label accuracy against the teacher's answers"
    assert metric_of("overlap", reference="teacher").name == "ROUGE-L overlap against the teacher's answers"
    assert [name for name in names() if metric_of(name).similarity] == ["overlap"]
    assert all(metric_of(name).short != name for name in names())
    with pytest.raises(UserError, match="no grader 'numerik'; choose from exact, judge"):
        metric_of("numerik")


@pytest.mark.parametrize(
    ("base", "student", "verdict", "status"),
    [
        (0.35, 0.96, KEPT, "met"),
        (0.35, 0.91, OPEN, "open"),
        (0.35, 0.89, OPEN, "open"),
        (0.35, 0.70, MISSED, "missed"),
        (0.91, 0.95, AT_GOAL, None),
        (0.95, 0.93, WORSE, None),
        (0.95, 0.20, WORSE, "missed"),
        (0.35, 0.00, WORSE, "missed"),
        (None, 0.96, KEPT, "met"),
    ],
)
def test_verdict_by_base_and_student(base: float | None, student: float, verdict: str, status: str | None) -> None:
    scores = {"teacher": 1.0, "student": student} | ({"base": base} if base is not None else {})
    found = decide(EXACT, scores, n=100, retention_ci95=(student - 0.02, student + 0.02), p_value=0.01)
    assert found.verdict == verdict
    assert {name: kpi.status for name, kpi in found.kpis.items()} == ({"retention >= 0.9": status} if status else {})
    assert found.retention == student
    assert found.base_retention == base
    assert "exact match" in found.result
    assert bool(found.advice) == (verdict == WORSE)


def test_without_an_interval_the_goal_is_open() -> None:
    found = decide(EXACT, {"teacher": 1.0, "student": 0.99}, n=100)
    assert (found.verdict, found.kpis["retention >= 0.9"].why) == (OPEN, "no interval was computed")


def test_likeness_has_no_retention_and_no_goal() -> None:
    found = decide(OVERLAP, {"teacher": 0.202, "base": 0.204, "student": 0.205}, n=100)
    assert (found.verdict, found.kpis, found.retention) == (SIMILARITY, {}, None)
    assert found.similarity == pytest.approx(0.205 / 0.202)
    assert found.result == (
        "The student's ROUGE-L overlap with the reference text is 20.5% (teacher 20.2%, base student 20.4%)"
    )
    # Below its base it is worse by this metric, too.
    found = decide(OVERLAP, {"teacher": 0.2, "base": 0.3, "student": 0.1}, n=100, p_value=0.001)
    assert found.verdict == WORSE
    assert found.kpis == {}


def test_a_fall_within_chance_is_not_called_harm() -> None:
    found = decide(EXACT, {"teacher": 1.0, "base": 0.50, "student": 0.49}, n=100, p_value=0.8)
    assert found.result == (
        "Training did not make the student better: exact match 50.0% before, 49.0% after, a difference within chance"
    )


def test_advice_where_the_validation_loss_rose() -> None:
    scores = {"teacher": 1.0, "base": 0.3, "student": 0.5}
    (line,) = decide(EXACT, scores, n=9, losses=(0.113, 0.427)).advice
    assert "rose from 0.113 to 0.427" in line
    assert all(flag in line for flag in ("more training rows", "--train.learning-rate", "--train.num-epochs"))
    assert decide(EXACT, scores, n=9, losses=(0.427, 0.113)).advice == ()
    assert decide(EXACT, scores, n=9, losses=(0.5811, 0.5812)).advice == ()


def test_nothing_scored() -> None:
    found = decide(None, {}, n=0)
    assert (found.verdict, found.kpis) == (UNSCORED, {})


def test_shares_are_not_rounded_into_a_claim() -> None:
    assert [percent(share) for share in (0.8996, 0.9, 0.996)] == ["89.9%", "90%", "99.6%"]


def printed(grader: str, base: float, student: float, capsys: pytest.CaptureFixture[str]) -> str:
    scores = {"teacher": 0.202, "base": base, "student": student}
    summary = summarize(
        "system1",
        100,
        scores={name: Score(100, score, (score - 0.01, score + 0.01), 50.0, 0, 0, 0) for name, score in scores.items()},
        gain=Paired(student - base, (-0.1, 0.1), 0.5, "sign-flip permutation"),
        retention_ci95=(student / 0.202 - 0.05, student / 0.202 + 0.05),
        metric=metric_of(grader),
        losses=(0.113, 0.427),
    )
    Terminal().summary(summary, Path("runs/x"))
    return capsys.readouterr().out


def test_the_terminal_names_the_metric_and_claims_nothing_of_likeness(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed("overlap", 0.204, 0.204, capsys)
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    assert "The student's ROUGE-L overlap with the reference text is 20.4% (teacher 20.2%, base student 20.4%)." in text
    assert "score: ROUGE-L overlap with the reference text, on 100 prompts" in text
    assert "similarity 101% of the teacher's ROUGE-L overlap; base student 101%" in text
    assert "gain +0.0 points [-10.0 to +10.0]" in text
    assert "rose from 0.113 to 0.427 nats per token" in text
    assert not {"met", "missed", "open", "kept", "retention"} & set(text.replace(".", " ").split())


def test_the_terminal_says_when_the_base_reaches_the_goal_or_stays_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("exact", 0.190, 0.195, capsys)
    assert "The base student already reaches 94% of the teacher's score (exact match)" in text
    assert "\nmet " not in text
    text = printed("exact", 0.195, 0.050, capsys)
    assert "Training did not make the student better: exact match 19.5% before, 5.0% after" in text
    assert "\nmissed retention >= 0.9" in text
